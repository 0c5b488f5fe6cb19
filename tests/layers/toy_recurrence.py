"""A small stack that is recurrent in depth: attention, convolution, a second sequence, and halting."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.layers.step_tokens import StepRows, StepTokens

WIDTH, HEADS, REACH = 8, 2, 2


def core(causal):
    """Plain attention, see ``step_tokens.Core``."""

    def attention(query, key, value, key_mask, query_column):
        num_queries, num_keys = query.shape[1], key.shape[1]
        query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))
        visible = torch.ones(query.shape[0], num_queries, num_keys, dtype=torch.bool)
        if causal:
            if query_column is None:
                query_column = (torch.arange(num_queries) + num_keys - num_queries).expand(query.shape[0], -1)
            visible = torch.arange(num_keys) <= query_column[..., None]
        if key_mask is not None:
            visible = visible & key_mask[:, None]
        scores = (query @ key.mT).masked_fill(~visible[:, None], -1e9)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    return attention


class ToyStack(nn.Module):
    """tanh(rows + attention + attention to a source + convolution), with positions and steps mixed in, and halting."""

    def __init__(self, causal: bool, frozen: str, max_steps: int = 6, everywhere: bool = False):
        super().__init__()
        self.causal, self.frozen, self.max_steps, self.everywhere = causal, frozen, max_steps, everywhere
        names = ("query", "key", "value", "source_query", "source_key", "source_value", "convolved")
        self.maps = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names})
        self.filter = nn.Parameter(torch.randn(REACH + 1, WIDTH))
        self.signal = nn.Parameter(torch.randn(64, WIDTH))
        self.unit = nn.Linear(WIDTH, 1)
        self.double()
        nn.init.normal_(self.unit.weight, std=2.0)
        nn.init.constant_(self.unit.bias, -1.0)

    def block(self, rows: Tensor, at: StepRows, source_mask: Tensor | None) -> Tensor:
        key, value = at.seen("key", self.maps["key"](rows)), at.seen("value", self.maps["value"](rows))
        query = self.maps["query"](rows)
        rows = rows + at.attend(core(self.causal), query, key, value, everywhere=self.everywhere)
        query = self.maps["source_query"](rows)
        given = at.provided("source_key"), at.provided("source_value")
        rows = torch.tanh(rows + at.attend_source(core(False), query, *given, source_mask))
        read = rows if at.row_mask is None else rows * at.row_mask[..., None]
        if self.causal:
            full = at.seen("convolution", read, reach=REACH)
        else:
            full = F.pad(at.seen("convolution", read), (0, 0, 1, 1))
        length = full.shape[1] - REACH
        full = sum(self.filter[i] * full[:, i : i + length] for i in range(REACH + 1))
        return torch.tanh(rows + self.maps["convolved"](at.rows_of(full)))  # type: ignore[arg-type]

    def forward(self, x, source, mask=None, past=None, packed=False, source_mask=None, skip_padding=True):
        """``x [B, T, C]`` -> weighted sum of states ``[B, T, C]``, steps done by each token ``[B, T]``."""
        batch, length = x.shape[:2]
        positions = torch.arange(length)[None]
        if past is not None:
            positions = past.next_positions(mask, batch, length, x.device)
        elif mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
        tokens = StepTokens(mask, positions, frozen=self.frozen, packed=packed, past=past)
        tokens.provide("source_key", lambda: self.maps["source_key"](source))
        tokens.provide("source_value", lambda: self.maps["source_value"](source))
        running = torch.ones(batch, length, dtype=torch.bool)
        if mask is not None and skip_padding:
            running = mask.clone()
        halting, output, counts = torch.zeros(batch, length).double(), torch.zeros_like(x), torch.zeros(batch, length)
        state, step, self.computed = x, 0, 0
        while step < self.max_steps and tokens.more(step, running):
            at = tokens.begin(step, running)
            rows = at.enter(state)
            rows = rows + self.signal[at.positions] + self.signal[-1 - step]
            self.computed += rows.shape[:-1].numel()
            chance = at.spread(torch.sigmoid(self.unit(rows))[..., 0])
            halt = running & ((halting + chance > 0.99) | (step == self.max_steps - 1))
            weight = torch.where(halt, 1 - halting, torch.where(running, chance, 0.0))
            halting, counts = halting + weight, counts + running
            new = self.block(rows, at, source_mask)
            state = at.leave(state, new)
            output = at.put(output, at.take(output) + at.take(weight)[..., None] * new)
            running, step = running & ~halt, step + 1
        tokens.finish()
        return output, counts
