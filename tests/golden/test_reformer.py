"""Reformer against its reference data: transformers' results in float64 and a brute force in NumPy.

The kinds of cases are explained in ``reformer/README.md``. L there is T here. Where transformers has a known defect,
cases are compared as that page says: rows of local attention that may see nothing, and ``lm_head.bias``.
"""

import inspect
import math

import pytest
import torch
from torch import Tensor

import longspan
from longspan.cache import RingLayer, RowsLayer
from longspan.layers import local_self_attention, lsh_self_attention
from longspan.layers.decisions import Decisions
from longspan.layers.local_self_attention import LocalSelfAttention
from longspan.layers.lsh_self_attention import LSHSelfAttention, automatic_buckets
from longspan.ops import block_attention, lsh_attention, lsh_buckets
from longspan.ops.lsh_decode import lsh_decode
from longspan.ops.rotations import seeded_rotations

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-5, torch.bfloat16: 2e-2}
FLIP = {torch.float64: 1e-9, torch.float32: 1e-4}  # projections closer than this may change places by rounding
ALONE = -5e4  # a stored logsumexp below: nothing but the query itself


def assert_agrees(actual, expected, name, *, dtype, relative=False, where=None):
    """Within the tolerance of ``dtype``; gradients, which are stored in float32, relative to the largest entry."""
    expected, actual = expected.double(), actual.detach().double()
    assert actual.shape == expected.shape, name
    if where is not None:
        actual, expected = actual[where], expected[where]
    size = max(1.0, expected.abs().max().item()) if relative and expected.numel() else 1.0
    atol = TOLERANCE[dtype] * size
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, msg=lambda text: f"{name}: {text}")


def mask_of(case):
    mask = case.tensors.get("attention_mask")
    return None if mask is None or bool((mask != 0).all()) else mask != 0


def leaves(case, dtype, *names):
    return [case.tensors[name].detach().to(dtype).requires_grad_() for name in names]


def heads(x, num_heads):
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def with_offsets(buckets, num_buckets, has_padding):
    """Numbers that start anew in each round -> as stored, rounds one after the other."""
    total = math.prod(num_buckets) if isinstance(num_buckets, list) else num_buckets
    return buckets.long() + torch.arange(buckets.shape[2])[:, None] * (total + has_padding)


def window(meta):
    return {
        "chunk_size": meta["chunk"],
        "chunks_before": meta["before"],
        "chunks_after": meta["after"],
        "causal": meta["causal"],
        "wrap": True,
    }


def check_hashing(case, query_key, dtype):
    """Buckets, where no other is nearly as good; and that they come from the numbers that ``hash_seed`` gives."""
    meta, given, mask = case.meta["config"], case.tensors, mask_of(case)
    rotations, num_buckets = given["rotations"], meta["num_buckets_used"]
    if meta.get("hash_seed") is not None:
        assert torch.equal(seeded_rotations(query_key, meta["hash_seed"], tuple(rotations.shape)), rotations)
    buckets = lsh_buckets(query_key, rotations, num_buckets, key_mask=mask)
    margins = torch.einsum("bhtd,hdrs->bhrts", query_key.double(), rotations.double())
    clear = torch.ones_like(buckets, dtype=torch.bool)
    columns = [f // 2 for f in (num_buckets if isinstance(num_buckets, list) else [num_buckets])]
    for axes in margins.split(columns, -1):
        best = torch.cat([axes, -axes], -1).topk(2, -1).values
        clear &= best[..., 0] - best[..., 1] > FLIP[dtype]
    if meta.get("min_hash_margin") is not None and mask is None and meta["min_hash_margin"] > FLIP[dtype]:
        assert clear.all()
    stored = with_offsets(buckets, num_buckets, mask is not None)
    assert torch.equal(stored[clear], given["buckets"].long()[clear])


def check_lsh_operator(case, dtype):
    """The operator from the projected vectors: output, logsumexp over all rounds, gradients."""
    meta, given, mask = case.meta["config"], case.tensors, mask_of(case)
    x, weights, value_weights = (given[name].double() for name in ("hidden_states", "query_key_weight", "value_weight"))
    query_key, value = (heads(x @ w.T, meta["heads"]).to(dtype).requires_grad_() for w in (weights, value_weights))
    hashed = "buckets" in given
    buckets = given["buckets"] if hashed else torch.zeros(*query_key.shape[:2], 1, x.shape[1], dtype=torch.int32)
    options = window(meta) if hashed else {"chunk_size": x.shape[1], "chunks_before": 0, "causal": meta["causal"]}
    if hashed:
        check_hashing(case, query_key, dtype)
    out, lse = lsh_attention(query_key, value, buckets, key_mask=mask, return_lse=True, **options)
    out = out.transpose(1, 2).flatten(2)
    assert_agrees(out, given["out_f64"], "out", dtype=dtype)
    if hashed:
        expected = given["lse_rounds_f64"].logsumexp(2)
        assert torch.equal(lse == -torch.inf, expected < ALONE)
        assert_agrees(lse, expected, "lse", dtype=dtype, relative=True, where=expected > ALONE)
    out.backward(given["grad_out"].to(dtype))
    assert_agrees(query_key.grad, given["grad_qk"], "grad_qk", dtype=dtype, relative=True)
    assert_agrees(value.grad, given["grad_v"], "grad_v", dtype=dtype, relative=True)


def lsh_layer(case, dtype) -> LSHSelfAttention:
    meta = case.meta["config"]
    layer = LSHSelfAttention(
        meta["hidden_size"],
        meta["heads"],
        meta["head_size"],
        chunk_length=meta["chunk"],
        chunks_before=meta["before"],
        chunks_after=meta["after"],
        num_hashes=meta["num_hashes"],
        num_buckets=meta["num_buckets_used"],
        hash_seed=meta["hash_seed"],
        causal=meta["causal"],
        semantics="original",
    )
    layer.load_state_dict({f"{name}.weight": case.tensors[f"{name}_weight"] for name in ("query_key", "value")})
    if meta["hash_seed"] is None and "rotations" in case.tensors:
        layer.rotations = lambda *args: case.tensors["rotations"]
    return layer.to(dtype)


def check_lsh_layer(case, dtype):
    """The model's layer from the hidden states: its own hashing, output, gradients, and which keys a query takes."""
    meta, given, mask = case.meta["config"], case.tensors, mask_of(case)
    if meta["num_buckets"] is None:
        least, most = (automatic_buckets(meta["length"], meta["chunk"], limit) for limit in (1, 2**40))
        assert meta["num_buckets_used"] in (least, most)  # the longest text of the model is not recorded
    layer = lsh_layer(case, dtype)
    (hidden,) = leaves(case, dtype, "hidden_states")
    decisions = Decisions()
    out = layer(hidden, mask, decisions)
    if "buckets" in given:
        decided = with_offsets(decisions.once("buckets", lambda: None), meta["num_buckets_used"], mask is not None)
        if not torch.equal(decided, given["buckets"].long()):
            assert meta.get("min_hash_margin") is None or meta["min_hash_margin"] <= FLIP[dtype]
            decisions = Decisions()
            decisions.once("buckets", lambda: given["buckets"])
            out = layer(hidden, mask, decisions)
    assert_agrees(out, given["out_f64"], "out", dtype=dtype)
    out.backward(given["grad_out"].to(dtype))
    assert_agrees(hidden.grad, given["grad_hidden_states"], "grad_hidden_states", dtype=dtype, relative=True)
    for name in ("query_key", "value"):
        gradient = getattr(layer, name).weight.grad
        assert_agrees(gradient, given[f"grad_{name}_weight"], f"grad_{name}_weight", dtype=dtype, relative=True)
    if "allowed_counts_total" in given:
        counts = given["allowed_counts_total"]
        taken = layer.weights(hidden, mask, decisions).detach()
        alone = ~(counts > 0).any(-1)
        assert int(alone.sum()) == meta["queries_with_no_target"]
        assert not taken[~alone][counts[~alone] == 0].any()
        assert torch.equal(taken[alone].argmax(-1), alone.nonzero()[:, 2])
        torch.testing.assert_close(taken.sum(-1), torch.ones_like(taken[..., 0]))


def check_lsh(case, dtype):
    if dtype == torch.bfloat16:
        return check_rounded(case)
    check_lsh_operator(case, dtype)
    check_lsh_layer(case, dtype)
    return None


def check_rounded(case):
    """bfloat16 against float64 of the same rounded vectors, in the same buckets."""
    meta, given, mask = case.meta["config"], case.tensors, mask_of(case)
    if meta["kind"] == "numpy":
        rows = [given[name] for name in ("qk", "v")]
    else:
        names = {"lsh": ("query_key", "value"), "local": ("query", "key", "value")}[meta["kind"]]
        x = given["hidden_states"].double()
        rows = [heads(x @ given[f"{name}_weight"].double().T, meta["heads"]) for name in names]
    results = {}
    for dtype in (torch.bfloat16, torch.float64):
        leaf = [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in rows]
        if meta["kind"] == "local":
            out = local_operator(case, *leaf)
        elif "buckets" in given:
            out = lsh_attention(*leaf, given["buckets"], key_mask=mask, **window(meta))
        else:
            everyone = torch.zeros(*leaf[0].shape[:2], 1, leaf[0].shape[2], dtype=torch.int32)
            out = lsh_attention(*leaf, everyone, chunk_size=meta["chunk"], causal=meta["causal"], key_mask=mask)
        grad_out = given["grad_out"].to(torch.bfloat16).to(dtype)
        out.backward(grad_out if meta["kind"] == "numpy" else heads(grad_out, meta["heads"]))
        results[dtype] = [out, *(x.grad for x in leaf)]
    for index, (actual, expected) in enumerate(zip(results[torch.bfloat16], results[torch.float64], strict=True)):
        name = ("out", "grad 1", "grad 2", "grad 3")[index]
        assert_agrees(actual, expected, name, dtype=torch.bfloat16, relative=True)


def local_operator(case, query, key, value):
    meta = case.meta["config"]
    whole = query.shape[2] <= meta["chunk"]
    return block_attention(
        query,
        key,
        value,
        block_size=meta["chunk"],
        before=0 if whole else meta["before"],
        after=0 if whole else meta["after"],
        causal=meta["causal"],
        wrap=not whole,
        key_mask=mask_of(case),
    )


def mean_of_window(meta, value):
    """What transformers gives a row of local attention whose keys are all forbidden: ``[B, H, T, D]``."""
    length, chunk = value.shape[2], meta["chunk"]
    if length <= chunk:
        return value.mean(2, keepdim=True).expand_as(value)
    chunks = value.unflatten(2, (-1, chunk)).mean(3)  # [B, H, N, D]
    neighbours = [
        chunks.roll(-offset, 2) if abs(offset) <= chunks.shape[2] else chunks
        for offset in range(-meta["before"], meta["after"] + 1)
    ]
    return torch.stack(neighbours).mean(0).repeat_interleave(chunk, 2)


def check_local(case, dtype):
    if dtype == torch.bfloat16:
        return check_rounded(case)
    meta, given, mask = case.meta["config"], case.tensors, mask_of(case)
    layer = LocalSelfAttention(
        meta["hidden_size"],
        meta["heads"],
        meta["head_size"],
        chunk_length=meta["chunk"],
        chunks_before=meta["before"],
        chunks_after=meta["after"],
        causal=meta["causal"],
        wrap=True,
    ).to(dtype)
    names = ("query", "key", "value")
    layer.load_state_dict({f"{name}.weight": given[f"{name}_weight"] for name in names})
    (hidden,) = leaves(case, dtype, "hidden_states")
    query, key, value = layer.project(hidden)
    operator = layer.join(local_operator(case, query, key, value))
    out = layer(hidden, mask, Decisions())
    torch.testing.assert_close(out, operator, atol=1e-7, rtol=0)
    counts = given["allowed_counts"]
    empty = ~(counts > 0).any(-1)  # [B, T]
    assert not out[empty].any()
    assert_agrees(out, given["out_f64"], "out", dtype=dtype, where=~empty)
    taken = layer.weights(hidden, mask, Decisions()).detach()
    assert torch.equal(taken > 0, (counts > 0)[:, None].expand_as(taken))

    # The stored gradients flow through what transformers puts into the empty rows.
    out = torch.where(empty[..., None], layer.join(mean_of_window(meta, value)), out)
    out.backward(given["grad_out"].to(dtype))
    assert_agrees(hidden.grad, given["grad_hidden_states"], "grad_hidden_states", dtype=dtype, relative=True)
    for name in names:
        gradient = getattr(layer, name).weight.grad
        assert_agrees(gradient, given[f"grad_{name}_weight"], f"grad_{name}_weight", dtype=dtype, relative=True)
    return None


VARIANTS = {
    "": {},
    "_dedup": {"deduplicate": True},
    "_samebucket": {"same_bucket": True},
    "_dedup_samebucket": {"deduplicate": True, "same_bucket": True},
}


def check_numpy(case, dtype):
    """The operator on made-up buckets, with its variants."""
    if dtype == torch.bfloat16:
        return check_rounded(case)
    meta, given, mask = case.meta["config"], case.tensors, mask_of(case)
    for suffix, variant in VARIANTS.items():
        if f"out{suffix}" not in given:
            continue
        query_key, value = leaves(case, dtype, "qk", "v")
        out, lse = lsh_attention(
            query_key, value, given["buckets"], key_mask=mask, return_lse=True, **window(meta), **variant
        )
        size = {"relative": True} if dtype == torch.float32 else {}
        assert_agrees(out, given[f"out{suffix}"], f"out{suffix}", dtype=dtype, **size)
        if not suffix:
            assert torch.equal(lse == -torch.inf, given["alone"])
            found = ~given["alone"]
            expected = given["lse_rounds"].logsumexp(2)
            assert_agrees(lse, expected, "lse", dtype=dtype, relative=True, where=found)
        if f"grad_qk{suffix}" in given:
            out.backward(given["grad_out"].to(dtype))
            for leaf, name in ((query_key, f"grad_qk{suffix}"), (value, f"grad_v{suffix}")):
                assert_agrees(leaf.grad, given[name], name, dtype=dtype, relative=True)
    return None


def self_copies(buckets, chunk, before, after):
    """How often each token meets itself in the window of each round, ``[B, H, R, T]``: neighbours wrap around."""
    rounds, length = buckets.shape[2:]
    chunks, slots = -(-length // chunk), torch.arange(length)
    slot = torch.zeros_like(buckets, dtype=torch.int64)
    slot.scatter_(3, buckets.long().sort(dim=-1, stable=True).indices, slots.expand_as(buckets))
    own = slot // chunk + torch.arange(rounds)[:, None] * chunks
    total, copies = rounds * chunks, torch.zeros_like(own)
    for offset in range(-before, after + 1):
        neighbour = (own + offset) % total if abs(offset) <= total else own
        copies += own.gather(2, neighbour // chunks) == neighbour
    return copies


def merged_like_transformers(query_key, value, buckets, **options):
    """``lsh_attention`` with transformers' defect, which stored results of whole models carry on.

    A query that finds nothing has a logit near -1e5 in every round, where float32 knows steps of 0.008: the weights
    of its copies and rounds do not sum to one.
    """
    out, lse = lsh_attention(query_key, value, buckets, **options, return_lse=True)
    copies = self_copies(buckets, options["chunk_size"], options["chunks_before"], options["chunks_after"])
    itself = torch.tensor(-1e5)
    logits = itself + copies.float().log()
    weights = copies * (itself - logits).exp() * (logits - logits.logsumexp(2, keepdim=True)).exp()
    return torch.where(lse[..., None] == -torch.inf, out * weights.sum(2)[..., None].to(out.dtype), out)


def make_model(case, dtype):
    meta, given = dict(case.meta["config"]), case.tensors
    name = meta.pop("cls")
    meta.pop("kind")
    config = longspan.ReformerConfig.from_dict(meta | {"model_type": "reformer"})
    assert config.lsh_semantics == "original"
    model = getattr(longspan, name)(config)
    model.load_state_dict({key.removeprefix("sd."): value for key, value in given.items() if key.startswith("sd.")})
    return model.to(dtype)


def attended_like_transformers(query, key, value, **options):
    """``block_attention`` with transformers' defect: a query that may see nothing takes the sum of its window's values.

    In float32 every forbidden score is -1e9, and so is the logsumexp of many of them.
    """
    out, lse = block_attention(query, key, value, **options, return_lse=True)
    blocks, chunk = options["before"] + 1 + options["after"], options["block_size"]
    meta = {"chunk": chunk, "before": options["before"], "after": options["after"]}
    if query.shape[2] % chunk:
        assert query.shape[2] < chunk
        total = value.sum(2, keepdim=True)
    else:
        total = mean_of_window(meta, value) * (chunk * blocks if query.shape[2] > chunk else chunk)
    return torch.where(lse[..., None] == -torch.inf, total.to(out.dtype), out)


def lsh_layers(model):
    layers = [layer.attention.self_attention for layer in model.reformer.encoder.layers]
    return [layer for layer in layers if isinstance(layer, LSHSelfAttention)]


def take_stored_buckets(case, prefix, model):
    for index, layer in enumerate(lsh_layers(model)):
        stored = case.tensors.get(f"{prefix}_buckets_layer_lsh{index}")
        if stored is not None:
            layer.hash = lambda *args, stored=stored: stored


def fit_number_of_buckets(case, model):
    """transformers keeps the automatic number of buckets of its first batch, here that of the training step."""
    if model.config.num_buckets is None and model.config.hash_seed is not None:
        chunk, limit = model.config.lsh_attn_chunk_length, model.config.max_position_embeddings
        for index, layer in enumerate(lsh_layers(model)):
            stored, first = (case.tensors.get(f"{prefix}_buckets_layer_lsh{index}") for prefix in ("eval", "train"))
            if stored is not None and first is not None:
                kept, own = (automatic_buckets(x.shape[-1], chunk, limit) for x in (first, stored))
                own = math.prod(own) if isinstance(own, list) else own
                layer.num_buckets = kept if int(stored[:, :, 0].max()) > own else None


def check_buckets(case, prefix, outputs, model):
    found = [buckets for buckets in outputs.buckets if buckets is not None]
    for index, (buckets, layer) in enumerate(zip(found, lsh_layers(model), strict=True)):
        name = f"{prefix}_buckets_layer_lsh{index}"
        if name in case.tensors and model.config.hash_seed is not None:
            expected = case.tensors[name].long()
            num_buckets, length = layer.buckets_for(expected.shape[-1]), buckets.shape[-1]
            mask = case.tensors.get(f"{prefix}_attention_mask", torch.ones(()))
            padded = expected.shape[-1] > length or bool((mask == 0).any())
            assert torch.equal(with_offsets(buckets, num_buckets, padded), expected[..., :length]), name


def check_model(case, dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsh_self_attention, "lsh_attention", merged_like_transformers)
        patch.setattr(local_self_attention, "block_attention", attended_like_transformers)
        check_patched_model(case, dtype)


def stored_inputs(case, prefix, model):
    """The stored tensors whose names ``model`` takes."""
    names = inspect.signature(model.forward).parameters
    found = {name: case.tensors[f"{prefix}_{name}"] for name in names if f"{prefix}_{name}" in case.tensors}
    return {name: x if x.is_floating_point() else x.long() for name, x in found.items()}


def check_outputs(case, prefix, model, output, *, dtype, bias: Tensor | float = 0.0):
    """Logits of any head; those of padding count for nothing. transformers leaves ``lm_head.bias`` out."""
    compared = 0
    mask = case.tensors.get(f"{prefix}_attention_mask")
    for name in ("logits", "start_logits", "end_logits"):
        expected = case.tensors.get(f"{prefix}_{name}", case.tensors.get(f"{prefix}_{name}_hf"))
        if expected is not None:
            where = mask != 0 if mask is not None and expected.shape[:2] == mask.shape else ...
            actual = getattr(output, name)
            assert actual.dtype == (dtype if dtype == torch.bfloat16 else next(model.parameters()).dtype)
            stored = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
            assert_agrees(actual, expected + bias, f"{prefix}_{name}", dtype=stored, relative=True, where=where)
            compared += 1
    assert compared, f"the case stores no {prefix} logits"


def check_model_bfloat16(case):
    """In the stored buckets, since rounding moves tokens to others."""
    model = make_model(case, torch.bfloat16).eval()
    take_stored_buckets(case, "eval", model)
    output = model(**stored_inputs(case, "eval", model))
    bias = case.tensors["sd.lm_head.bias"] if hasattr(model, "lm_head") else 0.0
    check_outputs(case, "eval", model, output, dtype=torch.bfloat16, bias=bias)


def check_patched_model(case, dtype):
    """A whole model: a training step through the reversible layers, and evaluation at another length.

    The stored loss is one without ``lm_head.bias``, which transformers drops: 0 gives the same.
    """
    given = case.tensors
    if dtype == torch.bfloat16:
        return check_model_bfloat16(case)
    model = make_model(case, dtype).train()
    drawn = model.config.hash_seed is None  # rotations that nobody knows
    if drawn:
        take_stored_buckets(case, "train", model)
    bias = model.lm_head.bias if hasattr(model, "lm_head") else torch.zeros(())
    kept = bias.detach().clone()
    inputs = stored_inputs(case, "train", model)
    with torch.no_grad():
        bias.zero_()
    output = model(**inputs)
    assert_agrees(output.loss, given["train_loss"].reshape(()), "train_loss", dtype=torch.float32)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if f"grad.{name}" in given:
            assert_agrees(parameter.grad, given[f"grad.{name}"], f"grad.{name}", dtype=torch.float32, relative=True)
    targets = {"labels", "start_positions", "end_positions"}
    with torch.no_grad():
        bias.copy_(kept)
        output = model(**{name: x for name, x in inputs.items() if name not in targets})
        check_outputs(case, "train", model, output, dtype=dtype, bias=kept)

        model.eval()
        if drawn:
            take_stored_buckets(case, "eval", model)
        fit_number_of_buckets(case, model)
        inputs = stored_inputs(case, "eval", model)
        output = model(**{name: x for name, x in inputs.items() if name not in targets})
        check_outputs(case, "eval", model, output, dtype=dtype, bias=kept)
        backbone = {name: x for name, x in inputs.items() if name not in targets}
        outputs = model.reformer(**backbone, output_hidden_states=True, output_attentions=True)
        check_buckets(case, "eval", outputs, model)
        mask = given.get("eval_attention_mask")
        for index, state in enumerate(outputs.hidden_states):
            if f"eval_hidden_{index}" in given:
                expected = given[f"eval_hidden_{index}"][:, : state.shape[1]]
                where = ... if mask is None else mask != 0
                assert_agrees(state, expected, f"eval_hidden_{index}", dtype=torch.float32, where=where)
    return None


def check_decode(case, dtype):
    """A prompt, then one token at a time. Rows of the stored batch ran alone; here they run together.

    The step results are transformers' in float32, and so are the buckets, where rounding may decide.
    """
    if dtype == torch.bfloat16:
        return check_rounded_decode(case)
    meta, given = case.meta["config"], case.tensors
    out, steps, state, alone = decode(case, given["hidden_states"].to(dtype))
    if meta["kind"] != "decode_local" and not decoded_alike(case, state):
        return check_steps_in_stored_buckets(case, dtype)
    begin, length = meta["prefill"], given["hidden_states"].shape[1]
    expected = given["prefill_out"].double()
    size = max(1.0, expected.abs().max().item())
    found = ~alone[:, :begin]  # transformers is inexact where a query finds nothing in several rounds
    # Stored in float32, whatever we compute in.
    assert_agrees(out[:, :begin], expected, "prefill_out", dtype=torch.float32, where=found)
    torch.testing.assert_close(out[:, :begin].double(), expected, atol=2e-2 * size, rtol=0)
    assert_agrees(steps, given["step_out"], "step_out", dtype=torch.float32)
    assert state.get_seq_length() == length and (state.lengths == length).all()
    return None


def buckets_of(meta):
    return meta.get("num_buckets_used") or meta["num_buckets"]


def decoded_alike(case, state) -> bool:
    """Whether the cache's buckets are those that are stored.

    Rounding may turn one. And transformers numbers the rounds of new tokens as if there were no bucket of padding, if
    no token of the prompt's last round lies in a high one: then stored buckets are those of no hashing.
    """
    meta, given = case.meta["config"], case.tensors
    offset = bool(meta["prefill_zero_padding"])
    for name in ("prefill_buckets", "final_buckets"):
        if name in given:
            stored = given[name].long()
            ours = with_offsets(state.buckets[..., : stored.shape[-1]], buckets_of(meta), offset)
            differ = ours != stored
            if offset:
                differ &= with_offsets(state.buckets[..., : stored.shape[-1]], buckets_of(meta), False) != stored
            assert differ.float().mean() <= 0.01, f"{name}: {int(differ.sum())} of {stored.numel()} differ"
            if not torch.equal(ours, stored):
                return False
    return True


def check_steps_in_stored_buckets(case, dtype):
    """The operator alone, step by step."""
    meta, given = case.meta["config"], case.tensors
    hidden, begin, stored = given["hidden_states"].to(dtype), meta["prefill"], given["final_buckets"]
    query_key, value = (heads(hidden @ given[f"{n}_weight"].to(dtype).T, meta["heads"]) for n in ("query_key", "value"))
    unhashed = begin if begin > meta["chunk"] else max(meta["chunk"], begin + 1)  # the last step that sees everything
    for step in range(meta["steps"]):
        newest = begin + step + 1
        if newest <= unhashed:
            continue
        rows = (x[:, :, :newest] for x in (query_key, value))
        out = lsh_decode(
            *rows,
            stored[..., :newest],
            chunk_size=meta["chunk"],
            chunks_before=meta["before"],
            chunks_after=meta.get("after", 0),
            wrap=True,
        )
        out = out.transpose(1, 2).flatten(2)
        assert_agrees(out[:, 0], given["step_out"][:, step], f"step {step}", dtype=torch.float32)


def decode(case, hidden):
    """The prompt's output, that of the steps, the layer's cache, and bool ``[B, T, H * D]``: what found nothing."""
    meta, given = case.meta["config"], case.tensors
    local = meta["kind"] == "decode_local"
    options = dict(chunk_length=meta["chunk"], chunks_before=meta["before"], causal=meta["causal"])
    sizes = (meta["hidden_size"], meta["heads"], meta["head_size"])
    if local:
        layer, state = LocalSelfAttention(*sizes, wrap=True, **options), RingLayer(meta["chunk"] * (1 + meta["before"]))
    else:
        layer = LSHSelfAttention(
            *sizes,
            chunks_after=meta.get("after", 0),
            num_hashes=meta["num_hashes"],
            num_buckets=buckets_of(meta),
            hash_seed=meta["hash_seed"],
            semantics="original",
            **options,
        )
        state, rotations = RowsLayer(), given["rotations"]
        if meta["hash_seed"] is not None:
            assert torch.equal(seeded_rotations(hidden, meta["hash_seed"], tuple(rotations.shape)), rotations)
        layer.rotations = lambda *_: rotations
    names = [name for name in given if name.endswith("_weight")]
    layer.load_state_dict({f"{name.removesuffix('_weight')}.weight": given[name] for name in names})
    layer = layer.to(hidden.dtype).eval()
    begin, padding = meta["prefill"], meta["prefill_zero_padding"]
    prompt = torch.nn.functional.pad(hidden[:, :begin], (0, 0, 0, padding))
    mask = (torch.arange(begin + padding) < begin).expand(len(hidden), -1) if padding else None
    with torch.no_grad():
        out = layer(prompt, mask, Decisions(), state=state, length=begin)
        values = layer.join(layer.project(prompt)[-1])
        alone = torch.zeros_like(out, dtype=torch.bool) if local else out == values
        steps = [layer(token, None, Decisions(), state=state) for token in hidden[:, begin:].split(1, 1)]
    return out, torch.cat(steps, 1), state, alone


def check_rounded_decode(case):
    """bfloat16 against float64 of the same rounded inputs and weights, as long as they hash alike."""
    rounded = type(case)(case.path)
    rounded.content = (
        {name: x.bfloat16() if name.endswith(("_weight", "_states")) else x for name, x in case.tensors.items()},
        case.meta,
    )
    hidden = rounded.tensors["hidden_states"]
    (out, steps, state, _), (exact, exact_steps, exact_state, _) = (
        decode(rounded, hidden.to(dtype)) for dtype in (torch.bfloat16, torch.float64)
    )
    hashed = not isinstance(state, RingLayer) and state.buckets is not None  # a short text is not
    alike = not hashed or torch.equal(state.buckets, exact_state.buckets)
    assert out.isfinite().all() and steps.isfinite().all()
    if alike:
        assert_agrees(out, exact, "prefill_out", dtype=torch.bfloat16, relative=True)
        assert_agrees(steps, exact_steps, "step_out", dtype=torch.bfloat16, relative=True)


CHECKS = {"lsh": check_lsh, "local": check_local, "numpy": check_numpy, "model": check_model}
CHECKS |= {"decode_lsh": check_decode, "decode_local": check_decode}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32", "bfloat16"])
def test_reformer(case, dtype):
    kind = case.meta["config"]["kind"]
    if kind not in CHECKS:
        pytest.xfail(f"no check is known for cases of kind {kind!r}")
    CHECKS[kind](case, dtype)
