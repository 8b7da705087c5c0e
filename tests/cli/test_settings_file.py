"""Configuration files: what is read, and one line with file and line for what is not."""

from pathlib import Path

import pytest

from abmll.cli.settings_file import Entry, read_settings
from abmll.common.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_values_stay_text(tmp_path: Path) -> None:
    text = "\ufeffbeta: 1e-6\nanswer: no\nmax-steps: 007\nitems: [1, x]\nempty:\nnothing: null\nquoted: 'null'\n"
    path = written(tmp_path, text)
    values = {name: entry.value for name, entry in read_settings(path).items()}
    assert values == {
        "beta": "1e-6",
        "answer": "no",
        "max_steps": "007",
        "items": ["1", "x"],
        "empty": None,
        "nothing": None,
        "quoted": "null",
    }


def test_entries_know_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, "# a comment\n\nbeta: 1\n")
    assert read_settings(path) == {"beta": Entry("1", f"{path}:3")}


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_a_file_may_set_nothing(tmp_path: Path, text: str) -> None:
    assert read_settings(written(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 1\nseed: 2\nbeta: 3\n", ":3: beta: is set a second time (first at "),
        ("max_steps: 1\nmax-steps: 2\n", ":2: max_steps: is set a second time"),
        ("beta: 1\nseed: [1\n", ":3: not valid YAML: "),
        ("a: b: c\n", ":1: not valid YAML: "),
        ("\n- beta\n", ":2: must be a mapping"),
        ("beta: {value: 1}\n", ":1: beta: must be a value or a list of values"),
        ("items: [[1]]\n", ":1: items: must be a value or a list of values"),
        ("beta: \x07\n", ": not valid YAML: "),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        read_settings(path)
    assert str(refusal.value).startswith(f"{path}{message}")
    assert "\n" not in str(refusal.value)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("model: Ä\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_settings(path)


def test_missing_file_names_a_sibling(tmp_path: Path) -> None:
    written(tmp_path, "")
    with pytest.raises(ConfigError, match=r"no such configuration file\. Did you mean 'run\.yaml'\?"):
        read_settings(tmp_path / "rum.yaml")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path)
