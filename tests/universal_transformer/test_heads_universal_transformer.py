"""Heads: losses with the ponder cost, where texts are read, parts of models, and a task learnt."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    Trainer,
    TrainingArguments,
)

import longspan
from tests.universal_transformer.small_models import SAVING, SMALL, act


def test_loss_is_task_and_ponder_cost(make_model, ids, mask):
    for options, count in ((act(loss_weight=0.1), mask != 0), (act(loss_weight=0.1, skip_padding=False), mask >= 0)):
        model = make_model("ForTokenClassification", num_labels=3, **options)
        labels = torch.randint(3, ids.shape)
        outputs = model(ids, attention_mask=mask, labels=labels)
        expected = 0.1 * (outputs.n_updates + outputs.remainders)[count].mean()
        torch.testing.assert_close(outputs.ponder_loss, expected)
        task = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(outputs.loss - outputs.ponder_loss, task)
    assert make_model("ForTokenClassification", num_labels=3)(ids, labels=labels).ponder_loss is None


@pytest.mark.parametrize(
    ("name", "form"), [("ForTokenClassification", "encoder"), ("ForConditionalGeneration", "both")]
)
def test_trainer_gathers_logits_alone(name, form, make_model, ids, tmp_path):
    """Not the ponder cost and the numbers of steps beside them."""
    model = make_model(name, form, num_labels=50, **act())
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=2, report_to=[], use_cpu=True)
    predictions = Trainer(model, arguments, eval_dataset=rows).predict(rows)
    assert predictions.predictions.shape == (3, 11, 50)
    assert predictions.metrics["test_loss"] > 0  # pyright: ignore


def test_encoder_and_decoder_ponder_together(make_model, ids, mask):
    """Padding behind the labels is not pondered over."""
    model = make_model("ForConditionalGeneration", "both", **act(loss_weight=0.1))
    labels = torch.randint(2, 50, (3, 7), generator=torch.Generator().manual_seed(3))
    labels[1, 4:] = -100
    outputs = model(ids, attention_mask=mask, labels=labels)
    encoder = (outputs.encoder_n_updates + outputs.encoder_remainders)[mask != 0].mean()
    decoder = (outputs.decoder_n_updates + outputs.decoder_remainders)[labels != -100].mean()
    torch.testing.assert_close(outputs.ponder_loss, 0.1 * (encoder + decoder))
    assert (outputs.decoder_n_updates[labels == -100] == 0).all()
    task = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(outputs.loss, task + outputs.ponder_loss)
    alone = model(ids[1:2, :8], labels=labels[1:2, :4])
    torch.testing.assert_close(alone.logits[0], outputs.logits[1, :4], atol=1e-5, rtol=0)


def test_gradient_accumulation_adds_the_ponder_cost_once(make_model, ids):
    model = make_model("ForConditionalGeneration", "both", **act(loss_weight=0.1))
    labels = torch.randint(2, 50, (3, 7))
    labels[0, 3:] = -100
    total = (labels != -100).sum()
    parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=total) for i in range(3)]
    shares = [(labels[i] != -100).sum() / total for i in range(3)]
    tasks = sum(part.loss - part.ponder_loss * share for part, share in zip(parts, shares, strict=True))
    whole = model(ids, labels=labels)
    torch.testing.assert_close(tasks, whole.loss - whole.ponder_loss)


@pytest.mark.parametrize("reading", ["first", "last", "mean"])
@pytest.mark.parametrize("name", ["ForSequenceClassification", "ForMultipleChoice"])
def test_where_texts_are_read(name, reading, make_model, ids, mask):
    model = make_model(name, text_reading=reading, num_labels=3)
    hidden = model.universal_transformer(ids, attention_mask=mask).last_hidden_state
    texts = torch.stack([
        {"first": row[0], "last": row[-1], "mean": row.mean(0)}[reading]
        for row in (states[tokens] for states, tokens in zip(hidden, mask != 0, strict=True))
    ])  # fmt: skip
    choices = name == "ForMultipleChoice"
    logits = model(ids[:, None] if choices else ids, attention_mask=mask[:, None] if choices else mask).logits
    torch.testing.assert_close(logits, model.classifier(texts).view_as(logits))


@pytest.mark.parametrize(
    ("name", "form", "auto"),
    [
        ("ForConditionalGeneration", "both", AutoModelForSeq2SeqLM),
        ("ForCausalLM", "decoder", AutoModelForCausalLM),
        ("EncoderModel", "encoder", AutoModelForTextEncoding),
        ("Model", "both", AutoModel),
    ],
)
def test_saved_and_loaded(name, form, auto, make_model, ids, tmp_path):
    model = make_model(name, form, **act(**SAVING, packed=True))
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is type(model)
    inputs = {"decoder_input_ids": ids} if form == "both" else {}
    with torch.no_grad():
        assert torch.equal(again(ids, **inputs)[0], model(ids, **inputs)[0])


def test_heads_take_the_part_they_need(make_model, ids, tmp_path):
    """Of a configuration or a checkpoint with both parts."""
    whole = make_model("ForConditionalGeneration", "both")
    whole.save_pretrained(tmp_path)
    encoder = longspan.UniversalTransformerEncoderModel.from_pretrained(tmp_path)
    assert not encoder.config.is_encoder_decoder and not hasattr(encoder, "decoder")
    expected = whole.get_encoder()(ids).last_hidden_state
    torch.testing.assert_close(encoder(ids).last_hidden_state, expected)
    for name, part in [
        ("ForMaskedLM", "encoder"),
        ("ForCausalLM", "decoder"),
        ("ForSequenceClassification", "encoder"),
    ]:
        model = make_model(name, "both")
        assert hasattr(model.universal_transformer, part)
        assert model.config.is_decoder == (part == "decoder") and not model.config.is_encoder_decoder
    for name, form, message in [
        ("ForMaskedLM", "decoder", "masked language model needs is_decoder = False"),
        ("ForCausalLM", "encoder", "causal language model needs is_decoder = True"),
        ("ForConditionalGeneration", "encoder", "needs is_encoder_decoder = True"),
        ("EncoderModel", "decoder", "needs is_decoder = False"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_model(name, form)


def test_wrong_labels_are_named(make_model, ids):
    model = make_model("ForConditionalGeneration", "both")
    for wrong in (50, -5):
        labels = ids.clone()
        labels[0, 1] = wrong
        with pytest.raises(ValueError, match=rf"labels must lie in .* got {wrong}"):
            model(ids, labels=labels)


def test_resized_vocabulary(make_model, ids):
    model = make_model("ForConditionalGeneration", "both")
    before = model(ids, labels=ids).logits
    model.resize_token_embeddings(60)
    after = model(ids, labels=ids).logits
    assert after.shape[-1] == 60 and model.config.vocab_size == 60
    torch.testing.assert_close(after[..., :50], before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_it_learns_to_copy():
    """Texts of 4 to 8 tokens, in a few hundred steps."""
    torch.manual_seed(0)
    fields = SMALL | {"vocab_size": 12, "hidden_size": 32, "intermediate_size": 64, "position_offset": "random"}
    config = longspan.UniversalTransformerConfig(**fields, max_position_offset=16, **act(**SAVING, packed=True))
    model = longspan.UniversalTransformerForConditionalGeneration(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        text = torch.randint(2, 12, (32, int(torch.randint(4, 9, ()))))
        optimizer.zero_grad()
        loss = model(text, labels=text).loss
        loss.backward()
        optimizer.step()
    model.eval()
    text = torch.randint(2, 12, (32, 8))
    with torch.no_grad():
        right = (model(text, labels=text).logits.argmax(-1) == text).float().mean()
    assert right > 0.9, right
