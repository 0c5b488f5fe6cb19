"""Global tokens: the few positions that see, and are seen by, the whole text (Beltagy et al. 2020, section 3.1).

B batch, T tokens, G slots for global tokens: the largest number in the batch, or a fixed bound.
"""

from typing import NamedTuple

import torch
from torch import Tensor

COMPILED_LIMIT = 64  # slots where shapes are fixed and no bound is given


class GlobalTokens(NamedTuple):
    """The global tokens of a batch, gathered to a rectangle; examples with fewer than G leave slots empty."""

    is_global: Tensor  # bool [B, T]
    index: Tensor  # int64 [B, G], positions in ascending order; 0 in an empty slot
    filled: Tensor  # bool [B, G], False in an empty slot


def collect_global_tokens(is_global: Tensor, limit: int | None = None) -> GlobalTokens | None:
    """Gather the positions of global tokens.

    In eager mode G is the largest number in the batch. In a compiled or exported graph the number is not known, so G
    is ``limit``, or 64 where that is None, and a batch with more makes the graph fail.

    Args:
        is_global: bool ``[B, T]``.
        limit: largest number of global tokens in an example.

    Returns:
        None where there is no global token at all (never in a compiled graph).

    Raises:
        ValueError: when an example has more than ``limit`` global tokens.
    """
    counts = is_global.sum(1)
    if torch.compiler.is_compiling():
        slots = COMPILED_LIMIT if limit is None else limit
        torch._assert_async(
            (counts <= slots).all(), f"more than {slots} global tokens in one example: raise config.max_global_tokens"
        )
    else:
        slots = int(counts.max()) if counts.numel() else 0
        if limit is not None and slots > limit:
            raise ValueError(
                f"global_attention_mask marks {slots} tokens of one example, max_global_tokens = {limit} allows no "
                "more: mark fewer, or raise config.max_global_tokens"
            )
        if slots == 0:
            return None
    # Each global token writes its position to the slot of its rank; all others write to a last slot that is cut off.
    slot = torch.where(is_global, is_global.cumsum(1) - 1, slots).clamp(max=slots)
    position = torch.arange(is_global.shape[1], device=is_global.device).expand_as(slot)
    index = slot.new_zeros(slot.shape[0], slots + 1).scatter(1, slot, position)[:, :slots]
    filled = torch.arange(slots, device=slot.device) < counts[:, None]
    return GlobalTokens(is_global, index.masked_fill(~filled, 0), filled)


def mark_first_token(tokens: Tensor) -> Tensor:
    """``tokens`` bool ``[B, T]``, False at padding -> bool ``[B, T]``, True at each row's first token."""
    return tokens & (tokens.cumsum(1) == 1)


def mark_before_separator(input_ids: Tensor, tokens: Tensor, separator: int) -> Tensor:
    """The first of two texts: everything before the first separator.

    A row that ends with its first separator holds a single text, which is not a question: there, and where no
    separator stands at all, it is the first token alone.

    Args:
        input_ids: ``[B, T]``.
        tokens: bool ``[B, T]``, False at padding.
        separator: id of the token between the texts.
    """
    begun, behind = _from_separator(input_ids, tokens, separator)
    return torch.where(behind.any(1, keepdim=True), tokens & ~begun, mark_first_token(tokens))


def mark_after_separator(input_ids: Tensor, tokens: Tensor, separator: int) -> Tensor:
    """The second of two texts: everything after the first separator, or the two in a row that RoBERTa writes.

    A row with nothing there has its first token marked. Arguments as for ``mark_before_separator``.
    """
    _, behind = _from_separator(input_ids, tokens, separator)
    second = mark_first_token(behind) & (input_ids == separator)
    chosen = behind & ~second
    return torch.where(chosen.any(1, keepdim=True), chosen, mark_first_token(tokens))


def _from_separator(input_ids: Tensor, tokens: Tensor, separator: int) -> tuple[Tensor, Tensor]:
    """Tokens from each row's first separator on, and those behind it: bool ``[B, T]`` both."""
    is_separator = (input_ids == separator) & tokens
    begun = (is_separator.cumsum(1) > 0) & tokens
    return begun, begun & ~mark_first_token(is_separator)
