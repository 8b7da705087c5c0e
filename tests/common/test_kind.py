"""What a setting may be, read from its annotation, and its values read from text."""

import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from abmll.common.settings import Kind, kind_of

Answer = Literal["letter", "text"]


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (str, Kind(str)),
        (int, Kind(int)),
        (float, Kind(float)),
        (bool, Kind(bool)),
        (Path, Kind(Path)),
        (int | None, Kind(int, optional=True)),
        (Answer, Kind(str, choices=("letter", "text"))),
        (Answer | None, Kind(str, choices=("letter", "text"), optional=True)),
        (tuple[str, ...], Kind(str, many=True)),
        (tuple[int, ...], Kind(int, many=True)),
        (tuple[Answer, ...], Kind(str, choices=("letter", "text"), many=True)),
        (tuple[int, ...] | None, Kind(int, many=True, optional=True)),
    ],
)
def test_kind_of_annotation(annotation: Any, kind: Kind) -> None:
    assert kind_of(annotation) == kind


@pytest.mark.parametrize("annotation", [dict, list[str], int | str, tuple[int, int], Literal[1, 2], Any])
def test_annotations_that_no_setting_can_have(annotation: Any) -> None:
    with pytest.raises(TypeError, match="no setting can have"):
        kind_of(annotation)


@pytest.mark.parametrize(
    ("kind", "texts", "value"),
    [
        (Kind(int), ["3"], 3),
        (Kind(int), ["3", "-4"], -4),
        (Kind(float), ["-1e-6"], -1e-6),
        (Kind(float), ["2"], 2.0),
        (Kind(str), ["none"], "none"),
        (Kind(str, optional=True), ["None"], None),
        (Kind(int, optional=True), ["7"], 7),
        (Kind(Path), ["a b/c"], Path("a b/c")),
        (Kind(Path), ["~/c"], Path.home() / "c"),
        (Kind(bool), ["True"], True),
        (Kind(str, choices=("letter", "text")), ["text"], "text"),
        (Kind(str, many=True), ["q_proj, v_proj", "o_proj"], ("q_proj", "v_proj", "o_proj")),
        (Kind(int, many=True), ["0,1,2"], (0, 1, 2)),
    ],
)
def test_text_becomes_value(kind: Kind, texts: list[str], value: Any) -> None:
    found = kind.read(texts)
    assert found == value
    assert type(found) is type(value)


def test_file_names_are_not_split_at_commas() -> None:
    assert Kind(Path, many=True).read(["a,b.csv", "c.csv"], separator=None) == (Path("a,b.csv"), Path("c.csv"))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Kind(int), "many", "is 'many'; use a whole number"),
        (Kind(int), "1.0", "is '1.0'; use a whole number"),
        (Kind(int, at_least=1), "0", "is '0'; use a whole number of 1 or more"),
        (Kind(int, optional=True), "", "is ''; use none or a whole number"),
        (Kind(float), "nan", "is 'nan'; use a finite number"),
        (Kind(float), "-inf", "is '-inf'; use a finite number"),
        (Kind(float), "1e999", "is '1e999'; use a finite number"),
        (Kind(float, above=0), "0.0", "is '0.0'; use a finite number above 0"),
        (Kind(float, at_least=0, below=1), "1", "is '1'; use a finite number of 0 or more and below 1"),
        (Kind(bool), "yes", "is 'yes'; use true or false"),
        (Kind(bool, optional=True), "yes", "is 'yes'; use none or true or false"),
        (Kind(Path), "", "is ''; use a path"),
        (Kind(str), "", "is ''; use a text"),
        (Kind(int, many=True), "1,,2", "is ''; use a whole number"),
        (Kind(float, many=True, below=1), "0.5,2", "is '2'; use a finite number and below 1"),
        (Kind(str, choices=("letter", "text")), "leter", "is 'leter'; use 'letter' or 'text'. Did you mean 'letter'?"),
    ],
)
def test_refused_text(kind: Kind, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind.read([text])


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**30])
def test_numbers_beyond_any_size_are_refused_with_their_limit(value: int) -> None:
    kind = Kind(int, at_least=-math.inf)
    assert not kind.accepts(value)
    assert kind.accepts(2**63 - 1)
    with pytest.raises(ValueError, match=r"; use a whole number \(below 2\^63\)$"):
        kind.read([str(value)])


@pytest.mark.parametrize("text", ["1e308", "-1e16", "1e-31", "1" + "0" * 30])
def test_fractions_beyond_any_size_are_refused_with_their_limits(text: str) -> None:
    with pytest.raises(ValueError, match=r"; use a finite number \(in size from 1e-30 to 1e\+15\)$"):
        Kind(float).read([text])
    assert not Kind(float).accepts(float(text))
    assert not Kind(float).accepts(int(float(text))) or abs(float(text)) < 1


def test_a_negative_zero_is_zero() -> None:
    assert str(Kind(float, at_least=0).read(["-0.0"])) == "0.0"
    assert str(Kind(int, at_least=0).read(["-0"])) == "0"
    with pytest.raises(ValueError, match="use a finite number above 0"):
        Kind(float, above=0).read(["-0"])


def test_the_error_of_a_long_value_is_short() -> None:
    with pytest.raises(ValueError, match=r"^is 'x{199}\.\.\.; use") as refused:
        Kind(int).read(["x" * 100_000])
    assert len(str(refused.value)) < 300
