"""tensor2tensor's variables: their names and shapes as its code writes them, there and back, and what is refused.

That converted models compute the same as tensor2tensor is for the golden tests to say.
"""

import numpy as np
import pytest
import torch

from longspan.universal_transformer import (
    UniversalTransformerConfig,
    UniversalTransformerForCausalLM,
    UniversalTransformerForConditionalGeneration,
    UniversalTransformerModel,
)
from longspan.universal_transformer.conversion import from_tensor2tensor, to_tensor2tensor
from longspan.universal_transformer.hyperparameters import fields_from_hparams

D, F, V = 8, 12, 37  # hidden, filter, words
HPARAMS = {
    "hidden_size": D,
    "filter_size": F,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "recurrence_type": "act",
    "num_rec_steps": 8,
    "act_max_steps": 4,
    "act_type": "basic",
    "act_epsilon": 0.01,
    "act_loss_weight": 0.01,
    "num_inrecurrence_layers": 1,
    "mix_with_transformer": None,
    "num_mixedin_layers": 2,
    "transformer_ffn_type": "fc",
    "layer_preprocess_sequence": "n",
    "layer_postprocess_sequence": "da",
    "add_step_timing_signal": True,
    "step_timing_signal_type": "learned",
    "add_or_concat_timing_signal": "add",
    "position_start_index": None,
    "shared_embedding_and_softmax_weights": True,
    "label_smoothing": 0.1,
    "layer_prepostprocess_dropout": 0.3,
}
DECODER_ONLY = dict(is_encoder_decoder=False, is_decoder=True, num_target_spaces=0)
ENCODER_ONLY = dict(is_encoder_decoder=False, num_target_spaces=0)


def make(hparams=None, model_class=UniversalTransformerForConditionalGeneration, **fields):
    torch.manual_seed(0)
    given = fields_from_hparams(HPARAMS | (hparams or {})) | {"vocab_size": V}
    model = model_class(UniversalTransformerConfig.tensor2tensor(**given | fields)).eval()
    for parameter in model.parameters():  # so that no two are alike
        torch.nn.init.normal_(parameter)
    return model


def expected_shapes():
    """Names and shapes of the encoder-decoder with adaptive computation, written out."""
    shapes = {"universal_transformer/body/target_space_embedding/kernel": (32, D)}
    for stack in ("encoder", "decoder"):
        body = f"universal_transformer/body/{stack}"
        ut = f"{body}/universal_transformer_act"
        norms = [body, *(f"{ut}/rec_layer_0/{part}" for part in ("self_attention", "ffn"))]
        attentions = ["self_attention"]
        if stack == "decoder":
            attentions.append("encdec_attention")
            norms.append(f"{ut}/rec_layer_0/encdec_attention")
        for scope in norms:
            shapes |= {f"{scope}/layer_prepostprocess/layer_norm/layer_norm_{part}": (D,) for part in ("scale", "bias")}
        for attention in attentions:
            for name in ("q", "k", "v", "output_transform"):
                shapes[f"{ut}/rec_layer_0/{attention}/multihead_attention/{name}/kernel"] = (D, D)
        for layer, sizes in (("conv1", (D, F)), ("conv2", (F, D))):
            shapes[f"{ut}/rec_layer_0/ffn/{layer}/kernel"] = sizes
            shapes[f"{ut}/rec_layer_0/ffn/{layer}/bias"] = sizes[1:]
        shapes[f"{ut}/layer_embedding"] = (4, 1, 1, D)
        shapes[f"{ut}/sigmoid_activation_for_pondering/dense/kernel"] = (D, 1)
        shapes[f"{ut}/sigmoid_activation_for_pondering/dense/bias"] = (1,)
    for shard in range(16):  # 37 rows: five shards of 3, the others of 2
        shapes[f"universal_transformer/symbol_modality_{V}_{D}/shared/weights_{shard}"] = (3 if shard < 5 else 2, D)
    return shapes


def test_names_and_shapes_are_tensor2tensors():
    variables = to_tensor2tensor(make())
    assert {name: array.shape for name, array in variables.items()} == expected_shapes()


VARIANTS = {
    "basic": dict(recurrence_type="basic"),
    "post-norm": dict(recurrence_type="basic", layer_preprocess_sequence="none", layer_postprocess_sequence="dan"),
    "sepconv": dict(recurrence_type="basic", transformer_ffn_type="sepconv"),
    "concat": dict(recurrence_type="basic", add_or_concat_timing_signal="concat"),
    "several layers": dict(num_inrecurrence_layers=2, mix_with_transformer="before_ut,after_ut"),
    "highway": dict(recurrence_type="highway", gates_inputs="sti"),
    "skip": dict(recurrence_type="skip", gates_inputs="st"),
    "gru": dict(recurrence_type="gru", add_step_timing_signal=False),
    "gru with transition": dict(
        recurrence_type="gru", add_step_timing_signal=False, add_ffn_unit_to_the_transition_function=True
    ),
    "lstm": dict(recurrence_type="lstm", add_step_timing_signal=False),
    "dwa": dict(recurrence_type="dwa"),
    "dwa, signals concatenated": dict(recurrence_type="dwa", add_or_concat_timing_signal="concat"),
    "global": dict(act_type="global"),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("form", [{}, ENCODER_ONLY, DECODER_ONLY], ids=["both", "encoder", "decoder"])
def test_there_and_back(name, form):
    model = make(VARIANTS[name], UniversalTransformerModel, **form)
    variables = to_tensor2tensor(model, scope="my/model", shards=3)
    state_dict = from_tensor2tensor(variables | {"global_step": np.zeros(1)}, model)
    assert state_dict.keys() == model.state_dict().keys()
    assert all(torch.equal(state_dict[key], value) for key, value in model.state_dict().items())
    names = [key for key in variables if "weights_" not in key]
    assert len(names) == len(set(names)) == len(state_dict) - sum("word_embeddings" in key for key in state_dict)


def test_a_converted_model_computes_the_same():
    model = make(VARIANTS["several layers"])
    other = make(VARIANTS["several layers"])
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    missing = other.load_state_dict(from_tensor2tensor(to_tensor2tensor(model), other))
    assert not missing.missing_keys and not missing.unexpected_keys
    ids, labels = torch.arange(5)[None] + 2, torch.arange(4)[None] + 9
    with torch.no_grad():
        assert torch.equal(other(ids, labels=labels).logits, model(ids, labels=labels).logits)


def test_separate_tables_have_names_of_their_own():
    def tables(variables):
        return sorted({name.split("/")[2] for name in variables if "weights_" in name})

    separate = {"shared_embedding_and_softmax_weights": False}
    both = make(separate)
    variables = to_tensor2tensor(both, shards=2)
    assert tables(variables) == ["input_emb", "softmax", "target_emb"]
    state_dict = from_tensor2tensor(variables, both)
    assert all(torch.equal(state_dict[key], value) for key, value in both.state_dict().items())

    causal = make(separate, UniversalTransformerForCausalLM, **DECODER_ONLY)
    variables = to_tensor2tensor(both) | to_tensor2tensor(causal)
    state_dict = from_tensor2tensor({name: x for name, x in variables.items() if "input_emb" not in name}, causal)
    target_table = both.state_dict()["universal_transformer.target_embeddings.word_embeddings.weight"]
    assert torch.equal(state_dict["universal_transformer.embeddings.word_embeddings.weight"], target_table)


def test_scores_tied_to_the_table_of_the_target():
    model = make(share_embeddings=False)
    state_dict = from_tensor2tensor(to_tensor2tensor(model), model)
    table = "universal_transformer.target_embeddings.word_embeddings.weight"
    assert torch.equal(state_dict["lm_head.decoder.weight"], state_dict[table])
    assert not torch.equal(state_dict[table], state_dict[table.replace("target_", "")])


def test_shards_are_joined_in_the_order_of_their_numbers():
    model = make()
    variables = to_tensor2tensor(model, shards=12)  # as text, 10 comes before 2
    shuffled = dict(sorted(variables.items(), key=lambda item: item[0]))
    table = from_tensor2tensor(shuffled, model)["universal_transformer.embeddings.word_embeddings.weight"]
    assert torch.equal(table, model.get_input_embeddings().weight)


def test_stacks_alone():
    model = make()
    variables = to_tensor2tensor(model)
    stack = {name.split("body/")[1]: array for name, array in variables.items() if "/decoder/" in name}
    state_dict = from_tensor2tensor(stack, model)
    assert {name.split(".")[1] for name in state_dict} == {"decoder"}
    missing = model.load_state_dict(state_dict, strict=False)
    assert all("encoder" in name or "embeddings" in name or "lm_head" in name for name in missing.missing_keys)


def test_errors_name_what_does_not_fit():
    model = make()
    variables = to_tensor2tensor(model)
    name = "universal_transformer/body/decoder/universal_transformer_act/layer_embedding"
    with pytest.raises(ValueError, match=rf"variables has no '{name}', which .*decoder\.coordinates\.step_embedding"):
        from_tensor2tensor({key: value for key, value in variables.items() if key != name}, model)
    with pytest.raises(ValueError, match=r"step_embedding.weight has the shape \[4, 8\], .* makes \[5, 8\]"):
        from_tensor2tensor(variables | {name: np.zeros((5, 1, 1, D), dtype=np.float32)}, model)
    with pytest.raises(ValueError, match="got 0 such scopes among 1 variables"):
        from_tensor2tensor({"bert/encoder/layer_0/kernel": np.zeros(1)}, model)
    with pytest.raises(ValueError, match="got 2 such scopes"):
        from_tensor2tensor(variables | {"other/encoder/universal_transformer_act/x": np.zeros(1)}, model)


def test_hyperparameters_become_fields():
    fields = fields_from_hparams(HPARAMS | {"mix_with_transformer": "after_ut", "position_start_index": "random"})
    config = UniversalTransformerConfig.tensor2tensor(**fields, vocab_size=V)
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (D, F, 2)
    assert (config.recurrence, config.num_recurrent_steps, config.step_signal) == ("act", 4, "learned")
    assert (config.num_prelude_layers, config.num_coda_layers) == (0, 2)
    assert config.position_offset == "random_each_step" and config.hidden_dropout_prob == 0.3
    options = config.recurrence_options or {}
    assert options["skip_padding"] is False and options["variant"] == "basic"
    unset = fields_from_hparams({name: x for name, x in HPARAMS.items() if name != "act_max_steps"})
    assert unset["num_recurrent_steps"] == 4, "twice num_hidden_layers"
    assert fields_from_hparams(HPARAMS | {"recurrence_type": "basic"})["num_recurrent_steps"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recurrence_type": "rnn"}, "recurrence_type must be one of .* got 'rnn'"),
        ({"add_sru": True}, "hparams has add_sru = True, of which there is only False"),
        ({"layer_postprocess_sequence": "dn"}, r"layer_preprocess_sequence, layer_postprocess_sequence must .*'dn'"),
    ],
)
def test_hyperparameters_without_a_counterpart(change, message):
    with pytest.raises(ValueError, match=message):
        fields_from_hparams(HPARAMS | change)
    with pytest.raises(ValueError, match="hparams has no 'hidden_size': is it a universal_transformer set"):
        fields_from_hparams({"num_heads": 2})
