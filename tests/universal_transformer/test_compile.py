"""Whole models as one graph. Loops that would stop early run to their end there, with the same result."""

import pytest
import torch
from torch.export import Dim, export

from tests.universal_transformer.small_models import RECURRENCES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recurrence", "form", "fields"),
    [
        ("basic", "decoder", {"transition": "sepconv", "num_prelude_layers": 1}),
        ("act", "encoder", {}),
        ("act-packed", "decoder", {"window": 3}),
    ],
    ids=["basic", "act", "packed"],
)
def test_compiled_as_one_graph(recurrence, form, fields, make_model):
    torch._dynamo.reset()
    model = make_model(form=form, **RECURRENCES[recurrence] | fields | {"num_recurrent_steps": 2})
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for batch, length in ((2, 9), (3, 14)):
            ids = torch.randint(2, 50, (batch, length))
            mask = torch.ones_like(ids)
            mask[0, :3], mask[1, -2:] = 0, 0
            actual, expected = compiled(ids, attention_mask=mask), model(ids, attention_mask=mask)
            tokens = mask != 0
            torch.testing.assert_close(actual.last_hidden_state[tokens], expected.last_hidden_state[tokens])
            if expected.n_updates is not None:
                assert torch.equal(actual.n_updates, expected.n_updates)
                torch.testing.assert_close(actual.ponder_loss, expected.ponder_loss)


@pytest.mark.slow
def test_compiled_training_step(make_model):
    """Losses and gradients of encoder and decoder, with dropout drawn in the graph as outside of it."""
    torch._dynamo.reset()
    fields = {**RECURRENCES["act"], "num_recurrent_steps": 2, "hidden_dropout_prob": 0.1}
    model = make_model("ForConditionalGeneration", "both", **fields).train()
    ids, labels = torch.randint(2, 50, (2, 9)), torch.randint(2, 50, (2, 7))
    losses, gradients = [], []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        torch.manual_seed(0)
        loss = step(ids, labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*losses)
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["basic", "act-packed"])
def test_exported_for_any_batch_and_length(recurrence, make_model):
    model = make_model(**RECURRENCES[recurrence], num_inner_layers=2)
    shape = {0: Dim("batch", min=2, max=8), 1: Dim("length", min=2, max=64)}

    def text(batch, length):
        ids = torch.randint(2, 50, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, : length // 3] = 0
        return {"input_ids": ids, "attention_mask": mask}

    inputs = text(2, 9)
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    with torch.no_grad():
        for other in (inputs, text(3, 30)):
            tokens = other["attention_mask"] != 0
            actual, expected = program(**other), model(**other)
            torch.testing.assert_close(actual.last_hidden_state[tokens], expected.last_hidden_state[tokens])
