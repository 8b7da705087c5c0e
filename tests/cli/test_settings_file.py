"""Configuration files: what is read, and one line with file and line for what is not."""

from pathlib import Path

import pytest

from abmll.cli.settings_file import read_settings, write_settings
from abmll.common.errors import ConfigError
from abmll.common.settings import Kind

KINDS = {
    "beta": Kind(float),
    "answer": Kind(str),
    "max_steps": Kind(int),
    "items": Kind(str, many=True),
    "empty": Kind(int, optional=True),
    "nothing": Kind(str, optional=True),
    "quoted": Kind(str),
    "paths": Kind(Path, many=True, optional=True),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_the_settings_kind_decides_what_a_text_means(tmp_path: Path) -> None:
    text = "\ufeffbeta: 1e-6\nanswer: no\nmax-steps: 007\nitems: [1, 'b,c']\nempty:\nnothing: null\nquoted: 'null'\n"
    assert read_settings(written(tmp_path, text), KINDS) == {
        "beta": 1e-6,
        "answer": "no",
        "max_steps": 7,
        "items": ("1", "b,c"),
        "empty": None,
        "nothing": None,
        "quoted": "null",
    }


@pytest.mark.parametrize("value", [("a", "b,c"), ("a",), ()])
def test_written_settings_read_back(tmp_path: Path, value: tuple[str, ...]) -> None:
    values = {"items": value, "paths": tuple(map(Path, value)), "empty": None, "answer": "null"}
    assert read_settings(written(tmp_path, write_settings(values)), KINDS) == values


def test_a_text_is_split_at_commas(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, "items: a, b\n"), KINDS) == {"items": ("a", "b")}


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_a_file_may_set_nothing(tmp_path: Path, text: str) -> None:
    assert read_settings(written(tmp_path, text), KINDS) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 1\nanswer: 2\nbeta: 3\n", ":3: beta is set a second time"),
        ("max_steps: 1\nmax-steps: 2\n", ":2: max_steps is set a second time"),
        ("beta: 1\nmax_stpes: 2\n", ":2: unknown setting 'max_stpes'. Did you mean 'max_steps'?"),
        ("max_steps: many\n", ":1: max_steps is 'many'; use a whole number"),
        ("\nmax_steps:\n", ":2: max_steps is null; use a whole number"),
        ("max_steps: [1]\n", ":1: max_steps is a list; use a whole number"),
        ("beta: 1\nitems: [1\n", ":3: not valid YAML: "),
        ("a: b: c\n", ":1: not valid YAML: "),
        ("\n- beta\n", ":2: must be a mapping"),
        ("beta: {value: 1}\n", ":1: beta must be a value or a list of values"),
        ("items: [[1]]\n", ":1: items is a list of lists; use a tuple of names"),
        ("beta: \x07\n", ": not valid YAML: "),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        read_settings(path, KINDS)
    assert str(refusal.value).startswith(f"{path}{message}")
    assert "\n" not in str(refusal.value)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("model: Ä\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_settings(path, KINDS)


def test_missing_file_names_a_sibling(tmp_path: Path) -> None:
    written(tmp_path, "")
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)\. Did you mean 'run\.yaml'\?"):
        read_settings(tmp_path / "rum.yaml", KINDS)


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path, KINDS)
