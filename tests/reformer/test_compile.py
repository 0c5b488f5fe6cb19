"""Whole models as one graph: compiled, trained and exported."""

import pytest
import torch
from torch.export import Dim, export

DROPOUT = dict(hidden_dropout_prob=0.2, lsh_attention_probs_dropout_prob=0.1, local_attention_probs_dropout_prob=0.1)


def text(length, batch=2):
    """Padded on the left in the first row, on the right in the second."""
    ids = torch.randint(1, 60, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, : length // 5] = 0
    mask[1, length - length // 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("semantics", "layers"), [("original", ["local"]), ("chunked", ["local", "lsh"]), ("strict", ["lsh"])]
)
def test_compiled_as_one_graph(semantics, layers, make_model):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make_model("ModelWithLMHead", attn_layers=layers, lsh_semantics=semantics, num_buckets=6)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for inputs in (text(45), text(30, batch=3)):
            tokens = inputs["attention_mask"] != 0
            torch.testing.assert_close(compiled(**inputs).logits[tokens], model(**inputs).logits[tokens])


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", [None, 3])
def test_compiled_training_step(hash_seed, make_model):
    """Dropout and rotations are drawn in the graph as they are outside of it."""
    torch._dynamo.reset()
    model = make_model(
        "ModelWithLMHead",
        attn_layers=["local", "lsh"],
        num_buckets=None,
        hash_seed=hash_seed,
        chunk_size_lm_head=16,
        **DROPOUT,
    ).train()
    ids = torch.randint(1, 60, (2, 45))
    losses, grads = [], []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        torch.manual_seed(0)
        loss = step(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*losses)
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_exported_for_any_batch_and_length(make_model):
    """Any length above one chunk: shorter texts are another computation."""
    torch.manual_seed(0)
    model = make_model(attn_layers=["local", "lsh"], num_buckets=6)
    shape = {0: Dim("batch", min=2, max=8), 1: Dim("length", min=9, max=128)}
    inputs = text(30)
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    with torch.no_grad():
        for other in (text(30), text(101, batch=3), text(9)):
            tokens = other["attention_mask"] != 0
            expected = model(**other).last_hidden_state[tokens]
            torch.testing.assert_close(program(**other).last_hidden_state[tokens], expected)
