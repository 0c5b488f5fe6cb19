"""Checkpoints of transformers' Reformer load as they are and give the same numbers, where those are right.

What transformers has wrong is kept out: ``lm_head.bias`` is 0 unless a test says so, dropout is 0, and there is one
hash round where queries may find nothing (with more, its float32 merge does not give them their own value).
"""

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import longspan

LAYERS = {"lsh": ["lsh", "lsh"], "local": ["local", "local"], "mixed": ["local", "lsh", "local"]}
CAUSAL = ["Model", "ModelWithLMHead"]
HEADS = [*CAUSAL, "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"]


@pytest.fixture
def make_pair(small, tmp_path):
    def make(head, **fields):
        causal = fields.setdefault("is_decoder", head in CAUSAL)
        fields.setdefault("num_hashes", 1 if causal else 2)
        torch.manual_seed(0)
        config = transformers.ReformerConfig(**small | fields)
        theirs: Any = getattr(transformers, f"Reformer{head}")(config)
        for name, parameter in theirs.named_parameters():
            parameter.data.normal_(1.0 if name.endswith("layer_norm.weight") else 0.0, 0.2)
            if name == "lm_head.bias":
                parameter.data.zero_()
        theirs.save_pretrained(tmp_path)
        loaded: Any = getattr(longspan, f"Reformer{head}").from_pretrained(tmp_path, output_loading_info=True)
        ours, report = loaded
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert ours.config.lsh_semantics == "original"
        return theirs.eval(), ours.eval()

    return make


@pytest.mark.parametrize("length", [45, 64, 8, 5])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("head", HEADS)
def test_same_outputs(head, layers, length, make_pair):
    """Lengths: padded by the model, a multiple of the chunks, one chunk, less."""
    theirs, ours = make_pair(head, attn_layers=layers)
    ids = torch.randint(1, 60, (2, length))
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True, return_dict=True)
        actual = ours(ids, output_hidden_states=True)
    for name, value in expected.items():
        if name == "hidden_states":
            assert len(actual.hidden_states) == len(value)
            for state, wanted in zip(actual.hidden_states, value, strict=True):  # theirs keep the padding
                torch.testing.assert_close(state, wanted[:, :length], atol=2e-5, rtol=0)
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(actual[name], value, atol=2e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


VARIANTS = {
    "look-ahead": dict(head="ForMaskedLM", lsh_num_chunks_after=1, local_num_chunks_after=1),
    "no look-back": dict(head="ModelWithLMHead", lsh_num_chunks_before=0, local_num_chunks_before=0),
    "two chunks back": dict(head="ModelWithLMHead", lsh_num_chunks_before=2, local_num_chunks_before=3),
    "other chunk lengths": dict(head="ForMaskedLM", lsh_attn_chunk_length=6, local_attn_chunk_length=4),
    "two factors": dict(head="ForMaskedLM", num_buckets=[4, 6]),
    "many buckets": dict(head="ModelWithLMHead", num_buckets=32),
    "four rounds": dict(head="ForMaskedLM", num_hashes=4),
    "learned positions": dict(head="ForMaskedLM", axial_pos_embds=False),
    "chunked feed-forward": dict(head="ForMaskedLM", chunk_size_feed_forward=8),
    "gelu": dict(head="ForMaskedLM", hidden_act="gelu"),
    "heads wider than the stream": dict(head="ModelWithLMHead", attention_head_size=20),
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_same_outputs_of_other_configurations(fields, make_pair):
    theirs, ours = make_pair(**fields)
    ids = torch.randint(1, 60, (2, 48))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids, return_dict=True).logits, atol=3e-5, rtol=0)


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_same_outputs_with_padding(head, make_pair):
    theirs, ours = make_pair(head)
    ids = torch.randint(1, 60, (3, 45))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    mask[2, 40:] = 0
    with torch.no_grad():
        actual, expected = ours(ids, attention_mask=mask)[0], theirs(ids, attention_mask=mask)[0]
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], atol=2e-5, rtol=0)


LABELS = {
    "ModelWithLMHead": lambda ids: {"labels": ids},
    "ForMaskedLM": lambda ids: {"labels": ids.where(ids % 3 == 0, -100)},
    "ForSequenceClassification": lambda ids: {"labels": torch.tensor([1, 0])},
    "ForQuestionAnswering": lambda ids: {
        "start_positions": torch.tensor([3, 90]),
        "end_positions": torch.tensor([5, 99]),
    },
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("head", LABELS)
def test_same_loss_and_gradients(head, layers, make_pair):
    """Of a training step, through both reversible stacks. Theirs trains at the full length of its grid alone."""
    theirs, ours = make_pair(head, attn_layers=layers)
    ids = torch.randint(1, 60, (2, 128))
    mask = torch.ones_like(ids)
    if head != "ForQuestionAnswering":  # whose loss counts the logits of padding, which is nobody's business here
        mask[1, 100:] = 0
    labels = LABELS[head](ids.where(mask == 1, -100))
    losses = [model.train()(ids, attention_mask=mask, **labels, return_dict=True).loss for model in (ours, theirs)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:  # lm_head.bias
            continue
        gradient, expected = ours.get_parameter(name).grad, parameter.grad
        atol = 2e-5 * max(1, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("head", ["ModelWithLMHead", "ForMaskedLM"])
def test_the_bias_of_the_language_model_head_counts(head, make_pair):
    """transformers loads it and leaves it out."""
    theirs, ours = make_pair(head)
    ids = torch.randint(1, 60, (2, 32))
    with torch.no_grad():
        ours.lm_head.bias.normal_()
        expected = theirs(ids, return_dict=True).logits + ours.lm_head.bias
        torch.testing.assert_close(ours(ids).logits, expected, atol=2e-5, rtol=0)
    ours.train()(ids, labels=ids).loss.backward()
    assert ours.lm_head.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("length", [20, 45, 100])
def test_automatic_buckets_follow_each_length(length, make_pair):
    """transformers writes the number that suits its first text into the configuration, so it is asked once here."""
    theirs, ours = make_pair("ForMaskedLM", num_buckets=None)
    with torch.no_grad():
        for other in (120, 12):
            ours(torch.randint(1, 60, (1, other)))
        ids = torch.randint(1, 60, (2, length))
        torch.testing.assert_close(ours(ids).logits, theirs(ids, return_dict=True).logits, atol=2e-5, rtol=0)
    assert ours.config.num_buckets is None


def test_num_hashes_at_the_call(make_pair):
    theirs, ours = make_pair("ForMaskedLM")
    ids = torch.randint(1, 60, (2, 48))
    with torch.no_grad():
        expected = theirs(ids, num_hashes=4, return_dict=True).logits
        torch.testing.assert_close(ours(ids, num_hashes=4).logits, expected, atol=2e-5, rtol=0)
        assert (ours(ids).logits - expected).abs().max() > 1e-3


def test_ours_load_in_transformers(make_model, tmp_path, ids):
    ours = make_model("ForMaskedLM", lsh_semantics="original")
    ours.lm_head.bias.data.zero_()
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "longspan_reformer"
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "reformer"}))
    loaded: Any = transformers.ReformerForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = theirs.eval()(ids, return_dict=True).logits
        torch.testing.assert_close(ours(ids).logits, expected, atol=2e-5, rtol=0)


def test_old_files(make_model, tmp_path, ids):
    """They hold the numbers that masks had, and the bias of the head twice."""
    model = make_model("ModelWithLMHead")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for layer, kind in enumerate(model.config.attn_layers):
        names = ["mask_value_float16", "mask_value_float32"]
        names += [f"self_{name}" for name in names] if kind == "lsh" else []
        for name in names:
            state[f"reformer.encoder.layers.{layer}.attention.self_attention.{name}"] = torch.tensor(-1e5)
    state["lm_head.decoder.bias"] = state["lm_head.bias"].clone()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    loaded: Any = longspan.ReformerModelWithLMHead.from_pretrained(tmp_path, output_loading_info=True)
    again, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits)


def test_files_of_transformers_get_the_original_semantics(small, tmp_path):
    """Unless they say otherwise; fields that nothing uses are left out."""
    transformers.ReformerConfig(**small).save_pretrained(tmp_path)
    assert longspan.ReformerConfig.from_pretrained(tmp_path).lsh_semantics == "original"
    file = tmp_path / "config.json"
    assert longspan.ReformerConfig.from_json_file(file).lsh_semantics == "original"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"lsh_semantics": "chunked", "type_vocab_size": 2, "output_past": True}))
    assert longspan.ReformerConfig.from_pretrained(tmp_path).lsh_semantics == "chunked"
    assert longspan.ReformerConfig.from_pretrained(tmp_path, lsh_semantics="original").lsh_semantics == "original"
    assert longspan.ReformerConfig(**small).lsh_semantics == "chunked"
