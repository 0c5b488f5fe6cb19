"""What users meet: padding that changes nothing, defaults, clear errors, precision, saving, training."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import longspan

AUTO = {
    "Model": AutoModel,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForMultipleChoice": AutoModelForMultipleChoice,
}


def result(outputs):
    for name in ("logits", "start_logits", "last_hidden_state"):
        if name in outputs:
            return outputs[name]
    raise AssertionError(outputs.keys())


def choices(head, inputs):
    return {name: tensor[None] for name, tensor in inputs.items()} if head == "ForMultipleChoice" else inputs


def pad(inputs, left, right, id_at_padding=1):
    """The same texts with padding around them."""
    values = {"input_ids": id_at_padding, "token_type_ids": 0, "attention_mask": 0, "global_attention_mask": 0}
    return {name: torch.nn.functional.pad(tensor, (left, right), value=values[name]) for name, tensor in inputs.items()}


@pytest.mark.parametrize("causal", [False, True], ids=["both_sides", "causal"])
@pytest.mark.parametrize("globals_given", [True, False], ids=["globals", "defaults"])
@pytest.mark.parametrize("head", AUTO)
def test_padding_changes_nothing(head, globals_given, causal, make_model):
    torch.manual_seed(0)
    model = make_model(head, attention_dilation=[1, [1, 2, 1, 3]], is_decoder=causal)
    ids = torch.randint(3, 100, (2, 30))
    ids[:, [8, 9, 29]] = 2
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if globals_given:
        inputs["global_attention_mask"] = torch.zeros_like(ids)
        inputs["global_attention_mask"][:, [0, 17]] = 1
    with torch.no_grad():
        expected = result(model(**choices(head, inputs)))
        for left, right in ((0, 13), (13, 0), (5, 6)):
            actual = result(model(**choices(head, pad(inputs, left, right))))
            if actual.shape[1:2] == (43,) or actual.shape[1:2] == (41,):
                actual = actual[:, left : left + 30]
            torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)


def test_holes_inside_are_seen_by_nobody(make_model, batch):
    model = make_model()
    batch["attention_mask"][0, 20:25] = 0
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][0, 20:25] = 77
    seen = batch["attention_mask"].bool()
    with torch.no_grad():
        actual, expected = (model(**inputs).last_hidden_state[seen] for inputs in (other, batch))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("head", AUTO)
def test_embeddings_in_place_of_ids(head, make_model, batch):
    model = make_model(head)
    inputs = choices(head, batch)
    embedded = dict(inputs)
    embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("input_ids"))
    seen = batch["attention_mask"].bool()
    with torch.no_grad():
        actual, expected = result(model(**embedded)), result(model(**inputs))
        result(model(inputs_embeds=embedded["inputs_embeds"]))  # no mask, no global tokens: still runs
    if actual.shape[:2] == seen.shape:
        actual, expected = actual[seen], expected[seen]
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)


def test_causal_models_do_not_see_the_future(make_model):
    torch.manual_seed(0)
    model = make_model(is_decoder=True, attention_window=[3, 4])
    ids = torch.randint(3, 100, (1, 40))
    is_global = torch.zeros_like(ids)
    is_global[:, [4, 25]] = 1
    changed = ids.clone()
    changed[0, 25] = 99 - ids[0, 25]
    with torch.no_grad():
        before, after = (model(x, global_attention_mask=is_global).last_hidden_state for x in (ids, changed))
    torch.testing.assert_close(after[:, :25], before[:, :25], atol=0, rtol=0)
    assert (after[:, 39] - before[:, 39]).abs().max() > 1e-3  # 25 is global: even the last token sees it


def test_a_global_token_reaches_the_whole_text(make_model):
    torch.manual_seed(0)
    model = make_model()
    ids = torch.randint(3, 100, (1, 100))
    changed = ids.clone()
    changed[0, 0] = 99 - ids[0, 0]
    is_global = torch.zeros_like(ids)
    with torch.no_grad():
        for value, reaches in ((0, False), (1, True), (2, True), (-1, False)):
            is_global[0, 0] = value
            before, after = (model(x, global_attention_mask=is_global).last_hidden_state for x in (ids, changed))
            assert ((after - before)[0, 99].abs().max() > 1e-4) == reaches


def test_numbers_of_global_tokens_may_differ(make_model, batch):
    model = make_model()
    with torch.no_grad():
        together = model(**batch).last_hidden_state
        for row in range(3):
            alone = model(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).last_hidden_state[0]
            torch.testing.assert_close(together[row], alone, atol=2e-6, rtol=1e-5)


class TestQuestions:
    """Which tokens are global where a question-answering model is told nothing."""

    @pytest.fixture
    def globals_used(self, make_model, monkeypatch):
        model = make_model("ForQuestionAnswering")
        seen = {}
        forward = model.longformer.forward
        monkeypatch.setattr(model.longformer, "forward", lambda **inputs: seen.update(inputs) or forward(**inputs))

        def run(**inputs):
            with torch.no_grad():
                model(**{name: torch.tensor([value]) for name, value in inputs.items()})
            mask = seen.pop("global_attention_mask", None)
            seen.clear()
            return None if mask is None else mask[0].int().tolist()

        return run

    def test_token_types_where_they_tell_two_texts_apart(self, globals_used):
        ids = [5, 6, 7, 8, 9, 9, 1]
        types, mask = [0, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0]
        assert globals_used(input_ids=ids, token_type_ids=types, attention_mask=mask) == [1, 1, 1, 0, 0, 0, 0]

    def test_else_everything_before_the_first_separator(self, globals_used):
        assert globals_used(input_ids=[0, 6, 2, 2, 9, 9, 2]) == [1, 1, 0, 0, 0, 0, 0]
        assert globals_used(input_ids=[0, 6, 2, 2, 9, 9, 2], token_type_ids=[0] * 7) == [1, 1, 0, 0, 0, 0, 0]
        assert globals_used(input_ids=[0, 6, 2, 9, 2, 9, 2, 2]) == [1, 1, 0, 0, 0, 0, 0, 0]

    def test_never_the_whole_of_a_single_text(self, globals_used):
        assert globals_used(input_ids=[0, 6, 9, 9, 9, 9, 2]) == [1, 0, 0, 0, 0, 0, 0]
        assert globals_used(input_ids=[0, 6, 9, 9, 9, 9, 9]) == [1, 0, 0, 0, 0, 0, 0]

    def test_what_the_caller_says_comes_first(self, globals_used):
        mask = [0, 0, 0, 1, 0, 0, 0]
        assert globals_used(input_ids=[0, 6, 2, 2, 9, 9, 2], global_attention_mask=mask) == mask


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds, got neither"),
        ({"inputs_embeds": torch.zeros(3, 50, 32)}, "got both"),
        ({"input_ids": torch.full((3, 50), 100)}, r"input_ids must lie in \[0, 100\).*got 100"),
        ({"input_ids": torch.full((3, 50), -1)}, "got -1"),
        ({"input_ids": torch.zeros(3, 50)}, "input_ids must be integers"),
        ({"input_ids": torch.zeros(50, dtype=torch.long)}, r"input_ids must be integers \[batch, tokens\]"),
        (
            {"attention_mask": torch.ones(3, 50, 50)},
            r"attention_mask must be .* = \[3, 50\], got \[3, 50, 50\]: one value",
        ),
        ({"attention_mask": torch.ones(3, 49)}, r"attention_mask must be .* \[3, 50\], got \[3, 49\]"),
        ({"attention_mask": torch.full((3, 50), 2)}, "attention_mask must hold only 1 .* and 0"),
        ({"global_attention_mask": torch.ones(2, 50)}, r"global_attention_mask must be .* got \[2, 50\]"),
        ({"token_type_ids": torch.full((3, 50), 2)}, r"token_type_ids must lie in \[0, 2\)"),
        ({"position_ids": torch.full((3, 50), 130)}, "position table has the rows 0 to 129"),
        ({"position_ids": torch.zeros(3, 9, dtype=torch.long)}, "position_ids must be"),
    ],
)
@pytest.mark.parametrize("head", ["Model", "ForQuestionAnswering"])
def test_inputs_that_do_not_fit_are_refused_by_name(head, change, message, make_model, batch):
    with pytest.raises(ValueError, match=message):
        make_model(head)(**batch | change)


def test_a_text_that_is_too_long_is_told_the_way_out(make_model):
    model = make_model()
    with torch.no_grad():
        assert model(torch.full((1, 128), 5)).last_hidden_state.shape == (1, 128, 32)
        with pytest.raises(
            ValueError, match=r"texts of up to 128 tokens.*longspan\.convert_to_long.*windows.*pipeline"
        ):
            model(torch.full((1, 129), 5))
        with pytest.raises(ValueError, match="up to 128 tokens"):
            model(inputs_embeds=torch.zeros(1, 129, 32))
        padded = torch.full((1, 300), 1)
        padded[0, -100:] = 5
        assert model(padded, (padded != 1).long()).last_hidden_state.shape == (1, 300, 32)  # padding takes no position


def test_unknown_arguments_are_refused(make_model, batch):
    with pytest.raises(TypeError, match="attention_maks"):
        make_model("ForMaskedLM")(batch["input_ids"], attention_maks=batch["attention_mask"])


def test_choices_must_agree_in_number(make_model, batch):
    inputs = {name: tensor[None] for name, tensor in batch.items()}
    model = make_model("ForMultipleChoice")
    with pytest.raises(ValueError, match=r"input_ids must be \[batch, choices, tokens\], got \[3, 50\]"):
        model(**batch)
    with pytest.raises(ValueError, match=r"same number of choices, got \[2, 3\]"):
        model(**inputs | {"attention_mask": inputs["attention_mask"][:, :2]})


def test_a_bound_on_global_tokens(make_model, batch):
    with pytest.raises(ValueError, match="marks 5 tokens of one example, max_global_tokens = 4"):
        make_model(max_global_tokens=4)(**batch)
    with torch.no_grad():
        bounded, free = (make_model(max_global_tokens=bound)(**batch) for bound in (5, None))
    torch.testing.assert_close(bounded.last_hidden_state, free.last_hidden_state)


@pytest.mark.parametrize("head", AUTO)
def test_saved_and_loaded_by_auto_classes(head, make_model, batch, tmp_path):
    model, inputs = make_model(head, attention_dilation=[1, [1, 2, 1, 3]]), choices(head, batch)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AUTO[head].from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(result(loaded(**inputs)), result(model(**inputs)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", AUTO)
def test_half_precision(head, dtype, make_model, batch):
    model, inputs = make_model(head), choices(head, batch)
    with torch.no_grad():
        expected = result(model(**inputs))
        actual = result(model.to(dtype)(**inputs))
    assert actual.dtype == dtype and actual.isfinite().all()
    scale = expected.abs().max()
    torch.testing.assert_close(
        actual.float(), expected, atol=(0.05 if dtype == torch.bfloat16 else 0.01) * scale, rtol=0
    )


def test_half_precision_trains(make_model, batch):
    for dtype in (torch.bfloat16, torch.float16):
        model = make_model("ForTokenClassification", attention_probs_dropout_prob=0.1).to(dtype).train()
        model(**batch, labels=batch["input_ids"] % 2).loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast_trains(make_model, batch):
    model = make_model("ForTokenClassification").train()
    labels = batch["input_ids"] % 2
    exact = model(**batch, labels=labels).loss
    exact.backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, exact, atol=0.02, rtol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        close = torch.nn.functional.cosine_similarity(parameter.grad.flatten(), grads[name].flatten(), dim=0)
        assert close > 0.98 or grads[name].abs().max() < 1e-4, name


@pytest.mark.parametrize("any_global", [True, False])
@pytest.mark.parametrize("head", list(AUTO)[1:])
def test_no_parameter_is_without_gradient(head, any_global, make_model, batch):
    model = make_model(head, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train()
    if not any_global:
        batch["global_attention_mask"].zero_()
    outputs = model(**choices(head, batch))
    (outputs.logits if "logits" in outputs else outputs.start_logits + outputs.end_logits).float().pow(
        2
    ).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant, make_model, batch):
    model = make_model("ForTokenClassification", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        torch.manual_seed(5)
        model(**batch, labels=batch["input_ids"] % 2).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_feed_forward_in_chunks(make_model, batch, monkeypatch):
    expected = make_model()(**batch).last_hidden_state
    torch.testing.assert_close(make_model(chunk_size_feed_forward=7)(**batch).last_hidden_state, expected)
    monkeypatch.setattr("longspan.longformer.modeling_longformer.FEED_FORWARD_ROWS", 11)
    with torch.no_grad():
        torch.testing.assert_close(make_model()(**batch).last_hidden_state, expected)


def test_tuples_keep_their_order(make_model, batch):
    model = make_model()
    with torch.no_grad():
        named = model(**batch, output_hidden_states=True, output_attentions=True)
        plain = model(**batch, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert list(named) == ["last_hidden_state", "pooler_output", "hidden_states", "attentions", "global_attentions"]
    torch.testing.assert_close(plain[1], named.pooler_output)
    assert len(plain) == 5 and len(plain[2]) == 3


def test_language_model_head_is_tied(make_model):
    model = longspan.LongformerForMaskedLM(make_model().config)
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    model.resize_token_embeddings(120)
    assert model(torch.full((1, 4), 119)).logits.shape == (1, 4, 120)


def test_new_weights(small):
    torch.manual_seed(0)
    model = longspan.LongformerForMaskedLM(longspan.LongformerConfig(**small | {"hidden_size": 128}))
    attention = "longformer.encoder.layer.0.attention.self"
    weights = dict(model.named_parameters())
    for name in (f"{attention}.query", f"{attention}.query_global", "lm_head.dense"):
        assert weights[f"{name}.weight"].std().item() == pytest.approx(0.02, rel=0.05)
        assert not weights[f"{name}.bias"].any()
    assert not torch.equal(weights[f"{attention}.query.weight"], weights[f"{attention}.query_global.weight"])
    for table in ("word", "position"):
        rows = weights[f"longformer.embeddings.{table}_embeddings.weight"]
        assert not rows[1].any() and rows[2:].std().item() == pytest.approx(0.02, rel=0.05)
    norm = "longformer.embeddings.LayerNorm"
    assert bool((weights[f"{norm}.weight"] == 1).all()) and not weights[f"{norm}.bias"].any()


def test_empty_batches(make_model):
    with torch.no_grad():
        for shape in ((0, 5), (2, 1)):
            ids = torch.full(shape, 5)
            is_global = torch.ones_like(ids)
            out = make_model()(ids, global_attention_mask=is_global).last_hidden_state
            assert out.shape == (*shape, 32) and out.isfinite().all()
