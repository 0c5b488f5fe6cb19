"""What generation promises: rows alone, padding absent, steps that agree with each other and, where the semantics let
them, with the full pass.
"""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from longspan import ReformerConfig, ReformerForMaskedLM, ReformerModel, ReformerModelWithLMHead
from longspan.cache import RingLayer
from longspan.reformer.generation_reformer import new_cache

SEMANTICS = ["original", "chunked", "strict"]


def make_model(semantics, seed=0, **changes):
    torch.manual_seed(seed)
    fields = dict(
        vocab_size=50,
        hidden_size=32,
        num_attention_heads=2,
        attention_head_size=16,
        feed_forward_size=32,
        attn_layers=["local", "lsh", "local", "lsh"],
        lsh_attn_chunk_length=4,
        local_attn_chunk_length=4,
        num_hashes=2,
        num_buckets=4,
        is_decoder=True,
        axial_pos_shape=[8, 16],
        axial_pos_embds_dim=[8, 24],
        axial_norm_std=0.2,
        lsh_semantics=semantics,
        initializer_range=0.4,  # logits far enough apart to tell tokens
        eos_token_id=None,
    )
    return ReformerModelWithLMHead(ReformerConfig(**(fields | changes))).eval()


def prompts(batch=2, length=13, seed=1):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def greedy(model, ids, steps=12, **options):
    return model.generate(ids, max_new_tokens=steps, do_sample=False, **options)


@torch.no_grad()
def stepwise(model, ids, split, attention_mask=None) -> tuple[torch.Tensor, Any]:
    """Logits of all tokens, fed in pieces, and the cache."""
    cache: Any = None
    begin, logits = 0, []
    for size in split:
        mask = None if attention_mask is None else attention_mask[:, : begin + size]
        piece = ids[:, begin : begin + size]
        output = model(piece, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
        begin += size
    return torch.cat(logits, 1), cache


EXACT = {
    "all local": dict(semantics="chunked", attn_layers=["local", "local"]),
    "all local, original": dict(semantics="original", attn_layers=["local"], local_num_chunks_before=2),
    "strict": dict(semantics="strict"),
    "strict, automatic buckets": dict(semantics="strict", num_buckets=None),
    "strict, factors": dict(semantics="strict", num_buckets=[2, 4], hash_seed=3),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("split", [[1] * 30, [13] + [1] * 17, [2, 9, 19]], ids=str)
def test_steps_equal_the_full_pass(name, split):
    """Local and strict layers, from prompts shorter than a chunk on."""
    model = make_model(**EXACT[name])
    ids = prompts(length=30)
    with torch.no_grad():
        whole = model(ids).logits
    assert_close(stepwise(model, ids, split)[0], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_greedy_with_and_without_cache_agree(name):
    model = make_model(**EXACT[name])
    ids = prompts()
    assert torch.equal(greedy(model, ids), greedy(model, ids, use_cache=False))


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_many_tokens_at_once_equal_one_by_one(semantics):
    model = make_model(semantics)
    ids = prompts(length=30)
    one_by_one, _ = stepwise(model, ids, [11] + [1] * 19)
    assert_close(stepwise(model, ids, [11, 6, 13])[0], one_by_one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_buckets", [4, None])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_rows_of_a_batch_are_independent(semantics, num_buckets):
    """Each row continues as alone, and another row's prompt changes nothing."""
    model = make_model(semantics, num_buckets=num_buckets)
    ids = prompts(3, 26)
    logits, _ = stepwise(model, ids, [11] + [1] * 15)
    for row in range(3):
        alone, _ = stepwise(model, ids[row : row + 1], [11] + [1] * 15)
        assert_close(logits[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    other = ids.clone()
    other[0, :11] = prompts(1, 11, seed=8)[0]
    changed, _ = stepwise(model, other, [11] + [1] * 15)
    assert_close(changed[1:], logits[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed[0], logits[0], atol=1e-2)


@pytest.mark.parametrize("num_buckets", [4, None])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_left_padding_is_as_if_absent(semantics, num_buckets):
    """One row shorter than a chunk, one longer than several, one whole."""
    model = make_model(semantics, num_buckets=num_buckets)
    ids = prompts(3, 19)
    pads = [0, 8, 16]
    mask = torch.stack([torch.arange(19) >= pad for pad in pads]).long()
    out = greedy(model, ids * mask, attention_mask=mask)
    for row, pad in enumerate(pads):
        alone = greedy(model, ids[row : row + 1, pad:])
        assert torch.equal(out[row : row + 1, pad:], alone)
    everything = greedy(model, ids * mask, attention_mask=torch.ones_like(mask))
    assert not torch.equal(everything[1:, 19:], out[1:, 19:]), "the mask is not dropped"


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_padded_rows_give_the_logits_of_rows_alone(semantics):
    model = make_model(semantics, num_buckets=None)
    ids = prompts(3, 30)
    mask = torch.ones_like(ids)
    mask[1, :7], mask[2, :11] = 0, 0
    logits, _ = stepwise(model, ids, [13, 1, 1, 5, 10], mask)
    for row, pad in ((1, 7), (2, 11)):
        alone, _ = stepwise(model, ids[row : row + 1, pad:], [13 - pad, 1, 1, 5, 10])
        assert_close(logits[row : row + 1, pad:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_beams_follow_their_own_past(semantics):
    model = make_model(semantics)
    ids = prompts(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = dict(num_beams=4, num_return_sequences=2, return_dict_in_generate=True, output_scores=True)
    found = greedy(model, ids, attention_mask=mask, **options)
    for row, pad in ((0, 0), (1, 4)):
        alone = greedy(model, ids[row : row + 1, pad:], **options)
        assert torch.equal(found.sequences[2 * row : 2 * row + 2, pad:], alone.sequences)
        assert_close(found.sequences_scores[2 * row : 2 * row + 2], alone.sequences_scores, atol=1e-4, rtol=1e-4)
    for row in range(4):  # a beam's score is what its own tokens score, fed in that order
        sequence = found.sequences[row : row + 1, 4 * (row // 2) :]
        begin = sequence.shape[1] - 12
        logits, _ = stepwise(model, sequence[:, :-1], [begin] + [1] * 11)
        taken = logits[0, begin - 1 :].log_softmax(-1).gather(1, sequence[0, begin:, None])
        assert_close(taken.sum() / 12, found.sequences_scores[row], atol=1e-4, rtol=1e-4)


def test_beams_with_and_without_cache_agree():
    model = make_model("strict")
    ids = prompts(2, 9)
    assert torch.equal(greedy(model, ids, num_beams=3), greedy(model, ids, num_beams=3, use_cache=False))


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_prompt_shorter_than_a_chunk_with_automatic_buckets(semantics):
    """Decoding passes the chunk length; the number of buckets is decided then, and stays out of the configuration."""
    model = make_model(semantics, num_buckets=None)
    before = model.config.to_dict()
    out = greedy(model, prompts(2, 2), steps=20)
    assert out.shape == (2, 22)
    assert model.config.to_dict() == before
    assert all(m.num_buckets is None for m in model.modules() if hasattr(m, "num_buckets"))
    lone_token = greedy(model, prompts(1, 1), steps=7)
    assert lone_token.shape == (1, 8)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_more_heads_than_a_chunk_has_tokens(semantics):
    model = make_model(semantics, num_attention_heads=6, attention_head_size=8)
    ids = prompts(2, 11)
    out = greedy(model, ids)
    assert torch.equal(out[1:], greedy(model, ids[1:]))


@pytest.mark.parametrize("hash_seed", [None, 5])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_steps_hash_with_the_rotations_of_the_prompt(semantics, hash_seed):
    """Without a seed as well: buckets of new tokens compare with those in the cache."""
    from longspan.ops import lsh_buckets

    model = make_model(semantics, hash_seed=hash_seed)
    _, cache = stepwise(model, prompts(2, 30), [11] + [1] * 19)
    for layer in (1, 3):
        state = cache.layers[layer]
        assert len(state.hashings) == 1 and state.hashed.all()
        rotations, num_buckets = state.hashings[0]
        assert torch.equal(state.buckets, lsh_buckets(state.keys, rotations, num_buckets).int())


def test_generation_is_reproducible_and_leaves_the_generator_alone():
    model = make_model("chunked")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = greedy(model, prompts())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, greedy(model, prompts()))
    torch.manual_seed(1)
    sampled = model.generate(prompts(), max_new_tokens=12, do_sample=True, num_return_sequences=3)
    torch.manual_seed(1)
    again = model.generate(prompts(), max_new_tokens=12, do_sample=True, num_return_sequences=3)
    assert torch.equal(sampled, again) and sampled.shape == (6, 25)
    assert len({tuple(row.tolist()) for row in sampled[:3]}) > 1


def test_number_of_hashes_of_a_call():
    model = make_model("chunked", num_buckets=8)
    ids = prompts(2, 20)
    one, four = (greedy(model, ids, steps=1, num_hashes=number, return_dict_in_generate=True) for number in (1, 4))
    assert one.past_key_values.layers[1]._buckets is None
    cache = greedy(model, ids, steps=3, num_hashes=4, return_dict_in_generate=True).past_key_values
    assert cache.layers[1].buckets.shape[2] == 4 and cache.get_seq_length() == 22
    assert one.sequences.shape == four.sequences.shape


def test_local_layers_keep_only_their_window():
    model = make_model("chunked", attn_layers=["local", "local"])
    cache = greedy(model, prompts(2, 30), steps=40, return_dict_in_generate=True).past_key_values
    assert cache.get_seq_length() == 69
    for layer in cache.layers:
        assert isinstance(layer, RingLayer) and layer.keys.shape == (2, 2, 8, 16)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_conversation_goes_on_with_its_cache(semantics):
    model = make_model(semantics)
    ids = prompts(2, 9)
    said = greedy(model, ids, steps=5, return_dict_in_generate=True)
    cache, turn = said.past_key_values, torch.cat([said.sequences, prompts(2, 6, seed=3)], 1)
    twin = copy.deepcopy(cache)
    out = greedy(model, turn, steps=6, past_key_values=cache)
    held = twin.get_seq_length()
    logits = model(turn[:, held:], past_key_values=twin).logits[:, -1]
    assert torch.equal(out[:, turn.shape[1]], logits.argmax(-1)) and twin.get_seq_length() == turn.shape[1]
    if semantics == "strict":
        assert torch.equal(out, greedy(model, turn, steps=6))


def test_embeddings_in_place_of_a_prompt():
    model = make_model("chunked")
    ids = prompts()
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(greedy(model, None, inputs_embeds=embeds), greedy(model, ids)[:, 13:])


def test_guesses_from_the_prompt_change_nothing():
    """Guessed tokens are checked several at a time and taken back: where all rows are kept, that is exact."""
    model = make_model("strict", attn_layers=["lsh", "lsh"])
    ids = prompts(1, 6).repeat(1, 3)
    assert torch.equal(greedy(model, ids, prompt_lookup_num_tokens=3), greedy(model, ids))


def test_nothing_is_printed(capsys):
    greedy(make_model("original"), prompts())
    assert capsys.readouterr().out == ""


def test_bfloat16():
    model = make_model("chunked").bfloat16()
    out = greedy(model, prompts(), steps=5, return_dict_in_generate=True)
    assert out.past_key_values.layers[0].keys.dtype == out.past_key_values.layers[1].keys.dtype == torch.bfloat16


def test_errors_say_what_is_wanted():
    model = make_model("chunked")
    ids = prompts()
    with pytest.raises(ValueError, match="is_decoder must be True, got False"):
        config = ReformerConfig(is_decoder=False)
        new_cache(config)
    bidirectional = ReformerModel(ReformerConfig(hidden_size=256, attn_layers=["local"])).eval()
    with pytest.raises(ValueError, match="is_decoder must be True"):
        bidirectional(ids, use_cache=True)
    _, cache = stepwise(model, ids, [13])
    with pytest.raises(ValueError, match="holds 2 rows, got 1"):
        model(ids[:1, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="returned before, with use_cache=True; got DynamicCache"):
        model(ids, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match=r"model of 2 layers returned before.*got LongspanCache of 4 layers"):
        make_model("chunked", attn_layers=["lsh", "local"])(ids[:, :1], past_key_values=cache)
    _, cache = stepwise(model, prompts(1, 128), [128])
    with pytest.raises(ValueError, match="texts of up to 128 tokens"):
        model(ids[:1, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="cannot go back"):
        cache.crop(-1)
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        model(ids, use_cache=True)
    assert not hasattr(ReformerForMaskedLM, "generate")


@pytest.mark.parametrize(
    ("prompt", "num_buckets"),
    [(3, 4), (4, 4), (5, 4), (13, 4), (16, 4), (3, [2, 4]), (16, [2, 4]), (5, None), (13, None)],
)
def test_original_steps_equal_those_of_transformers(prompt, num_buckets):
    """One row, one hash round and a seed: where transformers' own steps are right."""
    ours = make_model("original", num_hashes=1, num_buckets=num_buckets, hash_seed=11)
    ours.lm_head.bias.data.zero_()  # pyright: ignore
    fields = transformers.ReformerConfig().to_dict().keys() - {"model_type", "architectures"}
    shared = {name: value for name, value in ours.config.to_dict().items() if name in fields}
    theirs = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**shared)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    ids = prompts(1, 26)
    logits, _ = stepwise(ours, ids, [prompt] + [1] * (26 - prompt))
    with torch.no_grad():
        output = theirs(ids[:, :prompt], use_cache=True)
        expected = [output.logits]
        for token in ids[:, prompt:].split(1, 1):
            output = theirs(token, past_buckets_states=output.past_buckets_states, use_cache=True)
            expected.append(output.logits)
    assert_close(logits, torch.cat(expected, 1), atol=1e-3, rtol=1e-3)


def test_generation_stops_where_positions_end():
    model = make_model("strict")  # 128 positions
    ids = prompts(batch=1, length=120)
    out = greedy(model, ids, steps=50)
    assert out.shape[1] == 129  # the last token needs no position of its own
    assert greedy(model, prompts(batch=1, length=128), steps=3).shape[1] == 129
