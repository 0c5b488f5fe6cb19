"""Documents that share text belong to one family, and a family lies on one side of a split only.

Versions of one agreement share most of their sentences: a model that trained on one version has seen the other.
Families are found by name (what stands before the first ``-`` or ``.``) and by shared text (eight-word shingles).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

SHINGLE = 8  # words
SHARED = 0.10  # share of the smaller document's shingles that makes two documents relatives
COMMON = 80  # shingles in more documents than this are boilerplate of the field ("as is" clauses) and link nothing


def find_families(texts: Mapping[str, str]) -> dict[str, str]:
    """The family of every document, named after its first member in alphabetical order.

    Args:
        texts: document name -> text.
    """
    names = sorted(texts)
    parent = list(range(len(names)))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    first_of: dict[str, int] = {}
    for number, name in enumerate(names):
        join(number, first_of.setdefault(re.split(r"[-.]", name)[0], number))
    for one, other in _relatives([texts[name] for name in names]):
        join(one, other)
    return {name: names[root(number)] for number, name in enumerate(names)}


def draw_split(
    family: Mapping[str, str], weight: Mapping[str, float], *, test: float, validation: float, largest: int
) -> dict[str, str]:
    """The split (``train``, ``validation``, ``test``) of every document; families stay together.

    Families come in the order of a digest of their names, so the draw needs no random state and does not move when a
    family is added. The first ones fill the test part up to its share, the next ones the validation part.

    Args:
        family: document -> family.
        weight: document -> what it counts (1 for a document that has the question, 0 for others).
        test: share of the total weight in the test part.
        validation: share of the total weight in the validation part.
        largest: families with more documents always train (one of them could fill the test part alone).
    """
    total = sum(weight.values())
    documents = Counter(family.values())
    of_family: Counter[str] = Counter()
    for name, value in family.items():
        of_family[value] += weight.get(name, 0)  # pyright: ignore[reportArgumentType]
    part: dict[str, str] = {}
    filled = {"test": 0.0, "validation": 0.0}
    for name in sorted(documents, key=lambda value: hashlib.sha256(value.encode()).digest()):
        part[name] = "train"
        if documents[name] > largest:
            continue
        for split, share in (("test", test), ("validation", validation)):
            if filled[split] < share * total:
                part[name] = split
                filled[split] += of_family[name]
                break
    return {name: part[value] for name, value in family.items()}


def _relatives(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs of documents that share at least `SHARED` of the smaller one's shingles."""
    vocabulary: dict[str, int] = {}
    shingles = [_shingles(text, vocabulary) for text in texts]
    values = np.concatenate(shingles) if shingles else np.empty(0, np.uint64)
    owners = np.repeat(np.arange(len(texts)), [len(one) for one in shingles])
    order = np.lexsort((owners, values))  # equal shingles stand together, their documents in ascending order
    values, owners = values[order], owners[order]

    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(values)])
    usable = np.repeat(sizes <= COMMON, sizes)
    values, owners = values[usable], owners[usable]

    pairs: Counter[int] = Counter()
    for step in range(1, COMMON):  # every two documents of a group are `step` places apart for one step
        together = values[step:] == values[:-step]
        if not together.any():
            break
        codes = owners[:-step][together] * len(texts) + owners[step:][together]
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            pairs[int(code)] += int(count)
    found = []
    for code, count in pairs.items():
        one, other = divmod(code, len(texts))
        if count >= SHARED * min(len(shingles[one]), len(shingles[other])):
            found.append((one, other))
    return found


def _shingles(text: str, vocabulary: dict[str, int]) -> np.ndarray:
    """Distinct fingerprints (uint64) of all runs of `SHINGLE` words."""
    words = re.findall(r"[a-z]+", text.lower())
    ids = np.array([vocabulary.setdefault(word, len(vocabulary) + 1) for word in words], dtype=np.uint64)
    count = len(ids) - SHINGLE + 1
    if count < 1:
        return np.empty(0, np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)  # odd, so that products modulo 2^64 lose nothing
    prints = np.zeros(count, np.uint64)
    for place in range(SHINGLE):  # Horner's rule, modulo 2^64
        prints = prints * factor + ids[place : place + count]
    return np.unique(prints)
