"""Attention over an explicit mask, in float64: what every operator is compared with."""

import torch


def masked_attention(query, key, value, visible, scale=None, keep=None):
    """query [B, H, T, D], visible broadcast to [B, H, T, S] -> (out, lse); keep multiplies the weights.

    ``visible`` is bool, or says how often each query sees each key.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.mT * scale + visible.to(query.dtype).log()).masked_fill(visible == 0, -torch.inf)
    lse = scores.logsumexp(-1) if key.shape[2] else scores.sum(-1) - torch.inf
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return (weights if keep is None else weights * keep) @ value, lse


def band_mask(num_heads, T, S, window, dilation):
    """bool [H, T, S], straight from the definition of banded_attention."""
    windows = [window] * num_heads if isinstance(window, tuple) else window
    dilations = [dilation] * num_heads if isinstance(dilation, int) else dilation
    offset = torch.arange(S) - (torch.arange(T) + S - T)[:, None]  # [T, S]
    mask = torch.zeros(num_heads, T, S, dtype=torch.bool)
    for head, ((left, right), step) in enumerate(zip(windows, dilations, strict=True)):
        steps = torch.div(offset, step, rounding_mode="floor")
        mask[head] = offset % step == 0
        mask[head] &= True if left is None else steps >= -left
        mask[head] &= True if right is None else steps <= right
    return mask


def random_inputs(B, H, T, S, D, dtype=torch.float64, requires_grad=False):
    query = torch.randn(B, H, T, D, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)
    key, value = (
        torch.randn(B, H, S, D, dtype=torch.float64).to(dtype).requires_grad_(requires_grad) for _ in range(2)
    )
    return query, key, value


def largest(tensor):
    return tensor.abs().max().item() if tensor.numel() else 0.0
