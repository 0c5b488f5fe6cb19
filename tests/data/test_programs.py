"""Learning to execute: Python itself runs the programs."""

import contextlib
import io

import pytest

from longspan.data.programs import END, KINDS, PROGRAM_CHARACTERS, ExecutionDataset, decode, encode

PROGRAMS = ("program", "control", "addition")


def run(text):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "program", "exec"), {})
    return out.getvalue().strip()


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("nesting", [1, 2, 4])
def test_programs_print_what_is_said(kind, nesting):
    dataset = ExecutionDataset(kind, 300, length=5, nesting=nesting, seed=nesting)
    texts = [dataset.text(index) for index in range(300)]
    assert all(run(program) == printed for program, printed in texts)
    assert len(set(texts)) > 240  # short ones meet by chance


def test_kinds_differ():
    texts = {
        kind: [ExecutionDataset(kind, 400, length=3, nesting=3).text(i)[0] for i in range(400)] for kind in PROGRAMS
    }
    assert not any("for" in text or "if" in text for text in texts["addition"])
    assert any("for" in text for text in texts["control"]) and any("if" in text for text in texts["control"])
    assert not any("*" in text for text in texts["control"]) and any("*" in text for text in texts["program"])


@pytest.mark.parametrize("kind", ["copy", "double", "reverse"])
def test_memorisation(kind):
    dataset = ExecutionDataset(kind, 300, length=55)
    for index in range(300):
        given, wanted = dataset.text(index)
        shown = wanted[::-1] if kind == "reverse" else wanted * (2 if kind == "double" else 1)
        assert given == shown and wanted.isdigit() and len(wanted) <= 55
    assert {len(dataset.text(index)[1]) for index in range(300)} >= {1, 55}
    fixed = ExecutionDataset(kind, 20, length=55, mixed=False)
    assert {len(fixed.text(index)[1]) for index in range(20)} == {55}


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_characters_and_repeat(kind):
    dataset, longer = ExecutionDataset(kind, 5, length=4, seed=3), ExecutionDataset(kind, 50, length=4, seed=3)
    for index in range(5):
        item, (given, wanted) = dataset[index], dataset.text(index)
        assert int(item["input_ids"][-1]) == END and decode(item["input_ids"].tolist()) == given
        assert int(item["labels"][-1]) == END and decode([*item["labels"].tolist(), 5]) == wanted
        assert longer.text(index) == dataset.text(index)
    assert longer.text(7) != ExecutionDataset(kind, 50, length=4, seed=4).text(7)


def test_errors():
    assert decode(encode(PROGRAM_CHARACTERS)) == PROGRAM_CHARACTERS
    with pytest.raises(ValueError, match=r"got '!'"):
        encode("print(1)!")
    with pytest.raises(ValueError, match=r"kind must be one of copy, double, reverse, .* got 'sort'"):
        ExecutionDataset("sort", 5, length=3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        ExecutionDataset("copy", 5, length=0)
    with pytest.raises(IndexError):
        ExecutionDataset("copy", 5, length=3)[5]
