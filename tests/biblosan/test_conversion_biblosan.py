"""TensorFlow's variables, both ways."""

import numpy as np
import pytest
import torch

import longspan
from longspan.biblosan.conversion import from_tensorflow, tensorflow_entries, to_tensorflow

TASKS = [
    "Model",
    "ForSequenceClassification",
    "ForSentencePairClassification",
    "ForSentencePairRegression",
    "ForSentenceSelection",
]


@pytest.mark.parametrize("full", [False, True], ids=["blocks", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_there_and_back(task, full, make_model):
    model = make_model(task, num_labels=5, **({"attention": "full", "block_length": None} if full else {}))
    state_dict = model.state_dict()
    variables = to_tensorflow(state_dict, model.config, task, scope="model")
    assert all(name.startswith("model/") for name in variables)
    words = "embeddings.word_embeddings.weight"
    words = words if task == "Model" else f"biblosan.{words}"
    assert {entry.name for entry in tensorflow_entries(model.config, task)} | {words} == state_dict.keys()
    extra = {"model/step": np.zeros(()), **{f"{name}/Adadelta": value for name, value in variables.items()}}
    again = from_tensorflow(variables | extra, model.config, task)
    assert again.keys() == state_dict.keys()
    for name, tensor in again.items():
        expected = state_dict[name].clone()
        if name == words:
            expected[:2] = 0  # constants there
        assert torch.equal(tensor, expected), name
    for name, tensor in from_tensorflow(variables, model.config, task, scope="model").items():
        assert torch.equal(tensor, again[name])


def test_directions_are_not_mixed_up(make_model):
    """Each projection of keys and of queries has a variable of its own where blocks are attended to."""
    model = make_model()
    variables = to_tensorflow(model.state_dict(), model.config)
    scope = "context_fusion_layers/ct_block_attn/backward_attn/self_attn_inter_block/disa/attention"
    projection = model.encoder.layer[0].backward_attention.between.attention.projection.weight.detach().numpy()
    np.testing.assert_array_equal(variables[f"{scope}/linear_dependent/W"], projection[:10].T)
    np.testing.assert_array_equal(variables[f"{scope}/linear_head/W"], projection[10:].T)


def test_what_is_missing_is_named(make_model):
    model = make_model()
    variables = to_tensorflow(model.state_dict(), model.config)
    last = "multi_dim_attn_for_block/bn_dense_map2/linear_map/bias"
    with pytest.raises(ValueError, match=last):
        from_tensorflow({name: value for name, value in variables.items() if name != last}, model.config)
    with pytest.raises(ValueError, match="model of that task"):
        from_tensorflow({}, model.config)
    with pytest.raises(ValueError, match="name the scope"):
        both = {f"{scope}/{name}": value for scope in "ab" for name, value in variables.items()}
        from_tensorflow(both, model.config)
    with pytest.raises(ValueError, match="no 'encoder"):
        to_tensorflow({}, model.config)
    with pytest.raises(ValueError, match="variant = 'reference'"):
        tensorflow_entries(longspan.BiBloSanConfig(block_length=3, variant="paper"))
    with pytest.raises(ValueError, match="task must be one of"):
        tensorflow_entries(model.config, "ForTokenClassification")
