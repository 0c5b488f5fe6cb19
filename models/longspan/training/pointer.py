"""Several questions in one pass: a pointer head over Longformer.

A linear span head finds *an* answer; with several questions about one document it has to find *the one that was asked
for*. Here a question's mean state points at tokens by cosine, so that the question decides, and a linear term says
which tokens can begin or end an answer at all:

    logit[k, i] = 10 t cos(W mean(h of question k), h_i) + w . h_i        (one W, t, w each for start and end)

Shapes: B examples, T tokens, Q questions, E hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from longspan.data.several import QuestionGroup
from longspan.data.spans import best_spans, merge_spans
from longspan.longformer import LongformerModel, LongformerPreTrainedModel
from longspan.training.evaluation import Answered, Result, Windows, take


@dataclass
class PointerOutput(ModelOutput):
    """``loss`` (with positions), ``start_logits`` and ``end_logits`` [B, Q, T]."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None


class PointerHead(nn.Module):
    """Logits of one edge (start or end) for every question and token, see the module."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.question = nn.Linear(hidden_size, hidden_size)
        self.edge = nn.Linear(hidden_size, 1)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, hidden_states: Tensor, questions: Tensor) -> Tensor:
        """[B, T, E] states and [B, Q, E] questions -> [B, Q, T]."""
        pointed = F.normalize(self.question(questions), dim=-1) @ F.normalize(hidden_states, dim=-1).mT
        return 10 * self.temperature * pointed + self.edge(hidden_states).mT


class LongformerForSeveralQuestions(LongformerPreTrainedModel):
    """Longformer that answers several questions on a document in one pass; inputs as `QuestionGroup` makes them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.start_head = PointerHead(config.hidden_size)
        self.end_head = PointerHead(config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointerHead):  # a question points at what looks like itself, at first
            init.eye_(module.question.weight)
            init.zeros_(module.question.bias)
            init.ones_(module.temperature)

    def forward(
        self,
        input_ids: Tensor,
        question_index: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> PointerOutput:
        """Point at the first and last token of every question's answer; only the document (type 1) can be pointed at.

        Args:
            input_ids: [B, T].
            question_index: [B, T], the question a token belongs to, from 0; -1 elsewhere.
            token_type_ids: [B, T], 1 for the document.
            attention_mask: [B, T].
            position_ids: [B, T].
            global_attention_mask: [B, T], 1 for the questions.
            start_positions: [B, Q], -100 where an example has fewer questions.
            end_positions: [B, Q].
        """
        states = self.longformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        ).last_hidden_state
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            count = int(question_index.max()) + 1
            member = F.one_hot(question_index + 1, count + 1)[..., 1:].to(states.dtype)  # [B, T, Q]
            questions = member.mT @ states / member.sum(1).clamp(min=1)[..., None]  # [B, Q, E]
            outside = token_type_ids[:, None] != 1  # [B, 1, T]
            if attention_mask is not None:
                outside = outside | (attention_mask[:, None] == 0)
            logits = [
                head(states, questions).masked_fill(outside, -torch.inf) for head in (self.start_head, self.end_head)
            ]
        loss = None
        if start_positions is not None and end_positions is not None:
            start, end = (
                F.cross_entropy(edge.flatten(0, 1), wanted.flatten(), ignore_index=-100)
                for edge, wanted in zip(logits, (start_positions, end_positions), strict=True)
            )
            loss = (start + end) / 2
        return PointerOutput(loss=loss, start_logits=logits[0], end_logits=logits[1])


@torch.no_grad()
def answer_groups(
    model: LongformerForSeveralQuestions,
    groups: Iterable[QuestionGroup],
    windows: Windows,
    *,
    max_answer_tokens: int,
    autocast: torch.dtype | None = None,
) -> Result:
    """Ask a model every group of questions, one group at a time.

    Args:
        model: it is set to evaluation mode.
        groups: what to ask.
        windows: how to read, see `longspan.training.evaluation`.
        max_answer_tokens: longest answer.
        autocast: run under autocast of this type; ``None``: as the weights are.
    """
    model.eval()
    answered: list[Answered] = []
    tokens, began = 0, time.perf_counter()
    for group in groups:
        parts = windows(group)
        found = [[] for _ in group.questions]
        for start, end in parts:
            reading = group.reading(start, end)
            inputs = {name: torch.tensor([row], device=model.device) for name, row in reading.items()}
            with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
                output = model(**inputs)
            inside = slice(group.before, group.before + end - start)
            for number, spans in enumerate(found):
                edges = (output.start_logits[0, number, inside], output.end_logits[0, number, inside])
                spans.append(best_spans(*edges, max_answer_tokens=max_answer_tokens))
            tokens += len(reading["input_ids"])
        starts = [start for start, _ in parts]
        for question, spans in zip(group.questions, found, strict=True):
            answered.append(take(question, merge_spans(spans, starts, top_k=1)))
    return Result(answered, tokens, time.perf_counter() - began)
