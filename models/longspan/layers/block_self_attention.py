"""Masked block self-attention, mBloSA: attention within blocks of a text, then between them (Shen et al. 2018).

With blocks of r tokens its cost per feature is n r + (n / r)^2 instead of n^2.

B batch, T tokens, E features that come in, D features of one direction, r tokens of a block, m = ceil(T / r) blocks.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.layers.fusion import ContextFusion
from longspan.layers.multidim_self_attention import (
    Direction,
    DirectionalSelfAttention,
    GatedSelfAttention,
    MultidimSelfAttention,
)
from longspan.layers.source2token import Source2TokenPooling

Variant = Literal["reference", "paper"]


class MaskedBlockSelfAttention(nn.Module):
    """One direction of Bi-BloSA.

    Args:
        in_size: E.
        size: D.
        direction: "forward" or "backward".
        block_length: r.
        activation: elementwise.
        scale: bound of scores.
        dropout: of what linear layers take in.
        variant: "paper": the published equations. "reference": the authors' code, whose blocks are pooled by one
            linear layer, and which runs a whole DiSA over the blocks.
        mask_padding: blocks of padding alone are seen by none, and padding comes out as zeros. False: as in the
            authors' code, where they are seen, so that the result depends on the padded length.
        share_attention: attention within blocks and between them has the same weights, which the paper leaves open and
            the authors' code does not do.
    """

    def __init__(
        self,
        in_size: int,
        size: int,
        direction: Direction,
        *,
        block_length: int,
        activation: Callable[[Tensor], Tensor],
        scale: float,
        dropout: float,
        variant: Variant,
        mask_padding: bool = True,
        share_attention: bool = False,
    ):
        super().__init__()
        self.block_length, self.mask_padding, self.activation = block_length, mask_padding, activation
        self.dropout = nn.Dropout(dropout)
        self.map = nn.Linear(in_size, size)
        self.within = MultidimSelfAttention(size, direction, scale=scale, dropout=dropout)
        self.pooling = Source2TokenPooling(
            size, activation=activation, num_layers=1 if variant == "reference" else 2, dropout=dropout
        )
        self.share_attention = share_attention
        options = {"scale": scale, "dropout": dropout, "own_attention": not share_attention}
        if variant == "reference":
            self.between: nn.Module = DirectionalSelfAttention(size, size, direction, activation=activation, **options)
        else:
            self.between = GatedSelfAttention(size, direction, **options)
        self.fusion = ContextFusion(size, activation=activation, dropout=dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend.

        Args:
            x: ``[B, T, E]``; blocks are counted from the first token.
            mask: bool ``[B, T]``, True = a token, or None: all are.
            return_weights: also return weights, for inspection.

        Returns:
            ``[B, T, D]``; with weights those within blocks, ``[B, D, T, T]``, and between blocks, ``[B, D, m, m]``.
        """
        (batch, length, _), r = x.shape, self.block_length
        mapped = self.activation(self.map(self.dropout(x)))  # [B, T, D]
        blocks = _blocks(mapped, r)
        num_blocks, size = blocks.shape[1], blocks.shape[3]
        block_tokens = None  # [B m, r]
        if mask is not None or torch.compiler.is_compiling() or length % r:
            tokens = x.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
            block_tokens = _blocks(tokens, r).flatten(0, 1)
        local, weights = self.within(blocks.flatten(0, 1), block_tokens, return_weights)
        pooled = self.pooling(local, block_tokens).view(batch, num_blocks, size)

        block_mask = None  # a text without padding has no block of padding alone
        if mask is not None and self.mask_padding and block_tokens is not None:
            block_mask = block_tokens.any(-1).view(batch, num_blocks)
        shared = self.within if self.share_attention else None
        context, block_weights = self.between(pooled, block_mask, return_weights, shared)
        local = local.view(batch, num_blocks, r, size)
        spread = context[:, :, None].expand(batch, num_blocks, r, size)
        out = self.fusion(mapped, _tokens(local, length), _tokens(spread, length))
        if mask is not None and self.mask_padding:
            out = out.masked_fill(~mask[..., None], 0.0)
        return out, _within_text(weights, batch, length), block_weights


# Compiled graphs take blocks apart by index: sizes of reshaped tensors would tie them to lengths like the first one.


def _blocks(x: Tensor, block_length: int) -> Tensor:
    """``[B, T, ...]`` -> ``[B, m, r, ...]``, zero behind the last token."""
    length = x.shape[1]
    num_blocks = (length + block_length - 1) // block_length
    if not torch.compiler.is_compiling():
        missing = num_blocks * block_length - length
        padded = F.pad(x, (*[0, 0] * (x.dim() - 2), 0, missing))
        return padded.view(x.shape[0], num_blocks, block_length, *x.shape[2:])
    first = torch.arange(num_blocks, device=x.device) * block_length
    place = first[:, None] + torch.arange(block_length, device=x.device)  # [m, r]
    beyond = (place >= length).view(*place.shape, *[1] * (x.dim() - 2))
    return x[:, place.clamp(max=length - 1)].masked_fill(beyond, 0)


def _tokens(blocks: Tensor, length: int) -> Tensor:
    """``[B, m, r, D]`` -> ``[B, T, D]``."""
    if not torch.compiler.is_compiling():
        return blocks.flatten(1, 2)[:, :length]
    place = torch.arange(length, device=blocks.device)
    return blocks[:, place // blocks.shape[2], place % blocks.shape[2]]


def _within_text(weights: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Weights of blocks ``[B m, D, r, r]`` -> of the text ``[B, D, T, T]``, zero between blocks."""
    if weights is None:
        return None
    blocks = weights.unflatten(0, (batch, -1)).permute(0, 2, 3, 4, 1)  # [B, D, r, r, m]
    size, r, m = blocks.shape[1], blocks.shape[2], blocks.shape[4]
    text = weights.new_zeros(batch, size, m, r, m, r)
    text.diagonal(dim1=2, dim2=4).copy_(blocks)
    return text.view(batch, size, m * r, m * r)[:, :, :length, :length]
