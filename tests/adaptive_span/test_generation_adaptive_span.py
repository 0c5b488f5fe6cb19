"""What generation promises: steps equal the full pass, padding and company change nothing, memory follows the spans."""

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import DynamicCache

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM, AdaptiveSpanModel
from longspan.adaptive_span.cache_adaptive_span import SpanRings
from longspan.adaptive_span.generation_adaptive_span import new_cache

FORMS = {
    "as published": {},
    "no zero cache": dict(attend_to_zero_cache=False),
    "a span for each layer": dict(span_mode="static_layer"),
    "dynamic": dict(span_mode="dynamic"),
    "dynamic, no zero cache": dict(span_mode="dynamic", attend_to_zero_cache=False),
    "no span": dict(span_mode="none"),
    "all attention": dict(persistent_memory_size=5),
    "as fairseq": dict(span_renormalise=False, span_trim_multiple=4),
    "with epsilon": dict(span_epsilon=0.1, span_trim_multiple=4),
    "norms before, tables per layer": dict(norm_position="pre", position_keys="per_layer"),
    "adaptive io": dict(adaptive_io_cutoffs=[10, 30], adaptive_io_factor=2),
}


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    fields = dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_span=64,
        span_ramp=8,
    )
    model = AdaptiveSpanForCausalLM(AdaptiveSpanConfig(**(fields | changes))).eval()
    spans = torch.tensor([0.0, 0.1, 0.45, 1.0])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(4)  # attention that is not flat
            if model.config.span_mode.startswith("static"):
                fraction = layer.self_attn.span.span_fraction
                fraction.copy_(spans[-len(fraction) :].flip(0))
            elif model.config.span_mode == "dynamic":
                layer.self_attn.span.weight.normal_()
    return model


def prompts(batch=3, length=40, seed=1):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


def stepwise(model, ids, split):
    cache, begin, logits = None, 0, []
    for size in split:
        with torch.no_grad():
            out = model(ids[:, begin : begin + size], past_key_values=cache, use_cache=True)
        cache, begin = out.past_key_values, begin + size
        logits.append(out.logits)
    return torch.cat(logits, 1)


def greedy(model, ids, mask=None, steps=12, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    options = dict(pad_token_id=0, max_new_tokens=steps, do_sample=False) | options
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]


@pytest.mark.parametrize("form", FORMS)
def test_steps_equal_the_full_pass(form):
    model, ids = make_model(**FORMS[form]), prompts()
    with torch.no_grad():
        whole = model(ids).logits
    for split in ([1] * 40, [30, 1, 1, 8], [5, 25, 10]):
        assert_close(stepwise(model, ids, split), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_padded_rows_continue_as_alone(form):
    """Left padding, and holes; with the cache and without. (Behind a prompt generate() itself takes none.)"""
    model, ids = make_model(**FORMS[form]), prompts(4, 25)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    mask[2, :20] = 0
    mask[3, [0, 1, 5, 11, 12]] = 0
    together = greedy(model, ids, mask)
    assert len(together.unique()) >= 4  # not one word over and over
    for row in range(4):
        alone = greedy(model, ids[row : row + 1, mask[row].bool()])
        assert torch.equal(alone[0], together[row]), row
    assert torch.equal(greedy(model, ids, mask, use_cache=False), together)


@pytest.mark.parametrize("form", ["as published", "no zero cache", "dynamic"])
def test_padding_behind_a_prompt(form):
    """Fed to the model itself, it changes nothing about what follows."""
    model, ids = make_model(**FORMS[form]), prompts(2, 30)
    mask = torch.ones_like(ids)
    mask[1, 13:20] = 0
    with torch.no_grad():
        cache = model(ids[:, :20], attention_mask=mask[:, :20], use_cache=True).past_key_values
        parts = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(20, 30)]
        alone = model(torch.cat([ids[1:, :13], ids[1:, 20:]], 1)).logits
    assert_close(torch.cat(parts, 1)[1:], alone[:, 13:], atol=1e-5, rtol=1e-5)


def test_other_rows_change_nothing():
    model, ids = make_model(), prompts()
    logits = stepwise(model, ids, [11] + [1] * 29)
    other = ids.clone()
    other[0] = prompts(1, 40, seed=8)[0]
    changed = stepwise(model, other, [11] + [1] * 29)
    assert_close(changed[1:], logits[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed[0], logits[0], atol=1e-2)


@pytest.mark.parametrize("form", ["as published", "no zero cache", "dynamic"])
def test_beams(form):
    """Beams move rows of the cache about; the text they find is the one of full passes."""
    model, ids = make_model(**FORMS[form]), prompts(2, 20)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    with_cache = greedy(model, ids, mask, num_beams=4, num_return_sequences=2)
    assert torch.equal(with_cache, greedy(model, ids, mask, num_beams=4, num_return_sequences=2, use_cache=False))
    alone = greedy(model, ids[1:, 7:], num_beams=4, num_return_sequences=2)
    assert torch.equal(with_cache[2:], alone)


def test_samples():
    model, ids = make_model(), prompts(2, 20)
    draws = []
    for use_cache in (True, False):
        transformers.set_seed(3)
        options = dict(do_sample=True, top_k=10, num_return_sequences=3, use_cache=use_cache)
        draws.append(greedy(model, ids, **options))
    assert torch.equal(*draws)
    assert len({tuple(row) for row in draws[0].tolist()}) == 6


def test_finished_rows_do_not_disturb():
    """A row that has ended is filled with padding, while others go on."""
    model, ids = make_model(), prompts(3, 20)
    free = greedy(model, ids, steps=20)
    stop = int(free[0, 3])
    ended = greedy(model, ids, steps=20, eos_token_id=stop)
    for row in range(3):
        written = free[row].tolist()
        written = written[: written.index(stop) + 1] if stop in written else written
        assert ended[row, : len(written)].tolist() == written
        assert (ended[row, len(written) :] == 0).all()


def test_goes_on_with_a_returned_cache():
    """A conversation: text that follows what was generated, in one piece, costs no second reading."""
    model, ids = make_model(), prompts(2, 15)
    first = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True,
    )  # fmt: skip
    longer = torch.cat([first.sequences, prompts(2, 9, seed=5)], 1)
    assert torch.equal(greedy(model, longer, past_key_values=first.past_key_values), greedy(model, longer))


def test_inputs_embeds():
    model, ids = make_model(), prompts(2, 15)
    embeds = model.get_input_embeddings()(ids)
    written = model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert torch.equal(written, greedy(model, ids, steps=8))


def test_memory_follows_each_head():
    """Of 400 tokens a head keeps what its span and ramp reach, as published: ceil(span) + ramp."""
    model, ids = make_model(max_span=4096), prompts(2, 400)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.span.span_fraction.copy_(torch.tensor([0.0, 10.5, 150.0, 300.0]) / 4096)
        cache = model(ids, use_cache=True).past_key_values
    assert [layer.widths for layer in cache.layers] == [[8, 19, 158, 308]] * 2
    rows = {head: group.num_rows for group in cache.layers[0].groups for head in group.heads}
    assert rows == {0: 19, 1: 19, 2: 308, 3: 308}  # two tensors; they may hold 64 tokens a head more than heads see
    exact = sum(rows.values()) * 2 * 2 * 8 * 4  # keys and values, batch, head size, float32
    assert exact <= cache.layers[0].num_bytes <= 1.25 * exact + 4 * 16 * 2 * 2 * 8 * 4
    assert cache.get_seq_length() == 400


def test_half_precision():
    model, ids = make_model(), prompts()
    with torch.no_grad():
        whole = model(ids).logits
    logits = stepwise(model.bfloat16(), ids, [20] + [1] * 20)
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), whole, atol=0.15, rtol=0.1)


def test_pipeline(tmp_path):
    from longspan import AdaptiveSpanTokenizer

    tokenizer = AdaptiveSpanTokenizer.byte_level()
    model = make_model(vocab_size=len(tokenizer), pad_token_id=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write = transformers.pipeline("text-generation", model=str(tmp_path))
    (one, two) = write(["ab", "a longer prompt"], max_new_tokens=5, do_sample=False, batch_size=2)
    assert one[0]["generated_text"].startswith("ab") and two[0]["generated_text"].startswith("a longer prompt")
    (alone,) = write(["ab"], max_new_tokens=5, do_sample=False)
    assert alone[0]["generated_text"] == one[0]["generated_text"]


def test_caches_that_do_not_fit():
    model, ids = make_model(), prompts(2, 10)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds 2 rows, got 3"):
        model(prompts(3, 4), past_key_values=cache)
    with pytest.raises(ValueError, match="of 2 layers returned before, with use_cache=True; got DynamicCache"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match=r"of 3 layers returned before.* got LongspanCache of 2 layers"):
        make_model(num_hidden_layers=3)(ids, past_key_values=cache)
    with pytest.raises(ValueError, match=r"for inference: call model\.eval\(\) first"):
        model.train()(ids, use_cache=True)
    encoder = AdaptiveSpanModel(AdaptiveSpanConfig(num_hidden_layers=1, max_span=20, is_decoder=False))
    with pytest.raises(ValueError, match="is_decoder must be True, got False"):
        new_cache(encoder.config, None)


def test_no_assisted_decoding():
    model, ids = make_model(), prompts(1, 10)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        greedy(model, ids, assistant_model=make_model(seed=1))


def test_own_cache():
    model = make_model()
    cache = model.new_cache()
    assert all(isinstance(layer, SpanRings) for layer in cache.layers) and cache.is_empty
    assert cache.layers[0].widths == [64, 37, 15, 8]
    ids = prompts(1, 10)
    assert torch.equal(greedy(model, ids, past_key_values=cache), greedy(model, ids))
    assert cache.get_seq_length() == 10 + 12 - 1
