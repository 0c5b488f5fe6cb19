"""Subject and verb: a parser of its own finds the subject, the verb and the attractors in the words alone."""

from collections import Counter

import pytest

from longspan.data.subject_verb import START, WORDS, AgreementDataset

VERBS = ("admire", "open", "follow", "like", "know", "need")
NOUNS = {word for word in WORDS if f"{word}s" in WORDS} - set(VERBS)
PLURAL = {f"{noun}s" for noun in NOUNS}
ALL_VERBS = {*VERBS, *(f"{verb}s" for verb in VERBS)}
PREPOSITIONS = {"near", "behind", "beside", "of", "above"}


class Parser:
    """Reads a sentence from the left; every verb on the way must agree with its own subject."""

    def __init__(self, words):
        self.words, self.at = words, 0
        if words[0] in PREPOSITIONS:
            self.at = 1
            self.noun()
        elif "and" in words:
            self.verb_of(self.number(self.noun()))
            self.noun()
            self.at += 1  # "and"
        self.subject = self.noun()
        nearest = plural = self.number(self.subject)
        self.between = []
        while self.words[self.at] not in ALL_VERBS:
            word = self.words[self.at]
            self.at += 1
            if word == "that" and self.words[self.at] == "the":
                self.between.append(self.number(self.noun()))
                self.verb_of(self.between[-1])
            else:
                if word == "that":
                    self.verb_of(nearest)
                else:
                    assert word in PREPOSITIONS
                nearest = self.number(self.noun())
                self.between.append(nearest)
        self.verb = self.at
        self.verb_of(plural)
        self.attractors = sum(number != plural for number in self.between)

    def noun(self):
        assert self.words[self.at] == "the"
        self.at += 1
        while self.words[self.at] not in PLURAL and self.words[self.at] not in NOUNS:
            self.at += 1
        self.at += 1
        return self.at - 1

    def number(self, place):
        return self.words[place] in PLURAL

    def verb_of(self, plural):
        word = self.words[self.at]
        assert word in ALL_VERBS and word.endswith("s") != plural, (self.words, self.at)
        self.at += 1


@pytest.mark.parametrize("attractors", range(6))
def test_a_parser_finds_subject_verb_and_attractors(attractors):
    dataset = AgreementDataset(300, attractors=[attractors], seed=attractors)
    for index in range(300):
        sentence = dataset.sentence(index)
        read = Parser(sentence.words)
        assert (read.subject, read.verb, read.attractors) == (sentence.subject, sentence.verb, attractors)
        assert sentence.attractors == attractors and sentence.words[-1] == "."
        verb = sentence.words[sentence.verb]
        assert {verb, sentence.other} == {verb.rstrip("s"), f"{verb.rstrip('s')}s"} <= ALL_VERBS


def test_variety_and_frequencies():
    dataset = AgreementDataset(3000)
    sentences = [dataset.sentence(index) for index in range(3000)]
    counts = Counter(sentence.attractors for sentence in sentences)
    assert set(counts) >= set(range(5)) and counts[0] > 3 * counts[1] > 9 * counts[2] > 9 * counts[3]
    assert len({sentence.words for sentence in sentences}) > 2900
    assert len({sentence.subject for sentence in sentences}) > 5
    plural = sum(sentence.words[sentence.subject] in PLURAL for sentence in sentences)
    assert 0.45 < plural / 3000 < 0.55
    assert {word for sentence in sentences for word in sentence.words} == set(WORDS)


def test_items():
    dataset, longer = AgreementDataset(20, seed=5), AgreementDataset(200, seed=5)
    for index in range(20):
        item, sentence = dataset[index], dataset.sentence(index)
        ids = item["input_ids"].tolist()
        assert ids[0] == START and [WORDS[number - 2] for number in ids[1:]] == list(sentence.words)
        assert item["labels"].tolist() == ids
        assert WORDS[ids[item["verb"]] - 2] == sentence.words[sentence.verb]
        assert WORDS[item["other"] - 2] == sentence.other and item["attractors"] == sentence.attractors
        assert longer.sentence(index) == sentence
    assert AgreementDataset(20, seed=6).sentence(0) != dataset.sentence(0)


def test_errors():
    with pytest.raises(ValueError, match=r"attractors must name numbers of at least 0, got \[\]"):
        AgreementDataset(3, attractors=[])
    with pytest.raises(ValueError, match=r"got \[1, -1\]"):
        AgreementDataset(3, attractors=[1, -1])
    with pytest.raises(IndexError):
        AgreementDataset(3)[3]
