"""Whole models as one graph: compiled and exported, for any length."""

import pytest
import torch
from torch.export import Dim, export

KINDS = {
    "reference": {},
    "paper": {"variant": "paper"},
    "full": {"attention": "full", "block_length": None},
}


def text(length, batch=2, padded=0, left=False):
    ids = torch.randint(3, 100, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, slice(0, padded) if left else slice(length - padded, None)] = 0
    types = torch.zeros_like(ids)
    types[:, length // 2 :] = 1
    return {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask, "token_type_ids": types}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_as_one_graph(kind, make_model):
    torch._dynamo.reset()
    model = make_model("ForSequenceClassification", **KINDS[kind])
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for inputs in (text(30, padded=7), text(13, batch=3, padded=2, left=True), text(16)):
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ForSentencePairClassification", "ForQuestionAnswering"])
def test_compiled_training_step_over_two_texts(head, make_model):
    torch._dynamo.reset()
    model = make_model(head).train()
    inputs = text(22, padded=5)
    labels = {"labels": torch.tensor([0, 1])}
    if head == "ForQuestionAnswering":
        labels = {"start_positions": torch.tensor([12, 13]), "end_positions": torch.tensor([13, 14])}
    grads = []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        step(**inputs, **labels).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_exported_for_any_batch_and_length_beyond_one_block(make_model):
    model = make_model("ForSequenceClassification")
    shape = {0: Dim("batch", min=1, max=8), 1: Dim("length", min=5, max=128)}  # more than one block
    inputs = text(30, padded=4)
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    with torch.no_grad():
        for other in (text(30, padded=9, left=True), text(101, batch=1), text(5, batch=3)):
            torch.testing.assert_close(program(**other).logits, model(**other).logits)
