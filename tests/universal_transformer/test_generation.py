"""Generation: every mode of the recurrence goes on from its cache as a pass over the whole text would."""

from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from longspan.universal_transformer import (
    UniversalTransformerConfig,
    UniversalTransformerForCausalLM,
    UniversalTransformerForConditionalGeneration,
)

VOCABULARY = 40


def make_model(seed=0, encoder=False, **changes):
    fields = dict(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_recurrent_steps=5,
        is_encoder_decoder=encoder,
        is_decoder=not encoder,
        eos_token_id=None,
        step_signal="sinusoid",
        tie_word_embeddings=False,  # new models would repeat what they read
    )
    torch.manual_seed(seed)
    model_class = UniversalTransformerForConditionalGeneration if encoder else UniversalTransformerForCausalLM
    model = model_class(UniversalTransformerConfig(**(fields | changes))).double().eval()
    for name, parameter in model.named_parameters():
        if "halting.weight" in name:
            torch.nn.init.normal_(parameter, std=0.6)
        elif "halting.bias" in name:
            torch.nn.init.constant_(parameter, -0.7)
        elif "word_embeddings" in name:
            torch.nn.init.normal_(parameter, std=1.0)  # places alone would decide otherwise
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    return model


def act(**options):
    return dict(recurrence="act", recurrence_options=options)


def ids_of(batch=3, length=12, seed=1):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


REUSE = dict(halted_state="copy", halted_kv="reuse")
HALTING = {
    "continue": act(),
    "continue, tensor2tensor": act(skip_padding=False),
    "continue, summed, forced": act(variant="accumulated", force_halt_at_max=True),
    "copy, recompute": act(halted_state="copy"),
    "copy, reuse": act(**REUSE),
    "copy, reuse, packed": act(**REUSE, mix="sum", force_halt_at_max=True, packed=True),
}
FIXED = {
    "basic": {},
    "post-norm, paper": dict(norm_position="post", position_signal="paper"),
    "highway": dict(recurrence="highway", recurrence_options={"gates_inputs": "sti"}),
    "skip": dict(recurrence="skip"),
    "gru": dict(recurrence="gru", step_signal="none"),
    "lstm": dict(recurrence="lstm", step_signal="none", recurrence_options={"memory_as_output": True}),
    "dwa": dict(recurrence="dwa"),
}
SHAPES = {
    "": {},
    "sepconv": dict(transition="sepconv"),
    "window": dict(window=3),
    "inner, prelude, coda": dict(num_inner_layers=2, num_prelude_layers=1, num_coda_layers=1, timing="concat"),
}
MODES = FIXED | {f"{mode} {shape}".strip(): HALTING[mode] | SHAPES[shape] for mode in HALTING for shape in SHAPES}


@torch.no_grad()
def in_pieces(model, ids, split, mask=None, cache=None, **given) -> tuple[torch.Tensor, Any, Any]:
    """Logits and numbers of steps of all tokens, fed in pieces; and the cache."""
    name = "decoder_" if model.config.is_encoder_decoder else ""
    begin, logits, counts = 0, [], []
    for size in split:
        columns = slice(begin, begin + size)
        given |= {f"{name}input_ids": ids[:, columns]}
        if mask is not None:
            given |= {f"{name}attention_mask": mask[:, : begin + size]}
        outputs = model(**given, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits)
        counts.append(getattr(outputs, f"{name}n_updates"))
        begin += size
    return torch.cat(logits, 1), None if counts[0] is None else torch.cat(counts, 1), cache


@pytest.mark.parametrize("mode", MODES)
def test_pieces_equal_the_whole(mode):
    """Token by token, and in pieces; rows padded on the left by different lengths."""
    model, ids = make_model(**MODES[mode]), ids_of()
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :8] = 0, 0
    with torch.no_grad():
        whole = model(ids, attention_mask=mask)
    real = mask.bool()
    for split in ([1] * 12, [5, 1, 1, 4, 1]):
        logits, counts, cache = in_pieces(model, ids, split, mask)
        assert_close(logits[real], whole.logits[real], atol=1e-10, rtol=0)
        assert cache.get_seq_length() == 12
        if counts is not None:
            assert torch.equal(counts[real], whole.n_updates[real])


@pytest.mark.parametrize("mode", ["copy, reuse", "continue"])
def test_tokens_of_the_checked_models_halt_at_different_steps(mode):
    """Else the test above would say little."""
    model, ids = make_model(**MODES[mode]), ids_of()
    assert len(model(ids).n_updates.unique()) >= 3


@pytest.mark.parametrize("mode", ["basic", "continue", "copy, recompute", "copy, reuse, packed", "copy, reuse sepconv"])
@pytest.mark.parametrize("encoder", [False, True])
def test_generate_with_and_without_cache_agree(mode, encoder):
    """Greedy and beams; a source of which rows are padded, or prompts padded on the left."""
    model, ids = make_model(encoder=encoder, **MODES[mode]), ids_of(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False)
    for more in ({}, dict(num_beams=3, num_return_sequences=2)):
        found = model.generate(ids * mask, **options, **more)
        assert torch.equal(found, model.generate(ids * mask, **options, **more, use_cache=False))
        each = len(found) // 2
        alone = model.generate(ids[1:, 4:], **(options | {"attention_mask": mask[1:, 4:]}), **more)
        assert torch.equal(found[each:, -8:], alone[:, -8:]), "neither the other row nor padding counts"
        assert len(found[:, -8:].unique()) > 1


def test_beams_score_what_their_own_tokens_score():
    model, ids = make_model(**MODES["copy, reuse"]), ids_of(2, 5)
    options = dict(num_beams=4, num_return_sequences=3, return_dict_in_generate=True, output_scores=True)
    found = model.generate(ids, max_new_tokens=6, do_sample=False, **options)
    scores = model(found.sequences[:, :-1]).logits[:, 4:].log_softmax(-1)
    own = scores.gather(2, found.sequences[:, 5:, None])[..., 0].sum(1) / 6
    assert_close(own.detach().float(), found.sequences_scores, atol=1e-5, rtol=1e-5)


def count_calls(module):
    rows = []
    module.register_forward_hook(lambda module, inputs, out: rows.append(inputs[0].shape[:-1].numel()))
    return rows


def test_the_source_is_projected_once():
    model = make_model(encoder=True, num_inner_layers=2, num_coda_layers=1)
    decoder = model.universal_transformer.decoder
    calls = [count_calls(layer.cross_attn.k_proj) for layer in [*decoder.block, *decoder.coda]]
    encoded = count_calls(model.universal_transformer.encoder.block[0].ffn)
    model.generate(ids_of(2, 7), max_new_tokens=6, num_beams=2, do_sample=False)
    assert all(len(rows) == 1 for rows in calls)
    assert len(encoded) == 5


def test_a_new_token_costs_its_own_steps():
    """With reuse, halted rows of the batch drop out, and nothing is done for earlier tokens."""
    model, ids = make_model(**MODES["copy, reuse, packed"]), ids_of(4, 10)
    rows = count_calls(model.universal_transformer.decoder.block[0].ffn)
    _, counts, _ = in_pieces(model, ids, [1] * 10)
    assert sum(rows) == counts.sum() < 4 * counts.max(0).values.sum()


def test_continued_tokens_go_deeper_once():
    """The first token that needs a step takes all earlier ones there, and later ones find them there."""
    model, ids = make_model(**MODES["continue"]), ids_of(1, 12, seed=24)
    rows = count_calls(model.universal_transformer.decoder.block[0].ffn)
    _, counts, cache = in_pieces(model, ids, [1] * 12)
    depth = int(counts.max())
    assert cache.past.depth == depth and sum(rows) == 12 * depth
    assert counts[0, 0] < depth, "a later token went deeper than the first"


@pytest.mark.parametrize("mode", ["basic", "copy, reuse"])
def test_a_window_bounds_the_cache(mode):
    model = make_model(window=3, **MODES[mode])
    _, _, cache = in_pieces(model, ids_of(2, 12), [4, 1, 1, 6])
    held = {shown.shape[1] for slot in cache.past.slots for shown in slot.values()}
    assert held == {3} and cache.past.frontier is None


@pytest.mark.parametrize("mode", ["continue", "copy, recompute", "copy, reuse"])
def test_assisted_generation_takes_tokens_back(mode):
    """Candidates that were refused are dropped from the cache."""
    model = make_model(**MODES[mode])
    ids = ids_of(1, 4).repeat(1, 4)  # what repeats is proposed again
    plain = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False, prompt_lookup_num_tokens=3), plain)


def test_a_cache_goes_on_in_a_later_call():
    model, ids = make_model(**MODES["copy, reuse"]), ids_of(2, 6)
    cache = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True).past_key_values
    whole = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(whole[:, :9], max_new_tokens=5, do_sample=False, past_key_values=cache), whole)


def test_more_steps_than_trained():
    """``max_recurrent_steps`` reaches the decoder and the encoder, and must stay the same while a cache is used."""
    model, ids = make_model(encoder=True), ids_of(2, 6)
    deeper = make_model(encoder=True, num_recurrent_steps=7)
    deeper.load_state_dict(model.state_dict())
    options = dict(max_new_tokens=6, do_sample=False)
    found = model.generate(ids, max_recurrent_steps=7, **options)
    assert torch.equal(found, deeper.generate(ids, **options))
    assert not torch.equal(found, model.generate(ids, **options))
    decoder = make_model()
    _, _, cache = in_pieces(decoder, ids, [6])
    with pytest.raises(ValueError, match="made with 5 recurrent steps, got 4"):
        decoder(ids[:, :1], past_key_values=cache, max_recurrent_steps=4)


@pytest.mark.parametrize(
    "changes", [act(variant="global"), dict(position_offset="step")], ids=["global halting", "offset by step"]
)
def test_models_without_a_cache_generate_from_the_whole_text(changes):
    """In them tokens to come change what earlier ones compute."""
    model, ids = make_model(**changes), ids_of(2, 5)
    found = model.generate(ids, max_new_tokens=4, do_sample=False)
    for length in range(5, 9):
        assert torch.equal(model(found[:, :length]).logits[:, -1].argmax(-1), found[:, length])
    with pytest.raises(ValueError, match=r"no cache can be kept: .*use_cache=False"):
        model(ids, use_cache=True)


def test_what_is_no_cache_of_this_call_is_refused():
    model, ids = make_model(), ids_of(2, 5)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds 2 rows, got 1"):
        model(ids[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="got DynamicCache"):
        model(ids, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match=r"inference: call model\.eval\(\)"):
        model.train()(ids, use_cache=True)


def test_bfloat16_generates():
    model, ids = make_model(encoder=True, **MODES["copy, reuse, packed"]).bfloat16(), ids_of(2, 5)
    assert model.generate(ids, max_new_tokens=4, do_sample=True, num_return_sequences=2).shape == (4, 5)
