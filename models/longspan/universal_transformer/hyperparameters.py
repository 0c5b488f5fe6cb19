"""tensor2tensor's hyperparameters as fields of a configuration."""

from collections.abc import Mapping
from typing import Any


def fields_from_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """tensor2tensor's hyperparameters (its ``hparams.json``) -> fields for `UniversalTransformerConfig.tensor2tensor`.

    The size of the vocabulary is the problem's, not a hyperparameter: add ``vocab_size``.

    Raises:
        ValueError: for a hyperparameter that is needed and not there, or a value that has no counterpart.
    """
    wanted = ("hidden_size", "filter_size", "num_heads", "recurrence_type")
    missing = [name for name in wanted if name not in hparams]
    if missing:
        raise ValueError(f"hparams has no {missing[0]!r}: is it a universal_transformer set?")
    for name, usual in (("add_sru", False), ("gate_ffn_layer", "dense")):
        if hparams.get(name, usual) != usual:
            raise ValueError(f"hparams has {name} = {hparams[name]!r}, of which there is only {usual!r} here")
    given: dict[str, Any] = dict(hparams)
    recurrence = given["recurrence_type"]
    steps = given.get("num_rec_steps") or given.get("num_hidden_layers", 6)
    if recurrence == "act":
        steps = given.get("act_max_steps") or 2 * given["num_hidden_layers"]
    mixed = given.get("mix_with_transformer") or ""
    layers = given.get("num_mixedin_layers", 0)
    has_places = given.get("add_position_timing_signal", True)
    offset = given.get("position_start_index") if has_places else None
    signal = given.get("step_timing_signal_type", "learned") if given.get("add_step_timing_signal", True) else "none"
    fields = {
        "hidden_size": given["hidden_size"],
        "intermediate_size": given["filter_size"],
        "num_attention_heads": given["num_heads"],
        "num_recurrent_steps": steps,
        "recurrence": recurrence,
        "recurrence_options": _recurrence_options(recurrence, given),
        "num_inner_layers": 1 if recurrence in ("gru", "lstm") else given.get("num_inrecurrence_layers", 1),
        "num_prelude_layers": layers if "before_ut" in mixed else 0,
        "num_coda_layers": layers if "after_ut" in mixed else 0,
        "transition": given.get("transformer_ffn_type", "fc"),
        "norm_position": _norm_position(given),
        "layer_norm_eps": float(given.get("norm_epsilon", 1e-6)),
        "position_signal": "tensor2tensor" if has_places else "none",
        "position_offset": "random_each_step" if offset == "random" else offset or None,
        "step_signal": signal,
        "timing": given.get("add_or_concat_timing_signal", "add"),
        "share_embeddings": given.get("shared_embedding_and_softmax_weights", True),
        "tie_word_embeddings": given.get("shared_embedding_and_softmax_weights", True),
        "scale_embedding": given.get("multiply_embedding_mode", "sqrt_depth") == "sqrt_depth",
        "label_smoothing": given.get("label_smoothing", 0.0),
    }
    dropouts = {
        "hidden_dropout_prob": "layer_prepostprocess_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "activation_dropout_prob": "relu_dropout",
    }
    return fields | {ours: given[theirs] for ours, theirs in dropouts.items() if theirs in given}


def _norm_position(hparams: Mapping[str, Any]) -> str:
    before, after = hparams.get("layer_preprocess_sequence", "n"), hparams.get("layer_postprocess_sequence", "da")
    places = {("n", "a"): "pre", ("none", "an"): "post", ("", "an"): "post"}
    place = places.get((before, after.replace("d", "")))  # where there is dropout, its rate says
    if place is None:
        raise ValueError(
            f"layer_preprocess_sequence, layer_postprocess_sequence must be 'n', 'da' or 'none', 'dan', "
            f"got {before!r}, {after!r}"
        )
    return place


def _recurrence_options(recurrence: str, hparams: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "act": {
            "variant": "act_type",
            "epsilon": "act_epsilon",
            "halting_bias": "act_halting_bias_init",
            "loss_weight": "act_loss_weight",
        },
        "highway": {
            "gates_inputs": "gates_inputs",
            "couple_gates": "couple_carry_transform_gates",
            "transform_bias": "transform_bias_init",
        },
        "gru": {"with_transition": "add_ffn_unit_to_the_transition_function"},
        "lstm": {
            "with_transition": "add_ffn_unit_to_the_transition_function",
            "forget_bias": "lstm_forget_bias",
            "memory_as_output": "use_memory_as_final_state",
        },
        "dwa": {"depth_embedding": "depth_embedding", "per_feature": "dwa_elements"},
    }
    known = names | {"basic": {}, "skip": names["highway"]}
    if recurrence not in known:
        raise ValueError(f"recurrence_type must be one of {', '.join(sorted(known))}, got {recurrence!r}")
    return {ours: hparams[theirs] for ours, theirs in known[recurrence].items() if hparams.get(theirs) is not None}
