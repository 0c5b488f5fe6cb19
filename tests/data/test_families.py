"""Families of documents, and splits that keep them together."""

import os
import random
import subprocess
import sys

from longspan.data import families
from longspan.data.families import SHINGLE, draw_split, find_families

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]


def prose(seed, words=400):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def test_shared_text_and_shared_names_make_families():
    shared = prose("shared", 80)
    texts = {
        "apple-1.0": prose(1),
        "apple.2": prose(2),  # by name
        "birch": prose(3) + " " + shared,
        "cedar": shared.upper() + "; " + prose(4),  # by a sixth of its words, whatever the case
        "date": prose(5),
        "elder": prose(6) + " " + " ".join(shared.split()[:25]),  # a few words in common are no family
    }
    assert find_families(texts) == {
        "apple-1.0": "apple-1.0",
        "apple.2": "apple-1.0",
        "birch": "birch",
        "cedar": "birch",
        "date": "date",
        "elder": "elder",
    }


def test_a_family_is_transitive_and_the_shorter_text_counts():
    one, two = prose("one", 100), prose("two", 100)
    texts = {"z": one, "m": one + " " + two + " " + prose(7, 2000), "a": two}
    assert set(find_families(texts).values()) == {"a"}


def test_boilerplate_of_the_whole_field_is_no_family():
    clause = prose("clause", 120)
    texts = {WORDS[number]: prose(number) + " " + clause for number in range(100)}
    assert len(set(find_families(texts).values())) == 100


def test_texts_shorter_than_a_shingle():
    assert find_families({}) == {}
    assert find_families({"a": "one two", "b": "one two"}) == {"a": "a", "b": "b"}
    assert SHINGLE > 2


def test_split_keeps_families_and_reaches_its_shares():
    family = {f"d{number}": f"f{number // 3}" for number in range(300)}
    family |= {f"big{number}": "big" for number in range(40)}
    split = draw_split(family, dict.fromkeys(family, 1.0), test=0.25, validation=0.15, largest=25)
    for name, value in family.items():
        assert split[name] == split[min(n for n, other in family.items() if other == value)]
    assert {split[name] for name, value in family.items() if value == "big"} == {"train"}
    count = {part: sum(value == part for value in split.values()) for part in ("train", "validation", "test")}
    assert 0.25 * 340 <= count["test"] < 0.25 * 340 + 3
    assert 0.15 * 340 <= count["validation"] < 0.15 * 340 + 3


def test_the_draw_does_not_depend_on_the_salt_of_hash():
    code = (
        f"import runpy; draw = runpy.run_path({families.__file__!r})['draw_split'];"
        "family = {f'd{n}': f'f{n // 2}' for n in range(60)};"
        "print(draw(family, dict.fromkeys(family, 1.0), test=0.3, validation=0.2, largest=9))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    family = {f"d{n}": f"f{n // 2}" for n in range(60)}
    here = draw_split(family, dict.fromkeys(family, 1.0), test=0.3, validation=0.2, largest=9)
    assert shown == f"{here}\n"
    assert set(here.values()) == {"train", "validation", "test"}
