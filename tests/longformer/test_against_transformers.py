"""Checkpoints of transformers' Longformer load as they are and give the same numbers."""

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import longspan
from longspan.longformer.conversion import rename_original

HEADS = [
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
]


@pytest.fixture
def make_pair(small, tmp_path):
    def make(head):
        config = transformers.LongformerConfig(**small)
        theirs = getattr(transformers, f"Longformer{head}")(config).eval()
        for parameter in theirs.parameters():
            parameter.data.normal_(0, 0.15)
        theirs.save_pretrained(tmp_path)
        ours, report = getattr(longspan, f"Longformer{head}").from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return theirs, ours.eval()

    torch.manual_seed(0)
    return make


def assert_same(ours, theirs, tokens):
    assert list(ours.keys()) == list(theirs.keys())
    for name, expected in theirs.items():
        pairs = zip(ours[name], expected, strict=True) if isinstance(expected, tuple) else [(ours[name], expected)]
        for actual, wanted in pairs:
            if name == "global_attentions":  # theirs have rows beyond the text, and something in empty slots
                used = actual.abs().sum(2, keepdim=True) > 0
                actual, wanted = actual * used, wanted[:, :, : actual.shape[2]] * used
            if wanted.shape[:2] == tokens.shape:  # what stands at padding is nobody's business
                actual, wanted = actual[tokens], wanted[tokens]
            torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("with_globals", [True, False], ids=["globals", "defaults"])
@pytest.mark.parametrize("head", HEADS)
def test_same_outputs(head, with_globals, make_pair, batch):
    theirs, ours = make_pair(head)
    if not with_globals:
        batch.pop("global_attention_mask")
    if head in ("Model", "ForSequenceClassification", "ForMultipleChoice"):
        batch["attention_mask"][2, :7] = 1  # theirs read the first position, padding or not
    if head in ("ForQuestionAnswering", "ForMultipleChoice") and not with_globals:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])  # they want three separators in each row
        batch["input_ids"] = batch["input_ids"].where(batch["input_ids"] != 1, 5)
    tokens = batch["attention_mask"].bool()
    if head == "ForMultipleChoice":
        batch = {name: tensor[None] for name, tensor in batch.items()}
    options = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        assert_same(ours(**batch, **options), theirs(**batch, **options), tokens)


LABELS = {
    "ForMaskedLM": lambda ids: {"labels": ids.where(ids % 3 == 0, -100)},
    "ForSequenceClassification": lambda ids: {"labels": torch.tensor([0, 1, 1])},
    "ForTokenClassification": lambda ids: {"labels": (ids % 2).where(ids % 3 == 0, -100)},
    "ForQuestionAnswering": lambda ids: {
        "start_positions": torch.tensor([3, 9, 60]),
        "end_positions": torch.tensor([5, 9, 61]),
    },
    "ForMultipleChoice": lambda ids: {"labels": torch.tensor([2])},
}


@pytest.mark.parametrize("head", LABELS)
def test_same_loss_and_gradients(head, make_pair, batch):
    theirs, ours = make_pair(head)
    batch["attention_mask"][2, :7] = 1
    labels = LABELS[head](batch["input_ids"])
    if head == "ForMultipleChoice":
        batch = {name: tensor[None] for name, tensor in batch.items()}
    losses = [model.train()(**batch, **labels).loss for model in (ours, theirs)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for name, parameter in theirs.named_parameters():
        gradient = ours.get_parameter(name).grad
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected, atol=2e-5 * max(1, expected.abs().max().item()), rtol=0)


def test_inputs_embeds(make_pair, batch):
    theirs, ours = make_pair("ForTokenClassification")
    batch["inputs_embeds"] = ours.get_input_embeddings()(batch.pop("input_ids")).detach()
    batch["attention_mask"][2, :7] = 1
    with torch.no_grad():
        actual, expected = ours(**batch).logits, theirs(**batch).logits
    tokens = batch["attention_mask"].bool()
    torch.testing.assert_close(actual[tokens], expected[tokens], atol=1e-5, rtol=0)


def test_ours_load_in_transformers(make_model, tmp_path, batch):
    ours = make_model("ForMaskedLM")
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "longformer"}))
    loaded: Any = transformers.LongformerForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs.eval()(**batch).logits[tokens]
        torch.testing.assert_close(ours(**batch).logits[tokens], expected, atol=1e-5, rtol=0)


def test_names_of_the_original_release_and_an_old_buffer(make_model, tmp_path, batch):
    model = make_model("ForMaskedLM")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    state = {name.replace("longformer.", "roberta."): value for name, value in saved.items()}
    state["roberta.embeddings.position_ids"] = torch.arange(130)[None]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    both: Any = longspan.LongformerForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    loaded, report = both
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits)
    loaded.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == saved.keys()


def test_bin_files_are_read_as_weights_only(make_model, tmp_path, batch):
    model = make_model("ForTokenClassification")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = longspan.LongformerForTokenClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_training_checkpoints_of_the_original_code_are_renamed(make_model):
    model = make_model("ForQuestionAnswering")
    original = {name.replace("longformer.", "model.", 1): value for name, value in model.state_dict().items()}
    original["model.embeddings.position_ids"] = torch.arange(130)[None]
    assert rename_original(original).keys() == model.state_dict().keys()
    bare = {name: value for name, value in make_model().state_dict().items() if "pooler" not in name}
    model.load_state_dict(rename_original(bare), strict=False)
    torch.testing.assert_close(
        model.state_dict()["longformer.encoder.layer.1.output.dense.bias"], bare["encoder.layer.1.output.dense.bias"]
    )
