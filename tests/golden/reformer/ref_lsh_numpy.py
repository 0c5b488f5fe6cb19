"""Brute-force float64 NumPy reference for Reformer LSH attention and local attention.

Written from the equations; shares no code with any implementation.
Deliberately slow: explicit Python loops, one query at a time, the window of every query is a
*multiset* of key positions that is written out in full.

Shapes: B batch, H heads, L length, D head size, R hash rounds, c chunk length.

    buckets   [B, H, R, L] integers.  Values of different rounds must not overlap
              (round r's values all smaller than round r+1's), i.e. offsets already added.
    qk, v     [B, H, L, D] (projected, heads split, NOT normalised)
"""
import numpy as np

MASK_VALUE = -1e9        # forbidden key (padding key, or future key in a causal layer)
SELF_VALUE = -1e5        # the query's own position: only wins when nothing else is allowed


# ---------------------------------------------------------------- hashing
def hash_buckets(vecs, rotations, num_buckets, attention_mask=None, force_pad_bucket=False):
    """vecs [B,H,L,D], rotations [H,D,R,sum(factors)/2] -> buckets [B,H,R,L] (offsets added), margin."""
    factors = [num_buckets] if np.isscalar(num_buckets) else list(num_buckets)
    vecs, rotations = np.asarray(vecs, np.float64), np.asarray(rotations, np.float64)
    B, H, L, D = vecs.shape
    R = rotations.shape[2]
    proj = np.einsum("bhld,hdrk->bhrlk", vecs, rotations)
    out = np.zeros((B, H, R, L), np.int64)
    margin = np.full((B, H, R, L), np.inf)
    lo, stride = 0, 1
    for f in factors:
        half = f // 2
        p = proj[..., lo:lo + half]
        signed = np.concatenate([p, -p], -1)          # bucket j<half: +axis j ; j>=half: -axis (j-half)
        out += stride * np.argmax(signed, -1)         # first factor varies fastest
        srt = np.sort(signed, -1)
        margin = np.minimum(margin, srt[..., -1] - srt[..., -2])
        lo, stride = lo + half, stride * f
    total = stride
    padded = attention_mask is not None and (np.asarray(attention_mask) == 0).any()
    if padded:
        out = np.where(np.asarray(attention_mask, bool)[:, None, None, :], out, total)
    if padded or force_pad_bucket:
        total += 1
    out += (np.arange(R) * total)[None, None, :, None]
    return out, margin


def auto_num_buckets(L, chunk, max_position_embeddings):
    """HF rule. Returns int or [a, b]."""
    p = (2 * (L // chunk)).bit_length() - 1
    n = 1 << p
    limit = 2 * max(int((max_position_embeddings // chunk) ** 0.5), chunk)
    return [1 << (p // 2), 1 << (p - p // 2)] if n > limit else n


# ---------------------------------------------------------------- windows
def neighbour_chunks(n, num_chunks, before, after):
    """Chunks seen by chunk n, oldest offset first (this is the key order inside a window)."""
    out = []
    for t in range(-before, after + 1):
        # wrap-around; an offset larger than the number of chunks degenerates to "no shift" in HF
        out.append((n + t) % num_chunks if abs(t) <= num_chunks else n)
    return out


def lsh_windows(buckets_bh, chunk, before, after):
    """buckets_bh [R, L] -> windows[r][i] = list of key positions (with multiplicity, in order)."""
    R, L = buckets_bh.shape
    assert L % chunk == 0
    flat = buckets_bh.reshape(-1)
    order = sorted(range(R * L), key=lambda t: (flat[t], t))     # stable: bucket, then round/position
    nchunks = R * L // chunk
    windows = [[None] * L for _ in range(R)]
    for s, t in enumerate(order):
        keys = []
        for m in neighbour_chunks(s // chunk, nchunks, before, after):
            keys += [u % L for u in order[m * chunk:(m + 1) * chunk]]
        windows[t // L][t % L] = keys
    return windows


def key_buckets_in_window(buckets_bh, chunk, before, after):
    """Same as lsh_windows but returns the flat bucket id of every key slot (for bucket masking)."""
    R, L = buckets_bh.shape
    flat = buckets_bh.reshape(-1)
    order = sorted(range(R * L), key=lambda t: (flat[t], t))
    nchunks = R * L // chunk
    out = [[None] * L for _ in range(R)]
    for s, t in enumerate(order):
        ks = []
        for m in neighbour_chunks(s // chunk, nchunks, before, after):
            ks += [int(flat[u]) for u in order[m * chunk:(m + 1) * chunk]]
        out[t // L][t % L] = ks
    return out


def normalise_keys(qk, eps=1e-6):
    """RMS-normalise then divide by sqrt(D): unit-length keys (up to eps). No further 1/sqrt(D)."""
    qk = np.asarray(qk, np.float64)
    return qk / np.sqrt(np.mean(qk * qk, -1, keepdims=True) + eps) / np.sqrt(qk.shape[-1])


# ---------------------------------------------------------------- attention
def lsh_attention(qk, v, buckets, chunk, before=1, after=0, causal=False, attention_mask=None,
                  dedup=False, same_bucket_only=False):
    """Returns dict(out [B,H,L,D], lse [B,H,R,L], round_out [B,H,R,L,D],
                    counts [B,H,R,L,L] uint8  - multiplicity of ALLOWED keys (not masked, not self),
                    selfcopies [B,H,R,L] uint8 - multiplicity of the query itself in its window).
    dedup=True            : variant of the paper's appendix, log N_ij subtracted (exact softmax over the union).
    same_bucket_only=True : variant: keys of a different bucket (of that round) are forbidden.
    """
    qk, v = np.asarray(qk, np.float64), np.asarray(v, np.float64)
    B, H, L, D = qk.shape
    R = buckets.shape[2]
    k = normalise_keys(qk)
    out = np.zeros((B, H, L, v.shape[-1]))
    rout = np.zeros((B, H, R, L, v.shape[-1]))
    lse = np.zeros((B, H, R, L))
    counts = np.zeros((B, H, R, L, L), np.uint8)
    selfc = np.zeros((B, H, R, L), np.uint8)
    for b in range(B):
        for h in range(H):
            win = lsh_windows(buckets[b, h], chunk, before, after)
            kb = key_buckets_in_window(buckets[b, h], chunk, before, after) if same_bucket_only else None
            # first pass: which keys are allowed, how often
            for r in range(R):
                for i in range(L):
                    for n, j in enumerate(win[r][i]):
                        if j == i:
                            selfc[b, h, r, i] += 1
                        elif causal and j > i:
                            continue
                        elif attention_mask is not None and not attention_mask[b][j]:
                            continue
                        elif same_bucket_only and kb[r][i][n] != buckets[b, h, r, i]:
                            continue
                        else:
                            counts[b, h, r, i, j] += 1
            N = counts[b, h].astype(np.int64).sum(0)
            for r in range(R):
                for i in range(L):
                    scores, vals = [], []
                    for n, j in enumerate(win[r][i]):
                        if j == i:
                            s = SELF_VALUE
                        elif causal and j > i:
                            s = MASK_VALUE
                        elif attention_mask is not None and not attention_mask[b][j]:
                            s = MASK_VALUE
                        elif same_bucket_only and kb[r][i][n] != buckets[b, h, r, i]:
                            s = MASK_VALUE
                        else:
                            s = float(qk[b, h, i] @ k[b, h, j])
                            if dedup:
                                s -= np.log(N[i, j])
                        scores.append(s)
                        vals.append(v[b, h, j])
                    scores = np.array(scores)
                    m = scores.max()
                    z = m + np.log(np.exp(scores - m).sum())
                    lse[b, h, r, i] = z
                    rout[b, h, r, i] = np.exp(scores - z) @ np.array(vals)
            m = lse[b, h].max(0)
            w = np.exp(lse[b, h] - (m + np.log(np.exp(lse[b, h] - m).sum(0))))
            out[b, h] = (w[..., None] * rout[b, h]).sum(0)
    return dict(out=out, lse=lse, round_out=rout, counts=counts, selfcopies=selfc)


def lsh_attention_one_softmax(qk, v, counts):
    """The same result from the total multiplicities only: softmax of (q.k + log sum_r counts).
    Shows that the per-round logsumexp merge is one softmax over the union with multiplicity."""
    qk, v = np.asarray(qk, np.float64), np.asarray(v, np.float64)
    k = normalise_keys(qk)
    N = counts.astype(np.float64).sum(2)                       # [B,H,L,L]
    s = np.einsum("bhid,bhjd->bhij", qk, k)
    with np.errstate(divide="ignore"):
        s = np.where(N > 0, s + np.log(np.where(N > 0, N, 1)), -np.inf)
    alone = ~(N > 0).any(-1)                                   # no allowed key in any round -> itself
    s[alone] = -np.inf
    b, h, i = np.nonzero(alone)
    s[b, h, i, i] = 0.0
    s = s - s.max(-1, keepdims=True)
    p = np.exp(s)
    p /= p.sum(-1, keepdims=True)
    return np.einsum("bhij,bhjd->bhid", p, v), p, alone


def lsh_attention_grads(qk, v, counts, dout, eps=1e-6):
    """Analytic gradients of sum(out*dout) wrt qk (query AND key role) and v. Hashing is constant."""
    qk, v, dout = (np.asarray(a, np.float64) for a in (qk, v, dout))
    out, p, alone = lsh_attention_one_softmax(qk, v, counts)
    k = normalise_keys(qk)
    dv = np.einsum("bhij,bhid->bhjd", p, dout)
    dp = np.einsum("bhid,bhjd->bhij", dout, v)
    ds = p * (dp - (dout * out).sum(-1, keepdims=True))
    ds[alone] = 0.0                                            # self score is a constant
    dq = np.einsum("bhij,bhjd->bhid", ds, k)
    dk = np.einsum("bhij,bhid->bhjd", ds, qk)
    D = qk.shape[-1]
    r = 1.0 / np.sqrt(np.mean(qk * qk, -1, keepdims=True) + eps)
    # k = qk * r / sqrt(D);  dr/dqk = -r^3 * qk / D
    dqk = dq + (dk * r - qk * (r ** 3) * (dk * qk).sum(-1, keepdims=True) / D) / np.sqrt(D)
    return dqk, dv


def full_shared_qk_attention(qk, v, causal=False, attention_mask=None):
    """Branch used when L <= chunk: every key once, same masks, no hashing."""
    B, H, L, D = np.asarray(qk).shape
    counts = np.zeros((B, H, 1, L, L), np.uint8)
    for b in range(B):
        for i in range(L):
            for j in range(L):
                if j != i and not (causal and j > i) and (attention_mask is None or attention_mask[b][j]):
                    counts[b, :, 0, i, j] = 1
    return lsh_attention_one_softmax(qk, v, counts)[0], counts


def local_attention(q, k, v, chunk, before=1, after=0, causal=False, attention_mask=None):
    """q,k,v [B,H,L,D]; ordinary scale 1/sqrt(D); self allowed; wrap-around of the first/last chunk.
    If every key of a row is forbidden all its scores equal -1e9 -> uniform average over the window."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    B, H, L, D = q.shape
    out = np.zeros_like(q)
    counts = np.zeros((B, L, L), np.uint8)
    full = L <= chunk
    for b in range(B):
        for i in range(L):
            if full:
                keys = list(range(L))
            else:
                keys = []
                for m in neighbour_chunks(i // chunk, L // chunk, before, after):
                    keys += list(range(m * chunk, (m + 1) * chunk))
            ok = [not (causal and j > i) and (attention_mask is None or bool(attention_mask[b][j])) for j in keys]
            for j, o in zip(keys, ok):
                counts[b, i, j] += o
            for h in range(H):
                s = np.array([q[b, h, i] @ k[b, h, j] / np.sqrt(D) if o else MASK_VALUE for j, o in zip(keys, ok)])
                p = np.exp(s - s.max())
                p /= p.sum()
                out[b, h, i] = p @ v[b, h, keys]
    return out, counts
