"""Work on a few tokens at a time: functions that see tokens one by one, and the loss over a large vocabulary.

T tokens, E hidden size, V vocabulary, N tokens of all examples together.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longspan.ops.tiled import autocast_dtype
from longspan.ops.transfers import bounds

LOGITS = 1 << 21  # held at a time where nothing else is said: 8 MiB of float32
ROWS = 1024  # tokens at a time where the number of words is not known


def pieces(length: int, rows: int) -> Iterator[slice]:
    """Slices of ``rows`` tokens that cover ``length``, the last one shorter; one slice for ``rows`` 0 or no tokens.

    Raises:
        ValueError: if ``rows`` is negative.
    """
    if rows < 0:
        raise ValueError(f"rows must be the number of tokens to take at a time, or 0 for all, got {rows}")
    rows = rows or max(length, 1)
    for begin in range(0, max(length, 1), rows):
        yield slice(begin, min(begin + rows, length))


def apply_chunked(function: Callable[[Tensor], Tensor], hidden: Tensor, rows: int) -> Tensor:
    """``function(hidden)`` for a function of single tokens, computed for ``rows`` tokens at a time.

    Without gradients only ``rows`` tokens' intermediate results exist at a time.

    Args:
        function: ``[..., T', E]`` -> ``[..., T', F]``.
        hidden: ``[..., T, E]``.
        rows: T', any number; 0 = all.

    Returns:
        ``[..., T, F]``.
    """
    length = hidden.shape[-2]
    if rows == 0 or length <= rows:
        return function(hidden)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([function(hidden[..., piece, :]) for piece in pieces(length, rows)], -2)
    out = None
    for piece in pieces(length, rows):
        part = function(hidden[..., piece, :])
        if out is None:
            out = part.new_empty(*part.shape[:-2], length, part.shape[-1])
        out[..., piece, :] = part
    assert out is not None
    return out


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    rows: int = 0,
    ignore_index: int = -100,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross entropy of ``hidden @ weight.T + bias``, whose logits never exist all at once, backward included.

    They are computed for some tokens at a time, and again in the backward pass; ignored tokens cost nothing. Under
    autocast the products run in its dtype; softmax and sums are float32 (float64 for float64). Inside torch.compile
    the logits do exist: a graph cannot look how many tokens count.

    Args:
        hidden: ``[..., E]``.
        weight: ``[V, E]``.
        bias: ``[V]`` or None.
        labels: integers ``[...]``, the word that each token is to predict: a causal model shifts them before.
        rows: tokens at a time, any number; 0 = as many as have 2 million logits. It changes time and memory alone.
        ignore_index: label of a token that does not count.
        num_items_in_batch: what to divide the sum by, as transformers' losses do under gradient accumulation; None:
            the mean over the tokens that count, NaN where none does, as ``F.cross_entropy`` gives.

    Returns:
        A number: 0-dim, at least float32.

    Raises:
        ValueError: if shapes do not fit, ``rows`` is negative or a label is neither a word nor ``ignore_index``.
    """
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must be [words, {hidden.shape[-1]}] for hidden {list(hidden.shape)}, got {list(weight.shape)}"
        )
    hidden, labels = _flatten(hidden, labels)
    if torch.compiler.is_compiling():
        return _at_once(F.linear(hidden, weight, bias), labels, ignore_index, num_items_in_batch)
    index, words = _counted(labels, ignore_index)
    _check_words(words, weight.shape[0], ignore_index)
    rows = rows or max(1, LOGITS // weight.shape[0])
    total = _LinearCrossEntropy.apply(hidden, weight, bias, index, words, rows)
    return _divide(total, len(index), num_items_in_batch)


def head_cross_entropy(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    rows: int = 0,
    ignore_index: int = -100,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """``linear_cross_entropy`` of whatever stands in the place of a linear layer: an adapter, a quantised layer.

    Args:
        head: called with ``[n, E]``, gives logits ``[n, V]``; drawing dropout is allowed.
        hidden: ``[..., E]``.
        labels: integers ``[...]``, the word that each token is to predict.
        bias: ``[V]``, added to the logits, or None.
        rows: tokens at a time, any number; 0 chooses.
        ignore_index: label of a token that does not count.
        num_items_in_batch: as in ``linear_cross_entropy``.

    Returns:
        A number: 0-dim, at least float32.

    Raises:
        ValueError: if shapes do not fit, ``rows`` is negative or a label is neither a word nor ``ignore_index``.
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "num_items_in_batch": num_items_in_batch}
    if type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks:
        both = bias if head.bias is None else head.bias if bias is None else head.bias + bias
        return linear_cross_entropy(hidden, head.weight, both, labels, rows=rows, **options)
    hidden, labels = _flatten(hidden, labels)
    if torch.compiler.is_compiling():
        logits = head(hidden)
        return _at_once(logits if bias is None else logits + bias, labels, ignore_index, num_items_in_batch)
    index, words = _counted(labels, ignore_index)

    def loss(index: Tensor, words: Tensor) -> Tensor:
        logits = head(hidden[index])
        _check_words(words, logits.shape[1], ignore_index)
        logits = logits.to(_wide(logits)) if bias is None else logits.to(_wide(logits)) + bias
        return F.cross_entropy(logits, words, reduction="sum")

    parts = [
        checkpoint(loss, index[piece], words[piece], use_reentrant=False) for piece in pieces(len(index), rows or ROWS)
    ]
    return _divide(torch.stack(parts).sum(), len(index), num_items_in_batch)


def _flatten(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``[N, E]`` and, on the same device, ``[N]``."""
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels must be {list(hidden.shape[:-1])} for hidden {list(hidden.shape)}, got {list(labels.shape)}"
        )
    return hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).to(hidden.device)


def _at_once(logits: Tensor, labels: Tensor, ignore_index: int, num_items_in_batch: Tensor | int | None) -> Tensor:
    total = F.cross_entropy(logits.to(_wide(logits)), labels, ignore_index=ignore_index, reduction="sum")
    return _divide(total, (labels != ignore_index).sum(), num_items_in_batch)


def _counted(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Places and labels of the tokens that count, both ``[n]``."""
    index = (labels != ignore_index).nonzero()[:, 0]
    return index, labels[index]


def _check_words(words: Tensor, vocab_size: int, ignore_index: int) -> None:
    if len(words) and not torch.compiler.is_compiling():
        low, high = bounds(words)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"labels must be words, 0 to {vocab_size - 1}, or {ignore_index} (ignored); got {low} to {high}"
            )


def _divide(total: Tensor, count: Tensor | int, num_items_in_batch: Tensor | int | None) -> Tensor:
    count = count if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)  # 0 / 0 is NaN


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over n tokens: ``hidden [N, E]``, ``weight [V, E]``, ``bias [V]`` or None, ``index`` and ``words [n]``."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, index, words, rows):
        ctx.rows, ctx.dtype = rows, _product_dtype(hidden, weight)
        lse = torch.empty(len(index), dtype=_wide(hidden), device=hidden.device)
        total = lse.new_zeros(())
        some, narrow_weight, narrow_bias = _narrow(ctx.dtype, hidden, weight, bias)
        for piece in pieces(len(index), rows):
            logits = F.linear(some(index[piece]), narrow_weight, narrow_bias).to(lse.dtype)  # [rows, V]
            torch.logsumexp(logits, 1, out=lse[piece])
            total += (lse[piece] - logits.gather(1, words[piece, None])[:, 0]).sum()
            del logits  # before the next are made
        ctx.save_for_backward(hidden, weight, bias, index, words, lse)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        hidden, weight, bias, index, words, lse = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=lse.dtype) if wanted[2] else None
        some, narrow_weight, narrow_bias = _narrow(ctx.dtype, hidden, weight, bias)
        for piece in pieces(len(index), ctx.rows):
            rows = some(index[piece])  # [rows, E]
            grad = F.linear(rows, narrow_weight, narrow_bias).to(lse.dtype)  # logits [rows, V]
            grad.sub_(lse[piece, None]).exp_()
            grad.scatter_add_(1, words[piece, None], grad.new_full((len(grad), 1), -1.0))
            grad.mul_(grad_out)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(ctx.dtype)
            if grad_weight is not None:
                grad_weight += grad.mT @ rows
            if grad_hidden is not None:
                grad_hidden[index[piece]] = (grad @ narrow_weight).to(hidden.dtype)
            del grad
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _narrow(dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor | None):
    """A function that gives rows of ``hidden``, and weight and bias, in the dtype of the products."""

    def some(index: Tensor) -> Tensor:
        return hidden[index].to(dtype)

    return some, weight.to(dtype), None if bias is None else bias.to(dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Of ``hidden @ weight.T``: autocast's, where that is on and not for float64."""
    return autocast_dtype(hidden) or torch.promote_types(hidden.dtype, weight.dtype)
