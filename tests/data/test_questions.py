"""Answers found in agreements by their wording, and the data sets made of them."""

import pytest

from longspan.data import agreements, packages, questions
from longspan.data.agreements import Agreement, load_agreements
from longspan.data.packages import AGREEMENTS
from longspan.data.questions import definitions, governing_law, load_questions

LAWS = {
    "This Agreement is governed by the laws of Norway.": ["Norway"],
    "governed by and construed under the laws of the State of Texas, without regard to": ["State of Texas", "Texas"],
    "governed by the laws in force in the Province of Ontario, Canada.": ["Province of Ontario", "Canada", "Ontario"],
    "shall be governed by French law.": ["French"],
    "laws governed by the laws of Canada and the State of Ohio, excluding Utah": ["Canada", "State of Ohio", "Ohio"],
    "construed in accordance with the law of England and Wales.": ["England", "Wales"],
}


@pytest.mark.parametrize(("clause", "accepted"), LAWS.items())
def test_governing_law(clause, accepted):
    found = governing_law(f"Before it. {clause} After it.")
    assert sorted(text for text, _ in found) == sorted(accepted)
    assert found[0][0] == accepted[0]
    for text, start in found:
        assert f"Before it. {clause} After it."[start:].startswith(text)


@pytest.mark.parametrize(
    "clause",
    [
        "You must obey the laws of Norway.",  # no governing clause
        "governed by this. The laws of Norway", # another sentence
        "governed by Applicable Law",
        "governed by the law of the United Nations",
        "governed by the laws of the State",
    ],
)  # fmt: skip
def test_no_governing_law(clause):
    assert governing_law(f"{clause} in any case.") == []


def test_definitions():
    text = (
        '"Contributor" means any person who writes; others do not. "Work" shall mean: the text, the code, and the rest '
        'of it. "Work" means something else entirely here. “You” refers to whoever reads this text. "X" is nothing. '
    )
    found = dict(definitions(text + "Filler words. " * 300))
    assert {term: answer for term, (answer, _) in found.items()} == {
        "Contributor": "any person who writes",
        "Work": "the text, the code, and the rest of it",
        "You": "whoever reads this text",
    }
    assert all(text[start:].startswith(answer) for answer, start in found.values())
    assert list(definitions(text)) == []  # too short to be an agreement that defines its terms


def fake_package(folder, count=40):
    """Papers that share no eight words, but all define one term in the same words."""
    licences = folder / "data" / "licenses"
    licences.mkdir(parents=True)
    for number in range(count):
        letters = f"{chr(97 + number // 26)}{chr(97 + number % 26)}"
        filler = " ".join(f"{letters}{chr(97 + place % 26)}{chr(97 + place // 26)}word" for place in range(600))
        place = ("Norway", "Japan", "England", "Texas")[number % 4]
        category = "Copyleft" if number % 3 else "Permissive"
        (licences / f"{letters}-1.0.LICENSE").write_text(
            f"---\nkey: {letters}\nname: 'Paper {number}'\ncategory: {category}\n---\n\n"
            f'"Licensee" means the party that signs.\n{filler}\n   This is governed by the laws of {place}.\n',
            encoding="utf8",
        )
    (licences / "short.LICENSE").write_text("---\ncategory: Permissive\n---\nAs is.", encoding="utf8")
    return folder


@pytest.fixture
def collection(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    folder = fake_package(tmp_path / "package")
    monkeypatch.setattr(agreements, "package_root", lambda package: folder if package is AGREEMENTS else None)
    agreements.read_agreements.cache_clear()
    yield
    agreements.read_agreements.cache_clear()


def test_agreements_are_read_with_title_and_category(collection):
    read = agreements.read_agreements()
    assert len(read) == 40  # the notice is left out
    assert read[1] == Agreement("ab-1.0", "Paper 1", "Copyleft", read[1].text)
    assert "  " not in read[1].text and "\n" not in read[1].text


@pytest.mark.parametrize("kind", ["governing_law", "definitions"])
def test_questions_are_squad_rows_split_by_family(collection, kind):
    data = load_questions(kind)
    assert list(data) == ["train", "validation", "test"]
    assert all(len(data[part]) for part in data)
    families = [set(data[part]["family"]) for part in data]
    assert not (families[0] & families[1] or families[0] & families[2] or families[1] & families[2])
    for part in data:
        for row in data[part].to_list():
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(text)] == text
    if kind == "definitions":
        assert len(data["train"]) == 1  # all papers define the one term alike
        assert len(data["test"]) == 10


def test_a_second_call_reads_the_cache_and_an_interrupted_one_leaves_nothing(collection, monkeypatch, tmp_path):
    calls = []
    build = questions._build

    def interrupted(kind):
        calls.append(kind)
        raise KeyboardInterrupt

    monkeypatch.setattr(questions, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_questions("governing_law")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(questions, "_build", lambda kind: calls.append(kind) or build(kind))
    first = load_questions("governing_law")
    assert load_questions("governing_law")["test"][:] == first["test"][:]
    assert len(calls) == 2


def test_agreements_with_their_category(collection):
    data = load_agreements()
    assert data["train"].features["label"].names == ["Copyleft", "Permissive"]
    assert sum(len(part) for part in data.values()) == 40
    assert not set(data["train"]["family"]) & set(data["test"]["family"])


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"definitions.*governing_law.*'law'"):
        load_questions("law")


def test_the_real_collection(tmp_path, monkeypatch):
    try:
        root = packages.package_root(AGREEMENTS)
    except packages.PackageUnavailable as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))  # built anew, not read from an earlier run
    monkeypatch.setattr(agreements, "package_root", lambda package: root)
    agreements.read_agreements.cache_clear()
    law, terms = load_questions("governing_law"), load_questions("definitions")
    agreements.read_agreements.cache_clear()
    assert {part: len(law[part]) for part in law} == {"train": 228, "validation": 58, "test": 96}
    assert {part: len(terms[part]) for part in terms} == {"train": 1198, "validation": 243, "test": 371}
    assert len(set(law["test"]["family"])) == 57
    trained = {family for data in (law, terms) for family in data["train"]["family"]}
    assert not trained & {family for data in (law, terms) for family in data["test"]["family"]}
