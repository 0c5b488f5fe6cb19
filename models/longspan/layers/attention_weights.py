"""Attention weights of a sliding window with global tokens, for looking at: attention itself never holds them.

B batch, H heads, T tokens, D head size, G slots for global tokens, W columns of the band.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.layers.global_tokens import GlobalTokens
from longspan.ops import banded_scores


def window_weights(
    query: Tensor,
    key: Tensor,
    *,
    window: tuple[int, int],
    dilation,
    key_mask: Tensor | None,
    token_mask: Tensor | None = None,
    global_tokens: GlobalTokens | None = None,
    global_key: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Weights of ordinary tokens, ``[B, H, T, G + W]``.

    The first G columns are the global tokens in the order of their positions (0 in an empty slot). The others are the
    band: column ``G + c`` of token t is the token at ``t + dilation * (c - left)``; out of range, at padding and at a
    global token, which has its own column, it is 0. The rows of global tokens and of padding are 0.

    Args:
        query: ``[B, H, T, D]``.
        key: ``[B, H, T, D]``.
        window: as for ``banded_attention``.
        dilation: as for ``banded_attention``.
        key_mask: bool ``[B, T]``, keys of the band.
        token_mask: bool ``[B, T]``, False at padding.
        global_tokens: None where there is none.
        global_key: keys of the global tokens, ``[B, H, G, D]``.
        causal: whether a global token is hidden from earlier ones.
    """
    scores = banded_scores(query, key, window=window, dilation=dilation, key_mask=key_mask)
    beyond = [max(0, side - key.shape[2]) for side in window]  # columns that no token of a short text has
    scores = F.pad(scores, beyond, value=-torch.inf)
    silent = None if token_mask is None else ~token_mask
    if global_tokens is not None and global_key is not None:
        columns = (query @ global_key.mT).to(scores.dtype) * query.shape[3] ** -0.5  # [B, H, T, G]
        seen = global_tokens.filled[:, None, None]
        if causal:
            position = torch.arange(query.shape[2], device=query.device)
            seen = seen & (global_tokens.index[:, None, None] <= position[:, None])
        scores = torch.cat([columns.masked_fill(~seen, -torch.inf), scores], -1)
        silent = global_tokens.is_global if silent is None else silent | global_tokens.is_global
    weights = scores.softmax(-1).nan_to_num(0.0)  # a token that sees nothing
    if silent is not None:
        weights = weights.masked_fill(silent[:, None, :, None], 0.0)
    return weights.to(query.dtype)


def global_weights(
    query: Tensor, key: Tensor, token_mask: Tensor | None, global_tokens: GlobalTokens, *, causal: bool = False
) -> Tensor:
    """Weights of global tokens, ``[B, H, T, G]``: column g is what global token g sees of each token.

    Args:
        query: queries of the global tokens, ``[B, H, G, D]``.
        key: the global projection of all tokens, ``[B, H, T, D]``.
        token_mask: bool ``[B, T]``, False at padding.
        global_tokens: whose empty slots give zeros.
        causal: whether a global token sees only what is not later than itself.
    """
    scores = (key @ query.mT).to(torch.promote_types(key.dtype, torch.float32)) * query.shape[3] ** -0.5  # [B, H, T, G]
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask[:, None, :, None], -torch.inf)
    if causal:
        position = torch.arange(key.shape[2], device=key.device)[:, None]
        scores = scores.masked_fill(position > global_tokens.index[:, None, None], -torch.inf)
    weights = scores.softmax(2).nan_to_num(0.0)
    return weights.masked_fill(~global_tokens.filled[:, None, None], 0.0).to(query.dtype)
