"""Questions of the TREC question-answering tracks with the type of answer they ask for (Li and Roth 2002).

5,380 training questions, 6 coarse and 50 fine types: ``HUM:ind`` asks for a person. The official test set, 500 other
questions, is not in the package: cross-validate (`folds`), and compare figures on it with care.
"""

from __future__ import annotations

from datasets import ClassLabel, Dataset, Features, Value

from longspan.data.packages import QUESTIONS, package_root

_FILE = "data/question_labels.txt"
_DAMAGED = "ï¿½"  # a character that was lost twice on the way


def load_trec() -> Dataset:
    """All questions once, in the order of the file. Columns: ``text``, ``coarse`` and ``fine`` (both `ClassLabel`).

    The file holds nested training sets of growing size, one after the other, so that most lines stand in it more than
    once. A question that has two types keeps the first.

    Raises:
        PackageUnavailable: when the package cannot be had.
    """
    return parse_trec((package_root(QUESTIONS) / _FILE).read_bytes().decode("latin1"))


def parse_trec(text: str) -> Dataset:
    """Lines ``DESC:manner How did serfdom develop ?`` as a `Dataset`, see `load_trec`."""
    rows = {}
    for line in text.splitlines():
        fine, question = line.replace(_DAMAGED, " ").split(" ", 1)
        coarse = fine.split(":")[0]
        rows.setdefault(question.lower(), {"text": question, "coarse": coarse, "fine": fine})
    features = Features(
        {
            "text": Value("string"),
            "coarse": ClassLabel(names=sorted({row["coarse"] for row in rows.values()})),
            "fine": ClassLabel(names=sorted({row["fine"] for row in rows.values()})),
        }
    )
    return Dataset.from_list(list(rows.values()), features=features)
