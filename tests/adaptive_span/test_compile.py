"""Whole models as one graph: compiled and exported, for any length, with and without memories."""

import pytest
import torch
from torch.export import Dim, export

KINDS = {
    "static": {},
    "dynamic": {"span_mode": "dynamic"},
    "other": {
        "attend_to_zero_cache": False,
        "persistent_memory_size": 5,
        "norm_position": "pre",
        "position_keys": "per_layer",
        "span_epsilon": 0.1,
    },
    "encoder": {"is_decoder": False},
}


def text(length, batch=2, padded=0, left=False):
    ids = torch.randint(3, 50, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, slice(0, padded) if left else slice(length - padded, None)] = 0
    return {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask}


def compiled(model, **options):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_as_one_graph(kind, make_model):
    model = make_model("ForSequenceClassification", num_hidden_layers=1, **KINDS[kind])
    graph = compiled(model, dynamic=True)
    with torch.no_grad():
        for inputs in (text(30, padded=7), text(13, batch=3, padded=2, left=True), text(16)):
            torch.testing.assert_close(graph(**inputs).logits, model(**inputs).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "other"])
def test_compiled_training_steps_over_a_stream(kind, make_model):
    """Memories are longer in a graph, which cannot look at spans; they hold the same where it matters."""
    ids = torch.randint(0, 50, (2, 25))
    grads = []
    for make in (lambda model: model, compiled):
        model = make_model("ForCausalLM", num_hidden_layers=1, span_loss_weight=1.0, **KINDS[kind]).train()
        step, mems = make(model), None
        for begin in (0, 12):
            model.zero_grad()
            block = slice(begin, begin + 12)
            out = step(ids[:, block], next_ids=ids[:, begin + 1 : begin + 13], mems=mems, use_mems=True)
            out.loss.backward()
            mems = out.mems
            with torch.no_grad():  # out of bounds, to be clamped
                for parameter in model.span_parameters():
                    parameter -= 0.05
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, graph in zip(*grads, strict=True):
        torch.testing.assert_close(graph, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "encoder"])
def test_exported_for_any_batch_and_length(kind, make_model):
    model = make_model("ForSequenceClassification", num_hidden_layers=1, **KINDS[kind])
    shape = {0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=128)}
    inputs = text(30, padded=4)
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    with torch.no_grad():
        for other in (text(30, padded=9, left=True), text(101, batch=1), text(5, batch=3)):
            torch.testing.assert_close(program(**other).logits, model(**other).logits)
