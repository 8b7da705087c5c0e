"""A preset reaches every verb that it has settings for, and the user's own flags win over it."""

from pathlib import Path

import pytest
import yaml

from abmll.cli.main import entry

COMMANDS = {
    "train": ["train", "--tasks", "hf:none", "--output-dir", "out"],
    "adapt": ["adapt", "t.jsonl", "--theta", "run", "--output-dir", "out"],
    "predict": ["predict", "run", "--input", "q.jsonl", "--output", "a.jsonl"],
    "evaluate": ["evaluate", "run", "--suite", "bigbench-demo", "--output-dir", "out"],
}
SUITE = "name: s\ntrain: [a]\nevaluation: [b]\nprompt: {answer: text, instruction: false}\n"


def settings(capsys: pytest.CaptureFixture[str], verb: str, *flags: str) -> dict[str, object]:
    """What the verb would run with."""
    assert entry([*COMMANDS[verb], *flags, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("train", {"space": "output", "answer": "letter", "inner_steps": 5}),
        ("adapt", {"steps": 5, "batch_size": 2}),
        ("predict", {"num_samples": 0}),
        ("evaluate", {"steps": 5, "batch_size": 2, "num_samples": 0}),
    ],
)
def test_a_preset_sets_what_the_verb_has(
    verb: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(capsys, verb, "--preset", "paper-v3")
    assert {key: chosen[key] for key in expected} == expected


def test_flags_win_over_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings(capsys, "adapt", "--preset", "paper-v3", "--steps", "7")["steps"] == 7


def test_a_preset_wins_over_a_suites_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    command = ["train", "--tasks", str(suite), "--output-dir", "out", "--preset", "paper-v1", "--print-config"]
    assert entry(command) == 0
    chosen = yaml.safe_load(capsys.readouterr().out)
    assert (chosen["answer"], chosen["instruction"]) == ("letter", False)
