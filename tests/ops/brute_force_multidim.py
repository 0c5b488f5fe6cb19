"""Multi-dimensional attention from every score at once: what the operator is measured by."""

import torch


def visible_pairs(length, direction):
    query, key = torch.arange(length)[:, None], torch.arange(length)
    return {"forward": key < query, "backward": key > query, "diagonal_free": key != query, "full": key == key}[
        direction
    ].expand(length, length)


def every_score(dependent, head, value, bias, *, direction, key_mask=None, scale=5.0):
    """``out``, ``lse`` and the weights ``[B, queries, keys, D]``, with all scores at once."""
    scores = scale * torch.tanh((dependent[:, None] + head[:, :, None] + bias) / scale)
    visible = visible_pairs(head.shape[1], direction)[None]
    if key_mask is not None:
        visible = visible & key_mask[:, None] & key_mask[:, :, None]
    terms = torch.where(visible[..., None], scores.exp(), 0.0)
    total = terms.sum(2)
    some = torch.where(total > 0, total, 1.0)
    lse = torch.where(total > 0, some.log(), -torch.inf)
    weights = terms / some[:, :, None]
    return (weights * value[:, None]).sum(2), lse, weights
