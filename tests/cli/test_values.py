"""Reading settings from text: every kind, every refusal, and the round trip through YAML."""

from pathlib import Path
from typing import Any, Literal

import pytest

from abmll.cli.values import Kind, from_texts, from_yaml, kind_of, to_yaml

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
    ],
)
def test_kind_of_annotation(annotation: Any, kind: Kind) -> None:
    assert kind_of(annotation) == kind


@pytest.mark.parametrize("annotation", [dict, list[str], int | str, tuple[int, int], Literal[1, 2], Any])
def test_annotations_that_no_flag_can_carry(annotation: Any) -> None:
    with pytest.raises(TypeError, match="no flag can carry"):
        kind_of(annotation)


@pytest.mark.parametrize(
    ("kind", "texts", "value"),
    [
        (Kind(int), ["3"], 3),
        (Kind(int), ["3", "-4"], -4),
        (Kind(float), ["-1e-6"], -1e-6),
        (Kind(float), ["2"], 2.0),
        (Kind(str), [""], ""),
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
    found = from_texts(kind, texts)
    assert found == value
    assert type(found) is type(value)


def test_file_names_are_not_split_at_commas() -> None:
    assert from_texts(Kind(Path, many=True), ["a,b.csv", "c.csv"], separator=None) == (Path("a,b.csv"), Path("c.csv"))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Kind(int), "many", "must be a whole number, not 'many'"),
        (Kind(int), "1.0", "must be a whole number, not '1.0'"),
        (Kind(int, optional=True), "", "must be a whole number or none, not ''"),
        (Kind(float), "nan", "must be a finite number, not 'nan'"),
        (Kind(float), "-inf", "must be a finite number, not '-inf'"),
        (Kind(float), "1e999", "must be a finite number, not '1e999'"),
        (Kind(bool), "yes", "must be true or false, not 'yes'"),
        (Kind(Path), "", "must be a path, not ''"),
        (Kind(int, many=True), "1,,2", "must be a whole number or several, not ''"),
        (Kind(str, choices=("letter", "text")), "leter", "not 'leter'. Did you mean 'letter'?"),
    ],
)
def test_refused_text(kind: Kind, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as refusal:
        from_texts(kind, [text])
    assert message in str(refusal.value)


@pytest.mark.parametrize(("kind", "value"), [(Kind(int), None), (Kind(int), ["1"]), (Kind(str), None)])
def test_refused_yaml(kind: Kind, value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be .*, not (null|a list)"):
        from_yaml(kind, value)


def test_yaml_lists() -> None:
    assert from_yaml(Kind(str, many=True), ["a", "b,c"]) == ("a", "b,c")
    assert from_yaml(Kind(str, many=True), "a, b") == ("a", "b")
    assert from_yaml(Kind(str, many=True), []) == ()
    assert from_yaml(Kind(str, many=True, optional=True), None) is None


def test_plain_values_for_yaml() -> None:
    assert to_yaml((Path("a"), 1)) == ["a", 1]
    assert to_yaml(None) is None
