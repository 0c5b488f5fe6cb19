"""Legal agreements: the licence and agreement texts of ScanCode LicenseDB, with their category.

The texts are those of the package, line breaks and runs of spaces made one space. A document keeps the category that
its curators gave it ("Proprietary Free", "Copyleft", ...), its title, and its family (`families`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from longspan.data import families
from longspan.data.cached import SPLITS, cached_splits
from longspan.data.packages import AGREEMENTS, package_root

SHORTEST = 1500  # characters; below that a text is a notice, not an agreement
RAREST = 10  # documents; a rarer category is left out of the labelled set


@dataclass(frozen=True)
class Agreement:
    """One document: its name in the collection, its title, its category and its text."""

    name: str
    title: str
    category: str
    text: str


@cache
def read_agreements() -> tuple[Agreement, ...]:
    """All agreements of at least `SHORTEST` characters, in alphabetical order of their names."""
    agreements = []
    folder = package_root(AGREEMENTS) / "data" / "licenses"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".LICENSE"):
            continue
        parts = file.read_text(encoding="utf8").split("---\n", 2)  # "", header, text
        if len(parts) < 3 or len(parts[2]) < SHORTEST:
            continue
        header = dict(re.findall(r"^(name|category): (.+)$", parts[1], re.MULTILINE))
        name = file.name.removesuffix(".LICENSE")
        text = " ".join(parts[2].split())
        agreements.append(Agreement(name, header.get("name", name).strip("'\""), header["category"], text))
    return tuple(agreements)


def load_agreements() -> DatasetDict:
    """The agreements with their category, for classification of long documents.

    Columns: ``id``, ``title``, ``family``, ``text``, ``label`` (a `ClassLabel` of the categories with at least `RAREST`
    documents). Train, validation and test share no family.
    """
    return cached_splits("agreements", _build_agreements, [AGREEMENTS], families)


def _build_agreements() -> DatasetDict:
    agreements = read_agreements()
    counts: dict[str, int] = {}
    for agreement in agreements:
        counts[agreement.category] = counts.get(agreement.category, 0) + 1
    categories = sorted(category for category, count in counts.items() if count >= RAREST)
    agreements = [agreement for agreement in agreements if agreement.category in categories]
    family = families.find_families({agreement.name: agreement.text for agreement in agreements})
    ones = dict.fromkeys(family, 1.0)
    split = families.draw_split(family, ones, test=0.15, validation=0.07, largest=25)
    features = Features(
        {
            "id": Value("string"),
            "title": Value("string"),
            "family": Value("string"),
            "text": Value("large_string"),
            "label": ClassLabel(names=categories),
        }
    )
    rows = {part: [] for part in SPLITS}
    for one in agreements:
        row = {"id": one.name, "title": one.title, "family": family[one.name], "text": one.text, "label": one.category}
        rows[split[one.name]].append(row)
    return DatasetDict({part: Dataset.from_list(rows[part], features=features) for part in SPLITS})
