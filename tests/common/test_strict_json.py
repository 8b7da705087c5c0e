"""Strict JSON against Python's own reader, and what only the strict one refuses."""

import json

import pytest

from abmll.common.strict_json import MAX_DEPTH, parse_json


@pytest.mark.parametrize("value", [None, 3, -1.5e-300, "é\u2028", [], {"a": [{"b": True}], "": 0}, 10**39])
def test_what_json_has_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' occurs twice"),
        ('[{"a": {"b": 1, "b": 2}}]', "the key 'b' occurs twice"),
        ("NaN", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("1e999", "the number 1e999 is too large"),
        ("-1e999", "the number -1e999 is too large"),
        ("1" * 41, "is too large"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        ("[" * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1), "nested more than 64 levels deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 levels deep"),
        ("", "Expecting value"),
        (b"\xff", "can't decode"),
    ],
)
def test_the_rest_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(text)


def test_the_deepest_that_may_be() -> None:
    text = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text)) == text
