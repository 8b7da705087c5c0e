"""YAML that says more than anybody meant: refused in one line, before it costs time or memory."""

import os
from pathlib import Path

import pytest
import yaml

from abmll.common.bounded_yaml import MAX_DEPTH, read_yaml_text, yaml_node, yaml_value
from abmll.common.errors import ConfigError, DataError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
QUADRATIC = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]\n"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        yaml_value(text, "my.yaml", ConfigError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "my.yaml:6: not valid YAML: says more than 1,000,000 characters with its aliases"),
        (QUADRATIC, "my.yaml:2: not valid YAML: says more than 1,000,000 characters with its aliases"),
        ("a: 1\nb: " + "[" * 5000, "my.yaml:2: not valid YAML: nested more than 20 levels deep"),
        ("{a: " * 3000, "my.yaml:1: not valid YAML: nested more than 20 levels deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(300)), "my.yaml:20: not valid YAML: nested more than 20 levels deep"),
        ("a: &a [*a]\n", "my.yaml:1: not valid YAML: nested more than 20 levels deep"),
        ("a: &a {b: *a}\n", "my.yaml:1: not valid YAML: nested more than 20 levels deep"),
        ("a: '" + "x" * 1_000_000 + "'\n", "my.yaml: has more than 1,000,000 characters; is it the right file?"),
        ("a: 2026-02-31\n", "my.yaml: not valid YAML: day is out of range for month"),
        ("a: !!python/object:os.system {}\n", "my.yaml:1: not valid YAML: could not determine a constructor for the"),
        ("? [a, b]\n: 1\n", "my.yaml:1: not valid YAML: found unhashable key"),
        ("a: *b\n", "my.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: \x07\n", "my.yaml: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "my.yaml:2: not valid YAML: but found another document"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    "text",
    ["", "a: 1\n", "train: &all [a, b]\nevaluation: *all\n", "a: {b: [1, 2.5, null, yes, 2026-02-28]}\n", "[]", "x"],
)
def test_what_is_read_is_what_the_safe_loader_reads(text: str) -> None:
    assert yaml_value(text, "my.yaml", ConfigError) == yaml.safe_load(text)


def test_the_deepest_that_is_read() -> None:
    assert yaml_node("[" * MAX_DEPTH + "]" * MAX_DEPTH, "my.yaml", ConfigError) is not None
    assert "levels" in refusal("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "long.yaml").write_bytes(b"a" * 4_000_001)
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9")
    for name, problem in {
        "pipe": "is not a regular file; give a YAML file",
        "long": "has 4,000,001 bytes, more than the 4,000,000 that it may; give a YAML file",
        "latin": "not UTF-8 text (byte 6); save it as UTF-8",
        "none": "cannot be read (No such file or directory); give a YAML file",
    }.items():
        with pytest.raises(DataError) as caught:
            read_yaml_text(tmp_path / f"{name}.yaml", DataError)
        assert str(caught.value) == f"{tmp_path / name}.yaml: {problem}"
