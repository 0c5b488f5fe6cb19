"""Texts that stand in one row, taken apart and put together again: a question and its document, two sentences.

B batch, T tokens of a row, N texts in a row, W tokens of the longest text (T where values cannot be looked at).
"""

import torch
from torch import Tensor


class Segments:
    """Takes rows of several texts apart, each as a row of its own that begins with its first token.

    Args:
        masks: for each of N texts bool ``[B, T]``, True at its tokens. Where texts share a token, the last counts for
            ``outward``.
    """

    def __init__(self, masks: list[Tensor]):
        members = torch.stack(masks)  # [N, B, T]
        self.num_texts = len(masks)
        owner = torch.full(masks[0].shape, -1, device=members.device)
        for number, mask in enumerate(masks):
            owner = owner.masked_fill(mask, number)
        self.owner = owner  # [B, T]: whose token it is, -1: padding
        order = (~members).byte().argsort(dim=-1, stable=True)  # [N, B, T]: where each place's token comes from
        self._place = order.argsort(dim=-1)
        width = members.shape[-1]
        if not torch.compiler.is_compiling() and members.device.type != "meta" and members.numel():
            width = max(1, int(members.sum(-1).max()))
        self.width = width
        self._order = order[..., :width].flatten(0, 1)  # [N B, W]
        self.mask = members.flatten(0, 1).gather(1, self._order)  # [N B, W]

    def inward(self, x: Tensor) -> Tensor:
        """``[B, T, ...]`` -> ``[N B, W, ...]``: all rows' first texts, then all rows' second texts."""
        rows = x.repeat(self.num_texts, *[1] * (x.dim() - 1))
        index = self._order.view(*self._order.shape, *[1] * (x.dim() - 2))
        return rows.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def outward(self, x: Tensor, *dims: int) -> Tensor:
        """``[N B, ..., W, ...]`` -> ``[B, ..., T, ...]``, tokens along each of ``dims``; zero where texts differ."""
        out = None
        for number, part in enumerate(x.unflatten(0, (self.num_texts, -1)).unbind(0)):
            place = self._place[number].clamp(max=self.width - 1)  # [B, T]
            own = self.owner == number
            for dim in dims:
                shape = [1] * part.dim()
                shape[0], shape[dim] = place.shape
                size = list(part.shape)
                size[dim] = place.shape[1]
                part = part.gather(dim, place.view(shape).expand(size)).masked_fill(~own.view(shape), 0.0)
            out = part if out is None else out + part
        assert out is not None
        return out
