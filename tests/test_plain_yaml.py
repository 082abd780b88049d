"""YAML of unknown origin: values as OmegaConf reads them, and nothing that runs or explodes."""

import random
from contextlib import suppress
from typing import Any

import pytest
import yaml

from minitron.errors import SourceError
from minitron.files.plain_yaml import DEEPEST, LARGEST_TEXT, MOST_VALUES, read_yaml, short_repr

WHERE = "a.nemo/model_config.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2E+3", -2000.0),
        ("1.0e-05", 1e-5),
        ("4096", 4096),
        ("0.0134", 0.0134),
        ("true", True),
        ("null", None),
        ("", None),
        ("bf16-mixed", "bf16-mixed"),
        ("2024-02-30", "2024-02-30"),
        ("'16'", "16"),
        ('"\\x11"', "\x11"),
        ("[1, [a, {b: null}]]", [1, ["a", {"b": None}]]),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)
def test_values_are_read_as_omegaconf_reads_them(text: str, value: Any) -> None:
    found = read_yaml(text, WHERE)

    assert found == value
    assert type(found) is type(value)


def test_an_alias_becomes_a_copy() -> None:
    found = read_yaml("{a: &x [1], b: *x}", WHERE)

    found["a"].append(2)

    assert found["b"] == [1]


def powers(first: str, line: str, levels: int = 12) -> str:
    """Lines in which each refers to the one before ten times."""
    return first + "".join(
        line.format(level, ",".join([f"*a{level - 1}"] * 10)) for level in range(1, levels)
    )


REFUSED = {
    "python object": (
        "!!python/object/apply:os.system [echo]",
        "could not determine a constructor",
    ),
    "python name": ("!!python/name:os.system", "could not determine a constructor"),
    "binary": ("!!binary aGk=", "value of type bytes"),
    "set": ("!!set {a}", "value of type set"),
    "not of its tag": ("!!int abc", "invalid literal"),
    "empty of its tag": ('!!float ""', "index out of range"),
    "unknown boolean": ("!!bool maybe", "maybe"),
    "no timestamp": ("!!timestamp now", "NoneType"),
    "aliases of aliases": (
        powers("a0: &a0 [x]\n", "a{0}: &a{0} [{1}]\n"),
        f"more than {MOST_VALUES}",
    ),
    "merged merges": (powers("a0: &a0 {x: 1}\n", "a{0}: &a{0} {{<<: [{1}]}}\n"), "merge key"),
    "a list in itself": ("&a [*a]", f"deeper than {DEEPEST}"),
    "brackets": ("[" * 100_000, f"deeper than {DEEPEST}"),
    "indentation": (
        "".join(" " * depth + "a:\n" for depth in range(200)),
        f"deeper than {DEEPEST}",
    ),
    "many values": ("- a\n" * (MOST_VALUES + 1), f"more than {MOST_VALUES}"),
    "digits": ("a: " + "9" * 100_000, "number of 100000 characters"),
    "hexadecimal digits": ("a: 0x" + "f" * 100_000, "number of 100002 characters"),
    "base 60": ("a: 1" + ":1" * 50_000, "number of 100001 characters"),
    "a key twice": ("{bias: true, rows: 1, bias: false}", "'bias' twice"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2"),
    "unfinished": ("a: [1,\nb", "line 2"),
    "control characters": ("a: \x00", "unacceptable character"),
    "an unhashable key": ("? [a]\n: 1", "unhashable"),
    "too long": ("#" * (LARGEST_TEXT + 1), f"{LARGEST_TEXT + 1} characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_runs_or_explodes_is_refused_in_one_line(case: str) -> None:
    text, reason = REFUSED[case]

    with pytest.raises(SourceError) as refusal:
        read_yaml(text, WHERE)

    assert reason in str(refusal.value)
    assert str(refusal.value).startswith(WHERE)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_any_damage_gives_a_value_or_a_source_error() -> None:
    generator = random.Random(0)
    text = yaml.safe_dump({"a": [1, 2.5, {"b": "x y"}], "c": None, "d": "${.a}", "e": {"f": True}})
    for _ in range(2000):
        damaged = list(text)
        for _ in range(generator.randrange(1, 5)):
            place = generator.randrange(len(damaged))
            damaged[place] = generator.choice("{}[]:&*!|>'\"%@`,#?- \n\t0e.<=~\x00é")
        with suppress(SourceError):
            read_yaml("".join(damaged), WHERE)


def test_an_error_shows_containers_by_their_kind_and_long_text_cut() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert short_repr(endless) == "a list"
    assert short_repr({}) == "a dict"
    assert short_repr("gelu") == "'gelu'"
    assert len(short_repr("x" * 10_000)) == 120
