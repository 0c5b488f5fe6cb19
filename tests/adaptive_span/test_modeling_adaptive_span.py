"""What whole models promise: padding, blocks, spans, heads, losses, precision, and errors that teach."""

from typing import Any

import pytest
import torch
import transformers

import longspan
from longspan.adaptive_span.encoder_adaptive_span import host_reaches

KINDS = {
    "static": {},
    "one span for a layer": {"span_mode": "static_layer"},
    "dynamic": {"span_mode": "dynamic"},
    "fixed": {"span_mode": "none"},
    "without zero cache": {"attend_to_zero_cache": False},
    "persistent": {"persistent_memory_size": 5},
    "not renormalised": {"span_renormalise": False},
    "epsilon": {"span_epsilon": 1e-2},
    "pre-norm, tables per layer": {"norm_position": "pre", "position_keys": "per_layer"},
    "dynamic without zero cache": {
        "span_mode": "dynamic",
        "attend_to_zero_cache": False,
        "persistent_memory_size": 3,
    },
}
ENCODERS = {
    "encoder": {"is_decoder": False},
    "dynamic encoder": {"is_decoder": False, "span_mode": "dynamic", "position_keys": "per_layer"},
    "encoder with vectors and epsilon": {"is_decoder": False, "persistent_memory_size": 3, "span_epsilon": 1e-2},
}
ALL_KINDS = KINDS | ENCODERS
HEADS = {
    "ForCausalLM": {"labels": lambda ids: ids},
    "ForMaskedLM": {"labels": lambda ids: ids},
    "ForSequenceClassification": {"labels": lambda ids: ids[:, 0] % 3},
    "ForTokenClassification": {"labels": lambda ids: ids % 3},
    "ForQuestionAnswering": {
        "start_positions": lambda ids: ids[:, 0] % 9,
        "end_positions": lambda ids: ids[:, 1] % 9 + 9,
    },
    "ForMultipleChoice": {"labels": lambda ids: ids[0, 0, :1] % 3},
}


def head_of(make_model, head, **fields):
    return make_model(head, is_decoder=head != "ForMaskedLM", num_labels=3, **fields)


def head_inputs(head, batch):
    """The batch and labels for it; three choices of one example."""
    inputs = {name: x[None] for name, x in batch.items()} if head == "ForMultipleChoice" else dict(batch)
    return inputs | {name: make(inputs["input_ids"]) for name, make in HEADS[head].items()}


def result(outputs):
    return outputs.start_logits + 2 * outputs.end_logits if "start_logits" in outputs else outputs.logits


def pad(ids, left, right, holes=0):
    """Ids between padding of some word, and with it after every third token; the mask, and where the tokens are."""
    keep = [left + i + (i // 3) * holes for i in range(ids.shape[1])]
    length = (keep[-1] + 1 if keep else left) + right
    padded, mask = torch.full((len(ids), length), 7), torch.zeros(len(ids), length, dtype=torch.long)
    padded[:, keep], mask[:, keep] = ids, 1
    return {"input_ids": padded, "attention_mask": mask}, keep


@torch.no_grad()
def in_blocks(model, ids, blocks, padding=(0, 0)):
    """Last hidden states over a stream, with memories."""
    mems, begin, states = None, 0, []
    for length in blocks:
        inputs, keep = pad(ids[:, begin : begin + length], *padding)
        out = model(**inputs, mems=mems, use_mems=True)
        states.append(out.last_hidden_state[:, keep])
        mems, begin = out.mems, begin + length
    return torch.cat(states, 1)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("padding", [(3, 0), (0, 4), (2, 5), (1, 2, 1)], ids=["left", "right", "both", "holes"])
def test_padding_changes_nothing(kind, padding, make_model, batch):
    model = make_model(**ALL_KINDS[kind])
    ids = batch["input_ids"]
    inputs, keep = pad(ids, *padding)
    with torch.no_grad():
        whole = model(ids, output_hidden_states=True, output_attentions=True, output_spans=True)
        padded = model(**inputs, output_hidden_states=True, output_attentions=True, output_spans=True)
    for ours, theirs in zip(padded.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(ours[:, keep], theirs)
    torch.testing.assert_close(padded.attentions[1][:, :, keep][..., keep], whole.attentions[1])
    torch.testing.assert_close(padded.span_loss, whole.span_loss) if whole.span_loss is not None else None
    if whole.spans[0].dim() == 3:
        torch.testing.assert_close(padded.spans[0][..., keep], whole.spans[0])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_rows_do_not_know_of_each_other(kind, make_model, batch):
    model = make_model(**ALL_KINDS[kind])
    with torch.no_grad():
        together = model(**batch).last_hidden_state
        for row, mask in enumerate(batch["attention_mask"].bool()):
            alone = model(batch["input_ids"][row, mask][None]).last_hidden_state
            torch.testing.assert_close(together[row, mask], alone[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [[7, 12], [1] * 19, [5, 1, 13]], ids=str)
def test_blocks_with_memories_equal_the_whole_text(kind, blocks, make_model, batch):
    model = make_model(**KINDS[kind])
    ids = batch["input_ids"]
    states = in_blocks(model, ids, blocks)
    torch.testing.assert_close(states, model(ids).last_hidden_state, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_within_a_stream(kind, make_model, batch):
    """It is never remembered, and rows that get fewer tokens than others go on where they stopped."""
    model = make_model(**KINDS[kind])
    ids = batch["input_ids"]
    states = in_blocks(model, ids, [6, 5, 8], padding=(2, 1))
    torch.testing.assert_close(states, model(ids).last_hidden_state, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        out = model(**batch, use_mems=True)
        later = model(ids[:, :4], mems=out.mems).last_hidden_state
        for row, mask in enumerate(batch["attention_mask"].bool()):
            text = torch.cat([ids[row, mask], ids[row, :4]])[None]
            alone = model(text).last_hidden_state[:, -4:]
            torch.testing.assert_close(later[row : row + 1], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_zeroed_memories_begin_a_text(kind, make_model, batch):
    model = make_model(**KINDS[kind])
    ids = batch["input_ids"]
    with torch.no_grad():
        mems = model(ids, use_mems=True).mems
        for memory in mems:
            memory[1] = 0
        after = model(ids, mems=mems).last_hidden_state
        fresh = model(ids).last_hidden_state
    torch.testing.assert_close(after[1], fresh[1], atol=2e-5, rtol=1e-4)
    assert (after[0] - fresh[0]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_itself_or_later_ones_in_attention(kind, make_model, batch):
    model = make_model(**KINDS[kind])
    with torch.no_grad():
        attentions = model(batch["input_ids"], output_attentions=True).attentions
        changed = batch["input_ids"].clone()
        changed[:, 11] = (changed[:, 11] + 1) % 50
        moved = model(batch["input_ids"]).last_hidden_state - model(changed).last_hidden_state
    for weights in attentions:
        assert weights.shape == (3, 4, 19, 19) and not weights.triu().any()
        assert (weights.sum(-1) < 1 + 1e-5).all()
    assert not moved[:, :11].any() and moved[:, 11].any()


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_see_both_sides(kind, make_model, batch):
    model = make_model(**ENCODERS[kind])
    changed = batch["input_ids"].clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    with torch.no_grad():
        moved = model(batch["input_ids"]).last_hidden_state - model(changed).last_hidden_state
        swapped = model(batch["input_ids"].flip(1)).last_hidden_state.flip(1)
    assert moved[:, 8].any() and moved[:, 10].any()
    assert (swapped - model(batch["input_ids"]).last_hidden_state).abs().max() > 1e-2  # the sides differ


@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_with_memories(kind, make_model, batch):
    model = make_model(**KINDS[kind])
    ids = batch["input_ids"]
    with torch.no_grad():
        whole = model(ids, output_attentions=True).attentions
        mems = model(ids[:, :10], use_mems=True).mems
        parts = model(ids[:, 10:], mems=mems, output_attentions=True).attentions
    for part, weights, memory in zip(parts, whole, mems, strict=True):
        assert part.shape == (3, 4, 9, memory.shape[1] + 9)
        torch.testing.assert_close(part[..., -19:], weights[:, :, 10:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("length", [0, 1, 2, 53])
def test_any_length_and_empty_batches(kind, length, make_model):
    model = make_model(**ALL_KINDS[kind])
    for rows in (2, 0):
        ids = torch.randint(3, 50, (rows, length))
        out = model(ids, use_mems=model.config.is_decoder, output_hidden_states=True)
        assert out.last_hidden_state.shape == (rows, length, 32) and out.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_text_of_padding_alone(kind, make_model, batch):
    model = make_model(**ALL_KINDS[kind]).train()
    batch["attention_mask"][1] = 0
    out = model(**batch)
    loss = out.last_hidden_state.sum() + (0 if out.auxiliary_loss is None else out.auxiliary_loss)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


class TestSpans:
    def test_in_tokens(self, make_model):
        model = make_model("ForCausalLM")
        fractions = torch.stack([layer.self_attn.span.span_fraction for layer in model.model.layers]).detach()
        torch.testing.assert_close(model.spans(), 24 * fractions)
        torch.testing.assert_close(model.spans(ramp=True), (24 * fractions + 4).clamp(max=24))
        assert not model.spans().requires_grad
        layer = make_model(span_mode="static_layer")
        assert layer.spans().shape == (2, 4) and (layer.spans() == layer.spans()[:, :1]).all()
        assert (make_model(span_mode="none").spans() == 24).all()
        encoder = make_model("ForMaskedLM", is_decoder=False)
        assert encoder.spans().shape == (2, 4)

    def test_dynamic_spans_depend_on_tokens(self, make_model, batch):
        model = make_model("ForCausalLM", span_mode="dynamic")
        with pytest.raises(ValueError, match="output_spans"):
            model.spans()
        spans = model.model(batch["input_ids"], output_spans=True).spans
        assert [span.shape for span in spans] == [(3, 4, 19)] * 2
        assert all((span > 0).all() and (span < 24).all() and span.std(-1).min() > 0.1 for span in spans)

    def test_loss(self, make_model, batch):
        """In training alone; the mean over heads (and tokens), summed over layers."""
        for mode in ("static", "static_layer", "dynamic"):
            model = make_model("ForCausalLM", span_mode=mode)
            plain = model(batch["input_ids"], labels=batch["input_ids"])
            spans = model.model(batch["input_ids"], output_spans=True).spans
            torch.testing.assert_close(plain.span_loss, 1e-3 * sum(span.mean() for span in spans))
            trained = model.train()(batch["input_ids"], labels=batch["input_ids"])
            torch.testing.assert_close(trained.loss, plain.loss + plain.span_loss)
            torch.testing.assert_close(trained.auxiliary_loss, plain.span_loss)
            assert plain.auxiliary_loss is None
        fixed = make_model("ForCausalLM", span_mode="none").train()
        assert fixed(batch["input_ids"], labels=batch["input_ids"]).span_loss is None

    @pytest.mark.parametrize("head", HEADS)
    def test_loss_of_every_head(self, head, make_model, batch):
        model = head_of(make_model, head)
        inputs = head_inputs(head, batch)
        plain = model(**inputs)
        trained = model.train()(**inputs)
        torch.testing.assert_close(trained.loss, plain.loss + 1e-3 * model.spans().mean(1).sum())

    def test_a_step_of_several_batches_has_the_span_loss_once(self, make_model, batch):
        """Labels that do not count included, as transformers' Trainer counts them."""
        model = make_model("ForCausalLM").train()
        ids = batch["input_ids"]
        labels = ids.where(batch["attention_mask"].bool(), -100)
        items = (labels[:, 1:] != -100).sum()
        whole = model(**batch, labels=labels).loss
        parts = [
            model(ids[row][None], attention_mask=batch["attention_mask"][row][None], labels=labels[row][None],
                  num_items_in_batch=items).loss
            for row in range(3)
        ]  # fmt: skip
        torch.testing.assert_close(sum(parts), whole)

    @pytest.mark.parametrize("mode", ["static", "static_layer"])
    def test_a_plain_loop_keeps_spans_in_bounds(self, mode, make_model, batch, tmp_path):
        model = make_model("ForCausalLM", span_mode=mode, span_loss_weight=1.0).train()
        optimizer = torch.optim.SGD(model.span_parameters(), lr=0.2)
        for _ in range(3):
            optimizer.zero_grad()
            model(batch["input_ids"], labels=batch["input_ids"]).loss.backward()
            optimizer.step()
        stored = torch.cat([*model.span_parameters()])
        assert stored.min() < 0 and (model.spans() >= 0).all()
        model.save_pretrained(tmp_path)
        assert torch.cat([*model.span_parameters()]).min() == 0
        again = longspan.AdaptiveSpanForCausalLM.from_pretrained(tmp_path)
        assert torch.cat([*again.span_parameters()]).min() == 0

    def test_evaluation_after_a_step_uses_spans_in_bounds(self, make_model, batch):
        model = make_model().train()
        model(batch["input_ids"])
        for parameter in model.span_parameters():
            parameter.data.fill_(-0.1)
        model.eval()(batch["input_ids"])
        assert all((parameter == 0).all() for parameter in model.span_parameters())

    def test_weights_that_are_only_loaded_are_used_as_they_are(self, make_model, batch):
        model = make_model()
        for parameter in model.span_parameters():
            parameter.data.fill_(-0.1)
        with torch.no_grad():
            below = model(batch["input_ids"]).last_hidden_state
            model.clamp_spans()
            within = model(batch["input_ids"]).last_hidden_state
        assert (below - within).abs().max() > 1e-3

    def test_spans_and_memories_of_what_a_model_would_be_on_a_device_that_cannot_tell(self, make_model):
        with torch.device("meta"):
            model = longspan.AdaptiveSpanModel(make_model().config)
        assert host_reaches(model.config, model.layers) is None
        assert model(torch.zeros(2, 5, dtype=torch.long, device="meta")).last_hidden_state.shape == (2, 5, 32)

    @pytest.mark.parametrize("mode", ["static", "static_layer", "dynamic"])
    def test_new_spans(self, mode):
        def spans_of(init):
            config = longspan.AdaptiveSpanConfig(
                vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4,
                max_span=100, span_ramp=10, span_mode=mode, span_init=init,
            )  # fmt: skip
            model = longspan.AdaptiveSpanModel(config)
            return model(torch.zeros(1, 3, dtype=torch.long), output_spans=True).spans[0].flatten().unique()

        torch.testing.assert_close(spans_of(0.5), torch.tensor([50.0]))
        torch.testing.assert_close(spans_of(0.0), torch.tensor([10.0 if mode == "dynamic" else 0.0]))
        if mode != "dynamic":
            torch.testing.assert_close(spans_of(1), torch.tensor([100.0]))


class TestMemories:
    def test_follow_the_longest_span(self, make_model, batch):
        """As the original trims them; the golden data have the table."""
        model = make_model(max_span=300, cache_slack=7, span_trim_multiple=16)
        for layer, fractions in zip(model.layers, ([0.1, 0, 0, 0], [0, 0.9, 0.2, 0]), strict=True):
            layer.self_attn.span.span_fraction.data = torch.tensor(fractions)
        mems = model(batch["input_ids"], use_mems=True).mems
        assert [memory.shape for memory in mems] == [(3, 300 - 256 + 7, 32), (3, 300 - 16 + 7, 32)]
        assert not any(memory.requires_grad for memory in mems)
        whole = make_model(max_span=300, adapt_cache=False)
        assert [memory.shape[1] for memory in whole(batch["input_ids"], use_mems=True).mems] == [300, 300]

    def test_without_zero_cache_grow_from_nothing(self, make_model, batch):
        model = make_model(attend_to_zero_cache=False)
        mems = model(batch["input_ids"][:, :5], use_mems=True).mems
        assert [memory.shape[1] for memory in mems] == [5, 5]
        mems = model(batch["input_ids"], mems=mems).mems
        assert [memory.shape[1] for memory in mems] == [24, 24]

    def test_gradients_reach_weights_through_what_is_remembered(self, make_model, batch):
        """Keys and values of remembered states are projected anew, by weights that learn from them."""
        model = make_model()
        ids = batch["input_ids"]
        mems = model(ids, use_mems=True).mems
        grads = []
        for memory in (mems, None):
            model.zero_grad()
            model(ids[:, :1], mems=memory).last_hidden_state.square().sum().backward()
            grads.append(model.layers[0].self_attn.v_proj.weight.grad)
        assert grads[0].abs().max() > 1e-3 and not grads[1].any()  # a first token sees zeros alone

    def test_next_ids_are_not_shifted(self, make_model, batch):
        model = make_model("ForCausalLM")
        ids = batch["input_ids"]
        inside = model(ids[:, :-1], next_ids=ids[:, 1:]).loss
        torch.testing.assert_close(inside, model(ids, labels=ids).loss)
        torch.testing.assert_close(model(ids[:, :-1], shift_labels=ids[:, 1:]).loss, inside)
        hidden = ids[:, 1:].where(torch.arange(18) < 6, -100)
        torch.testing.assert_close(
            model(ids[:, :6], next_ids=ids[:, 1:7]).loss, model(ids[:, :-1], next_ids=hidden).loss
        )


@pytest.mark.parametrize("head", HEADS)
def test_heads_with_embeddings_in_place_of_ids(head, make_model, batch):
    model = head_of(make_model, head)
    inputs = head_inputs(head, batch)
    embedded = dict(inputs)
    embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("input_ids"))
    with torch.no_grad():
        ours, theirs = model(**embedded), model(**inputs)
    torch.testing.assert_close(result(ours), result(theirs))
    assert ours.loss.isfinite()


@pytest.mark.parametrize("head", [*HEADS, "Model"])
def test_saved_and_found_again(head, make_model, batch, tmp_path):
    fields = {"adaptive_io_cutoffs": [10, 20]} if head == "ForCausalLM" else {}
    model = make_model("Model", is_decoder=False) if head == "Model" else head_of(make_model, head, **fields)
    model.save_pretrained(tmp_path)
    auto = transformers.AutoModel if head == "Model" else getattr(transformers, f"AutoModel{head}")
    again = auto.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.max_span == 24
    inputs = batch if head == "Model" else head_inputs(head, batch)
    with torch.no_grad():
        for ours, theirs in zip(again(**inputs).to_tuple(), model(**inputs).to_tuple(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_half_precision_keeps_spans_in_float32_when_loaded(make_model, tmp_path):
    make_model("ForCausalLM").save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        model = longspan.AdaptiveSpanForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert model.model.embed_tokens.weight.dtype == dtype
        assert all(parameter.dtype == torch.float32 for parameter in model.span_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_half_precision(kind, dtype, make_model, batch):
    """As good as such numbers can be: in bfloat16, three digits of attention in two layers."""
    model = make_model(**ALL_KINDS[kind])
    expected = model(**batch).last_hidden_state
    exact = model(**batch, use_mems=model.config.is_decoder)
    half = model.to(dtype)(**batch, use_mems=model.config.is_decoder)
    half.last_hidden_state.float().sum().backward()
    assert half.last_hidden_state.dtype == dtype
    if exact.mems is not None:
        assert half.mems[1].dtype == dtype
    mask = batch["attention_mask"].bool()
    difference = (half.last_hidden_state.float() - expected)[mask].abs().mean()
    assert difference < 0.1 * expected[mask].abs().mean()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["static", "dynamic", "persistent", "epsilon", "encoder"])
def test_autocast(kind, make_model, batch):
    model = make_model(**ALL_KINDS[kind]).train()
    with torch.autocast("cpu", torch.bfloat16):
        mems = model(batch["input_ids"], use_mems=True).mems if model.config.is_decoder else None
        out = model(batch["input_ids"], mems=mems, output_spans=True)
    out.last_hidden_state.float().sum().backward()
    assert all(span.dtype == torch.float32 for span in out.spans)
    expected = model.eval()(batch["input_ids"], mems=mems).last_hidden_state
    assert (out.last_hidden_state - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_activation_checkpointing_and_dropout(kind, make_model, batch):
    fields = ALL_KINDS[kind] | {"relu_dropout": 0.2, "attention_dropout": 0.3, "embedding_dropout": 0.1}
    grads = []
    for checkpointing in (False, True):
        model = make_model("ForTokenClassification", **fields).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        model(**batch, labels=batch["input_ids"] % 2).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("name", ["relu_dropout", "attention_dropout", "embedding_dropout"])
def test_dropout_is_drawn_in_training_alone(name, make_model, batch):
    model = make_model("ForCausalLM", **{name: 0.5})
    ids = batch["input_ids"]
    plain = model(ids).logits
    torch.testing.assert_close(model(ids).logits, plain, atol=0, rtol=0)
    model.train()
    torch.manual_seed(0)
    first, second = model(ids).logits, model(ids).logits
    torch.manual_seed(0)
    torch.testing.assert_close(model(ids).logits, first, atol=0, rtol=0)
    assert (first - second).abs().max() > 1e-2 and (first - plain).abs().max() > 1e-2


class TestWordsInClusters:
    def test_scores_are_log_probabilities(self, make_model, batch):
        model = make_model("ForCausalLM", adaptive_io_cutoffs=(10, 30), adaptive_io_factor=2)
        out = model(batch["input_ids"], labels=batch["input_ids"])
        torch.testing.assert_close(out.logits.exp().sum(-1), torch.ones(3, 19))
        expected = torch.nn.functional.nll_loss(out.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        torch.testing.assert_close(out.loss, expected)
        assert model.train()(batch["input_ids"], labels=batch["input_ids"]).logits is None

    def test_tied_clusters(self, make_model, tmp_path):
        model = make_model("ForCausalLM", adaptive_io_cutoffs=[10, 30], tie_word_embeddings=True)
        for ours, words in zip(model.lm_head.clusters, model.model.embed_tokens.clusters, strict=True):
            assert ours.weight is words.weight and ours.projection is words.projection
        model.save_pretrained(tmp_path)
        again = longspan.AdaptiveSpanForCausalLM.from_pretrained(tmp_path)
        words: Any = again.model.embed_tokens
        assert again.lm_head.clusters[1].weight is words.clusters[1].weight
        torch.testing.assert_close(again.lm_head.clusters[1].bias, model.lm_head.clusters[1].bias)


def test_tied_and_resized_words(make_model, batch):
    model = make_model("ForCausalLM", tie_word_embeddings=True)
    assert model.lm_head.decoder.weight is model.model.embed_tokens.weight
    model.resize_token_embeddings(60)
    assert model.lm_head.decoder.weight is model.model.embed_tokens.weight
    assert model(batch["input_ids"]).logits.shape == (3, 19, 60)


def test_loss_in_pieces(make_model, batch):
    whole, pieces = (make_model("ForCausalLM", chunk_size_lm_head=rows).train() for rows in (0, 5))
    outputs = [model(batch["input_ids"], labels=batch["input_ids"]) for model in (whole, pieces)]
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    assert outputs[1].logits is None


def test_new_weights_are_as_the_original_makes_them():
    config = longspan.AdaptiveSpanConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=100,
        max_span=500, persistent_memory_size=0,
    )  # fmt: skip
    model = longspan.AdaptiveSpanForCausalLM(config)
    parameters = dict(model.model.named_parameters())
    for name in ("embed_tokens.weight", "key_position_embeddings"):
        assert abs(parameters[name].std().item() - 1) < 0.05
    first = next(model.model.layers.children())
    for module, inputs in ((first.self_attn.q_proj, 64), (first.mlp.down_proj, 100)):
        bound = inputs**-0.5
        assert 0.9 * bound < module.weight.abs().max() <= bound
    layer = longspan.AdaptiveSpanModel(
        longspan.AdaptiveSpanConfig(**config.to_diff_dict() | {"persistent_memory_size": 50})
    ).layers[0]
    assert layer.mlp is None and layer.ffn_norm is None
    vectors = dict(layer.self_attn.named_parameters())
    assert abs(vectors["persistent_key"].std().item() * 16**0.5 - 1) < 0.1
    assert abs(vectors["persistent_value"].std().item() * 50**0.5 - 1) < 0.1


class TestErrors:
    def test_inputs(self, make_model, batch):
        model = make_model()
        ids = batch["input_ids"]
        with pytest.raises(ValueError, match="vocab_size"):
            model(torch.tensor([[50]]))
        with pytest.raises(ValueError, match="inputs_embeds must have hidden_size = 32"):
            model(inputs_embeds=torch.zeros(1, 3, 31))
        with pytest.raises(ValueError, match="attention_mask must be"):
            model(ids, attention_mask=batch["attention_mask"][:, :5])
        with pytest.raises(ValueError, match="exactly one"):
            model()
        with pytest.raises(ValueError, match="mems must have num_hidden_layers = 2"):
            model(ids, mems=[torch.zeros(3, 4, 32)])
        with pytest.raises(ValueError, match=r"mems\[1\] must be .* = \[3, any, 32\], got \[2, 4, 32\]"):
            model(ids, mems=[torch.zeros(3, 4, 32), torch.zeros(2, 4, 32)])
        with pytest.raises(ValueError, match=r"mems\[0\] must be .* got NoneType"):
            model(ids, mems=[None, None])
        with pytest.raises(ValueError, match="two ways to carry the past"):
            model(ids, use_mems=True, use_cache=True)
        with pytest.raises(ValueError, match="is_decoder is False"):
            make_model(is_decoder=False)(ids, use_mems=True)
        with pytest.raises(ValueError, match="after a cache"):
            model(ids, past_key_values=model(ids, use_cache=True).past_key_values, output_attentions=True)
        with pytest.raises(ValueError, match=r"model.eval\(\)"):
            model.train()(ids, use_cache=True)

    @pytest.mark.parametrize("fields", [{}, {"adaptive_io_cutoffs": [10]}, {"chunk_size_lm_head": 4}], ids=str)
    def test_labels(self, fields, make_model, batch):
        model = make_model("ForCausalLM", **fields)
        ids = batch["input_ids"]
        with pytest.raises(ValueError, match=r"labels must be integers \[batch, tokens\] = \[3, 19\], got .*\[3, 5\]"):
            model(ids, labels=ids[:, :5])
        with pytest.raises(ValueError, match=r"next_ids must lie in \[0, 50\)"):
            model(ids, next_ids=ids + 49)
        with pytest.raises(ValueError, match="labels must be integers"):
            model(ids, labels=ids.float())

    def test_a_model_that_has_diverged(self, make_model, batch):
        model = make_model()
        model.layers[1].self_attn.span.span_fraction.data[2] = torch.nan
        with pytest.raises(ValueError, match=r"layers\[1\].self_attn.span.span_fraction.*diverged"):
            model(batch["input_ids"])

    def test_heads_that_do_not_fit(self, make_model):
        with pytest.raises(ValueError, match="is_decoder = True"):
            make_model("ForCausalLM", is_decoder=False)
        with pytest.raises(ValueError, match="is_decoder = False"):
            make_model("ForMaskedLM")
