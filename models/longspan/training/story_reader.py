"""Reads stories sentence by sentence and answers the question, as the bAbI models of the Universal Transformer do.

B stories, S sentences with the question, W words, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longspan.data.stories import ANSWERS, WORDS, StoryCollator, StoryDataset
from longspan.layers.sentence_sum import SentenceSum
from longspan.universal_transformer import UniversalTransformerConfig, UniversalTransformerForSequenceClassification

MAX_WORDS = 16


class StoryReader(nn.Module):
    """Facts and question, one vector each, through an encoder; an answer out of `ANSWERS` from their mean.

    Args:
        config: of the encoder; read by its mean.
    """

    def __init__(self, config: UniversalTransformerConfig):
        super().__init__()
        self.config = config
        self.sentences = SentenceSum(len(WORDS) + 1, config.hidden_size, MAX_WORDS)
        self.classifier = UniversalTransformerForSequenceClassification(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        """``input_ids [B, S, W]``, ``attention_mask [B, S]``, ``labels [B]`` -> the classifier's, ``logits [B, A]``."""
        vectors = self.sentences(input_ids)
        return self.classifier(inputs_embeds=vectors, attention_mask=attention_mask, labels=labels)


def reader_config(**fields: Any) -> dict[str, Any]:
    """Fields that every reader has, and ``fields``."""
    fixed = {
        "is_encoder_decoder": False,
        "text_reading": "mean",
        "num_labels": len(ANSWERS),
        "vocab_size": 2,  # sentences come as vectors
        "scale_embedding": False,  # which are scaled already
    }
    return fixed | fields


@dataclass
class Reading:
    """What a model made of stories of one task.

    Args:
        stories: how many.
        wrong: of them answered wrongly.
        steps: of each story, those of its sentences, the question last; empty without adaptive computation.
        supporting: of each story, the numbers of its supporting facts.
    """

    stories: int
    wrong: int
    steps: list[list[int]]
    supporting: list[tuple[int, ...]]

    @property
    def error(self) -> float:
        """Per cent."""
        return 100 * self.wrong / self.stories


@torch.no_grad()
def read(model: StoryReader, stories: StoryDataset, batch_size: int = 100) -> dict[int, Reading]:
    """Answer all ``stories``; by task."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found: dict[int, Reading] = {}
    for begin in range(0, len(stories), batch_size):
        numbers = range(begin, min(begin + batch_size, len(stories)))
        batch = {name: x.to(device) for name, x in StoryCollator()([stories[number] for number in numbers]).items()}
        outputs = model(batch["input_ids"], batch["attention_mask"])
        wrong = (outputs.logits.argmax(-1) != batch["labels"]).tolist()
        steps = steps_of_sentences(outputs, batch["attention_mask"])
        for row, number in enumerate(numbers):
            story = stories.story(number)
            reading = found.setdefault(story.task, Reading(0, 0, [], []))
            reading.stories += 1
            reading.wrong += wrong[row]
            reading.supporting.append(story.supporting)
            reading.steps += steps[row : row + 1]
    model.train(was_training)
    return found


def steps_of_sentences(outputs: Any, attention_mask: Tensor) -> list[list[int]]:
    """Steps of every sentence of each story, padding left out; empty without adaptive computation."""
    if getattr(outputs, "n_updates", None) is None:
        return []
    lengths = attention_mask.sum(1).tolist()
    steps = outputs.n_updates.long().tolist()
    return [row[:length] for row, length in zip(steps, lengths, strict=True)]
