"""Whole models as one graph: compiled and exported, with and without global tokens, for any length."""

import pytest
import torch
from torch.export import Dim, export

ONE_LAYER = {
    "num_hidden_layers": 1,
    "attention_window": [8],
    "attention_dilation": [[1, 2, 1, 3]],
    "max_global_tokens": 6,
}


def text(length, num_global, batch=2, padded=0):
    ids = torch.randint(3, 100, (batch, length))
    mask, is_global = torch.ones_like(ids), torch.zeros_like(ids)
    mask[0, length - padded :] = 0
    is_global[0, :num_global] = 1
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask, "global_attention_mask": is_global}


@pytest.fixture
def model(make_model):
    torch.manual_seed(0)
    return make_model("ForQuestionAnswering", **ONE_LAYER)


@pytest.mark.slow
def test_compiled_as_one_graph(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for inputs in (
            text(30, 3, padded=4),
            text(47, 0),
            text(21, 6, batch=3),
            {"input_ids": text(30, 0)["input_ids"]},
        ):
            torch.testing.assert_close(compiled(**inputs).start_logits, model(**inputs).start_logits)
        with pytest.raises(RuntimeError, match="more than 6 global tokens"):
            compiled(**text(30, 7))


@pytest.mark.slow
def test_compiled_training_step(model):
    torch._dynamo.reset()
    inputs, labels = (
        text(30, 3, padded=4),
        {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
    )
    model.train()
    grads = []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        step(**inputs, **labels).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_exported_for_any_batch_and_length(model):
    shape = {0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=128)}
    inputs = text(30, 3)
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    with torch.no_grad():
        for other in (text(30, 3, padded=4), text(101, 6, batch=1), text(2, 0, batch=3)):
            torch.testing.assert_close(program(**other).start_logits, model(**other).start_logits)
        with pytest.raises(RuntimeError, match="more than 6 global tokens"):
            program(**text(30, 7))
    ids = inputs["input_ids"]
    program = export(model.longformer, (ids,), dynamic_shapes=(shape,)).module()
    other = text(77, 0)["input_ids"]
    with torch.no_grad():
        expected = model.longformer(other).last_hidden_state
        torch.testing.assert_close(program(other).last_hidden_state, expected)
