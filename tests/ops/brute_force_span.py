"""Attention with a soft span over every pair of query and key, in float64, differentiated by autograd."""

import torch


def span_weights(span, offset, *, max_span, ramp, bidirectional):
    """m(x), by the formula: span [H] or [B, H, T], offset [T, S] of keys after their query -> [B or 1, H, T, S]."""
    z = span[None, :, None, None] if span.dim() == 1 else span[..., None]
    x = offset.abs() if bidirectional else -offset - 1
    mask = torch.clamp((ramp + z - x) / ramp, 0, 1)
    return mask * ((x >= 0) & (x < max_span))


def every_pair(
    query, key, value, position_key, span, *,
    max_span, ramp, zero_cache=False, bidirectional=False, key_mask=None, scale=None, keep=None,
):  # fmt: skip
    """-> (out, lse); keep [B, H, T, S] multiplies the weights after the normalisation."""
    T, S = query.shape[2], key.shape[2]
    scale = query.shape[3] ** -0.5 if scale is None else scale
    before = max_span if zero_cache else 0
    key, value = (torch.nn.functional.pad(x, (0, 0, before, 0)) for x in (key, value))
    offset = torch.arange(-before, S) - (torch.arange(T) + S - T)[:, None]
    scores = query @ key.mT
    if position_key is not None:
        if bidirectional and position_key.shape[1] == 2 * max_span - 1:
            row = offset + max_span - 1
        else:
            row = offset.abs() if bidirectional else -offset - 1
        row = row.clamp(0, position_key.shape[1] - 1).expand(*scores.shape)
        scores = scores + (query @ position_key.mT).gather(3, row)
    weights = span_weights(span, offset, max_span=max_span, ramp=ramp, bidirectional=bidirectional)
    if key_mask is not None:
        weights = weights * torch.nn.functional.pad(key_mask, (before, 0), value=True)[:, None, None]
    if scores.shape[3] == 0:
        return torch.zeros_like(query) + 0 * scores.sum(), scores.sum(-1) - torch.inf
    scores = scores * scale
    # Only visible keys: others may score anything. Where the weight is 0 its slope still counts the score.
    seen = weights > 0
    top = scores.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0).detach()
    terms = weights * torch.exp((scores - top).clamp(max=80))
    total = terms.sum(-1, keepdim=True)
    some = seen.any(-1, keepdim=True).expand_as(total)
    share = torch.where(some, terms / torch.where(some, total, 1.0), 0.0)
    if keep is not None:
        share = share * torch.nn.functional.pad(keep, (before, 0), value=1.0)
    lse = torch.where(some, total, 1.0).log() + top
    return share @ value, torch.where(some, lse, -torch.inf)[..., 0]
