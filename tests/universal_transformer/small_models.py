"""Configurations of small models, of every form and recurrence, and weights that matter."""

import torch

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_recurrent_steps": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "activation_dropout_prob": 0.0,
}
FORMS = {
    "encoder": {"is_encoder_decoder": False},
    "decoder": {"is_encoder_decoder": False, "is_decoder": True},
    "both": {"is_encoder_decoder": True},
}


def act(**options):
    return {"recurrence": "act", "recurrence_options": {"halting_bias": -1.0, **options}}


SAVING = {"halted_state": "copy", "halted_kv": "reuse", "mix": "sum", "force_halt_at_max": True}
RECURRENCES = {
    "basic": {},
    "act": act(),
    "act-copy": act(halted_state="copy", force_halt_at_max=True),
    "act-reuse": act(**SAVING),
    "act-packed": act(**SAVING, packed=True),
    "act-global": act(variant="global"),
    "highway": {"recurrence": "highway", "recurrence_options": {"gates_inputs": "st", "couple_gates": False}},
    "skip": {"recurrence": "skip"},
    "gru": {"recurrence": "gru", "step_signal": "none"},
    "lstm": {"recurrence": "lstm", "step_signal": "none", "recurrence_options": {"with_transition": True}},
    "dwa": {"recurrence": "dwa"},
}


def randomise(model, std=0.25):
    """Large enough that every part matters; halting biases stay, norms are around 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("halting.bias"):
            continue
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        wide = 1.0 if name.endswith("halting.weight") else std
        parameter.data.normal_(mean, wide, generator=generator)
    return model.eval()
