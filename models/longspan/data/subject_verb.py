"""Sentences whose verb must agree with a subject some nouns ago: number agreement with attractors.

After Linzen, Dupoux and Goldberg 2016, who took such sentences from text; these are drawn from a small grammar. An
attractor is a noun between subject and verb whose number is not the subject's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

_SINGULAR = (
    "author", "pilot", "farmer", "key", "boat", "letter", "window", "river",
    "planet", "doctor", "teacher", "report", "garden", "car",
)  # fmt: skip
NOUNS = {name: f"{name}s" for name in _SINGULAR}
VERBS = {  # plural, as it is found in a dictionary -> singular
    "admire": "admires", "open": "opens", "follow": "follows", "like": "likes", "know": "knows", "need": "needs",
}  # fmt: skip
PREPOSITIONS = ("near", "behind", "beside", "of", "above")
ADJECTIVES = ("old", "small", "green", "famous", "quiet")
ADVERBS = ("often", "now", "never", "today")
FRAME = ("the", "that", "and", ".")
WORDS = tuple(sorted({*NOUNS, *NOUNS.values(), *VERBS, *VERBS.values(), *PREPOSITIONS, *ADJECTIVES, *ADVERBS, *FRAME}))
"""Vocabulary; the id of ``WORDS[i]`` is ``i + 2``."""
PAD, START, FIRST = 0, 1, 2
VOCAB_SIZE = FIRST + len(WORDS)
WORD_IDS = {word: number for number, word in enumerate(WORDS, FIRST)}


@dataclass(frozen=True)
class Agreement:
    """A sentence and its verb.

    Args:
        words: the sentence.
        subject: place of the noun.
        verb: place of the verb that agrees with it.
        other: that verb in the other number.
        attractors: nouns between them whose number is not the subject's.
    """

    words: tuple[str, ...]
    subject: int
    verb: int
    other: str
    attractors: int


def _noun(plural: bool, draw: Random) -> list[str]:
    noun = draw.choice(list(NOUNS))
    adjective = [draw.choice(ADJECTIVES)] if draw.random() < 0.2 else []
    return ["the", *adjective, NOUNS[noun] if plural else noun]


def _verb(plural: bool, draw: Random) -> str:
    verb = draw.choice(list(VERBS))
    return verb if plural else VERBS[verb]


def draw_sentence(attractors: int, draw: Random) -> Agreement:
    """A sentence with so many attractors, and at most two nouns more between subject and verb.

    What stands between are phrases ("near the boats") and clauses ("that the pilots know", "that admire the boats"),
    whose own verbs agree with their own subjects. Half of the sentences begin with a phrase or another sentence, so
    that the subject is not the first noun.
    """
    lead = draw.random()
    words: list[str] = []
    if lead < 0.25:
        words = [draw.choice(PREPOSITIONS), *_noun(draw.random() < 0.5, draw)]
    elif lead < 0.5:
        several = draw.random() < 0.5
        words = [*_noun(several, draw), _verb(several, draw), *_noun(draw.random() < 0.5, draw), "and"]
    plural = draw.random() < 0.5
    numbers = [not plural] * attractors + [plural] * draw.choice((0, 0, 0, 1, 2))
    draw.shuffle(numbers)
    words += _noun(plural, draw)
    subject = len(words) - 1
    clause_of = plural  # number of the noun that a clause belongs to
    for number in numbers:
        kind = draw.random()
        if kind < 0.6:
            words += [draw.choice(PREPOSITIONS), *_noun(number, draw)]
            clause_of = number
        elif kind < 0.8:
            words += ["that", _verb(clause_of, draw), *_noun(number, draw)]
            clause_of = number
        else:
            words += ["that", *_noun(number, draw), _verb(number, draw)]
    verb = _verb(plural, draw)
    other = next(pair[verb == pair[0]] for pair in VERBS.items() if verb in pair)
    rest = draw.choice(([], _noun(draw.random() < 0.5, draw), [draw.choice(ADVERBS)]))
    return Agreement((*words, verb, *rest, "."), subject, len(words), other, attractors)


class AgreementDataset(Dataset[dict[str, Any]]):
    """Sentences for a language model, with the place where one verb form must be likelier than the other.

    Item ``i`` depends on all arguments but ``count``, and on ``i``. Each has ``input_ids`` (int64, a start and the
    words), ``labels`` (the same), ``verb`` (place of the verb's id), ``other`` (id of the wrong form), ``attractors``.

    Args:
        count: number of sentences.
        attractors: how many each may have; the first is the commonest, each further a quarter as frequent as the one
            before, as such sentences are rare in text.
        seed: of the sentences.
    """

    def __init__(self, count: int, *, attractors: Sequence[int] = (0, 1, 2, 3, 4, 5), seed: int = 0) -> None:
        if not attractors or min(attractors) < 0:
            raise ValueError(f"attractors must name numbers of at least 0, got {list(attractors)}")
        self.count, self.attractors, self.seed = count, tuple(attractors), seed

    def __len__(self) -> int:
        return self.count

    def sentence(self, index: int) -> Agreement:
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = Random(f"{self.seed} {self.attractors} {index}")
        weights = [0.25**place for place in range(len(self.attractors))]
        return draw_sentence(draw.choices(self.attractors, weights)[0], draw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sentence = self.sentence(index)
        ids: Tensor = torch.tensor([START, *(WORD_IDS[word] for word in sentence.words)])
        return {
            "input_ids": ids,
            "labels": ids,
            "verb": sentence.verb + 1,
            "other": WORD_IDS[sentence.other],
            "attractors": sentence.attractors,
        }
