"""Hashed attention by explicit multiplicities, in float64: what the LSH operators are compared with.

B batch, H heads, T tokens, D head size, R hash rounds. How often query i may use key j is one number of ``counts [B,
H, T, T]``, built here from the definition, with loops over chunks and comparisons of all pairs of tokens. Attention is

    out_i = sum_j N_ij e^{s_ij} v_j / sum_j N_ij e^{s_ij},   s_ij = x_i . x_j / sqrt(|x_j|^2 + D 1e-6)

and v_i where row i of N is zero.
"""

from itertools import pairwise, product

import numpy as np
import torch

EPSILON = 1e-6


def hashed(query_key, rotations, num_buckets, key_mask=None):
    """``(buckets [B, H, R, T], margin [B, H, R, T])``: margin is how far the best projection is from the next best."""
    factors = [num_buckets] if isinstance(num_buckets, int) else list(num_buckets)
    x, rotations = (np.asarray(tensor.detach().double()) for tensor in (query_key, rotations))
    buckets = np.zeros((x.shape[0], x.shape[1], rotations.shape[2], x.shape[2]), dtype=np.int64)
    margin = np.full(buckets.shape, np.inf)
    borders = np.cumsum([0] + [factor // 2 for factor in factors])
    strides = np.cumprod([1, *factors])
    for index in product(*(range(size) for size in buckets.shape)):
        batch, head, hash_round, token = index
        projected = x[batch, head, token] @ rotations[head, :, hash_round]
        for stride, (begin, end) in zip(strides, pairwise(borders), strict=False):
            signed = np.concatenate([projected[begin:end], -projected[begin:end]])
            best = int(np.argmax(signed))  # the first of equals
            buckets[index] += stride * best
            margin[index] = min(margin[index], signed[best] - np.delete(signed, best).max())
        if key_mask is not None and not key_mask[batch, token]:
            buckets[index], margin[index] = strides[-1], np.inf
    return torch.from_numpy(buckets), torch.from_numpy(margin)


def neighbour_counts(num_rounds, chunks_per_round, before, after, wrap):
    """``[NC, NC]``: how often chunk n (all rounds in a row) looks at chunk m.

    With ``wrap`` neighbours are counted modulo the chunks of all rounds, and an offset beyond their number means the
    own chunk. Without it they end where the round ends.
    """
    total = num_rounds * chunks_per_round
    counts = torch.zeros(total, total, dtype=torch.float64)
    for n in range(total):
        for offset in range(-before, after + 1):
            if wrap:
                counts[n, (n + offset) % total if abs(offset) <= total else n] += 1
            elif (n + offset) // chunks_per_round == n // chunks_per_round:
                counts[n, n + offset] += 1
    return counts


def lsh_counts(
    buckets, *, chunk_size, chunks_before=1, chunks_after=0, causal=False, wrap=False, same_bucket=False,
    deduplicate=False, key_mask=None,
):  # fmt: skip
    """How often each query may use each key, ``[B, H, T, T]``, the query itself excepted."""
    B, H, R, T = buckets.shape
    per_round = -(-T // chunk_size)
    near = neighbour_counts(R, per_round, chunks_before, chunks_after, wrap)
    place = buckets.argsort(dim=-1, stable=True).argsort(-1)  # the smaller position first among equal buckets
    chunk = place // chunk_size + per_round * torch.arange(R)[:, None]  # [B, H, R, T]
    counts = torch.zeros(B, H, T, T, dtype=torch.float64)
    for ours, theirs in product(range(R), range(R)):
        pairs = near[chunk[:, :, ours, :, None], chunk[:, :, theirs, None, :]] if T else counts.clone()
        if same_bucket:
            equal = buckets[:, :, ours, :, None] == buckets[:, :, theirs, None, :]
            pairs = pairs * (equal if ours == theirs else 0)
        counts += pairs
    counts = counts * ~torch.eye(T, dtype=torch.bool)
    if causal:
        counts = counts.tril()
    if key_mask is not None:
        counts = counts * key_mask[:, None, None]
    return (counts > 0).double() if deduplicate else counts


def bucket_counts(buckets, *, window, key_mask=None):
    """The same for the newest ``window`` earlier keys of the query's bucket, round by round."""
    B, H, R, T = buckets.shape
    counts = torch.zeros(B, H, T, T, dtype=torch.float64)
    for hash_round in range(R):
        number = buckets[:, :, hash_round]
        fits = (number[..., :, None] == number[..., None, :]) & torch.ones(T, T, dtype=torch.bool).tril(-1)
        if key_mask is not None:
            fits = fits & key_mask[:, None, None] & key_mask[:, None, :, None]  # padding sees nothing itself
        as_new = fits.flip(-1).cumsum(-1).flip(-1)  # how many that fit are at least as new as key j
        counts += fits & (as_new <= window)
    return counts


def shared_attention(query_key, value, counts, keep=None):
    """``(out [B, H, T, D], lse [B, H, T])`` of shared-QK attention with multiplicities; ``keep`` multiplies weights."""
    T, D = query_key.shape[2:]
    key = query_key * (query_key.square().sum(-1, keepdim=True) + D * EPSILON).rsqrt()
    hidden = counts == 0
    alone = hidden.all(-1)
    scores = (query_key @ key.mT + counts.log()).masked_fill(hidden, -torch.inf)
    scores = scores.masked_fill(alone[..., None] & torch.eye(T, dtype=torch.bool), 0.0)  # its own value, as a constant
    lse = scores.logsumexp(-1) if T else scores.sum(-1)
    weights = scores.softmax(-1)
    if keep is not None:
        weights = torch.where(alone[..., None], weights, weights * keep)
    return weights @ value, lse.masked_fill(alone, -torch.inf)


def results(query_key, value, counts, grad_out, grad_lse, keep=None):
    """``out, lse, dx, dv`` in float64, for the loss ``sum(out grad_out) + sum(lse grad_lse)`` over finite lse."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in (query_key, value)]
    out, lse = shared_attention(*inputs, counts, keep)
    loss = (out * grad_out).sum() + (lse * grad_lse).masked_fill(lse == -torch.inf, 0).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)
