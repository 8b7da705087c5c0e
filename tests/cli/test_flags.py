"""A verb's signature is its flags: types, precedence, refusals, the printed configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from abmll.cli.flags import run_verb
from abmll.common.errors import ConfigError
from abmll.common.settings import Checked, setting


@dataclass(frozen=True)
class Learning(Checked):
    """How it learns.

    More words that are no title.
    """

    beta: float = setting(1e-6, "weight, 100% yours")
    inner_steps: int = setting(5, "steps", at_least=1)
    target_modules: tuple[str, ...] = setting(("q_proj", "v_proj"), "layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 0:
            raise ConfigError("beta is 0; use another")


@dataclass(frozen=True)
class Source(Checked):
    """Where it comes from."""

    origin: str = setting("there", "place")
    tags: tuple[str, ...] = setting(("x",), "words")


class Recorder:
    """Verbs that keep what they were called with."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def train(
        self,
        run: str,
        *,
        output_dir: Path,
        learning: Learning,
        max_steps: int = 100,
        answer: Literal["letter", "text"] = "text",
        max_length: int | None = None,
        resume: bool = False,
        preset: str = "default",
        quiet: bool = False,
        explicit: frozenset[str] = frozenset(),
    ) -> int:
        """Train something.

        At length.

        Args:
            run: the run's name
            output_dir: where results go
            max_steps: how many steps,
                continued here
            answer: what is scored
            max_length: longest prompt
            resume: continue
            preset: named settings
            quiet: say less

        Raises:
            ConfigError: never.
        """
        self.seen = {key: value for key, value in locals().items() if key != "self"}
        return 0

    def check(self, files: tuple[Path, ...], *, strict: bool = True) -> None:
        """Check files.

        Args:
            files: what to check
            strict: refuse more
        """
        self.seen = {"files": files, "strict": strict}

    def fetch(self, name: str = "bigbench", *, source: Source) -> int:
        """Fetch.

        Args:
            name: what
        """
        self.seen = {"name": name, "source": source}
        return 3


@pytest.fixture
def verbs() -> Recorder:
    return Recorder()


NEEDED = ["mine", "--output-dir", "out"]


def run(verbs: Recorder, *argv: str, fill: Any = None) -> dict[str, Any]:
    assert run_verb(verbs.train, argv, "train", fill) == 0
    return verbs.seen


def refusal(verbs: Recorder, *argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        run_verb(verbs.train, argv, "train")
    return str(error.value)


def test_defaults(verbs: Recorder) -> None:
    assert run(verbs, *NEEDED) == {
        "run": "mine",
        "output_dir": Path("out"),
        "learning": Learning(),
        "max_steps": 100,
        "answer": "text",
        "max_length": None,
        "resume": False,
        "preset": "default",
        "quiet": False,
        "explicit": frozenset({"run", "output_dir"}),
    }


def test_every_type_of_flag(verbs: Recorder) -> None:
    argv = ["--max-steps", "3", "--answer", "letter", "--max-length=9", "--resume", "--no-quiet", "--beta", "-1e-3"]
    modules = ["--inner-steps", "2", "--target-modules", "a,b", "--target-modules", "c"]
    seen = run(verbs, *argv, *modules, *NEEDED)
    assert seen["learning"] == Learning(beta=-1e-3, inner_steps=2, target_modules=("a", "b", "c"))
    assert (seen["max_steps"], seen["answer"], seen["max_length"]) == (3, "letter", 9)
    assert (seen["resume"], seen["quiet"]) == (True, False)
    assert seen["explicit"] == {
        "run", "output_dir", "max_steps", "answer", "max_length", "resume", "quiet", "beta", "inner_steps",
        "target_modules",
    }  # fmt: skip


def test_underscores_in_flags_but_not_in_values(verbs: Recorder) -> None:
    seen = run(verbs, "a_b", "--output_dir=x_y", "--max_steps", "4")
    assert (seen["run"], seen["output_dir"], seen["max_steps"]) == ("a_b", Path("x_y"), 4)


@pytest.mark.parametrize("argv", [["mine", "--output-dir", "o"], ["--output-dir", "o", "mine"], ["--resume", *NEEDED]])
def test_positional_arguments_stand_anywhere(verbs: Recorder, argv: list[str]) -> None:
    assert run(verbs, *argv)["run"] == "mine"


def test_a_later_flag_wins(verbs: Recorder) -> None:
    assert run(verbs, *NEEDED, "--max-steps", "1", "--max-steps", "2")["max_steps"] == 2


def test_what_is_named_once_is_refused_twice(verbs: Recorder) -> None:
    assert refusal(verbs, *NEEDED, "--output-dir", "more") == (
        "train: --output-dir is given twice, but takes one value; keep one"
    )
    assert "--config is given twice" in refusal(verbs, *NEEDED, "--config", "a.yaml", "--config=b.yaml")


def test_several_files(verbs: Recorder) -> None:
    assert run_verb(verbs.check, ["a,1.csv", "--no-strict", "b.csv"], "check") == 0
    assert verbs.seen == {"files": (Path("a,1.csv"), Path("b.csv")), "strict": False}


def test_optional_positional(verbs: Recorder) -> None:
    assert run_verb(verbs.fetch, ["--origin", "here"], "fetch") == 3
    assert verbs.seen == {"name": "bigbench", "source": Source("here", ("x",))}
    run_verb(verbs.fetch, ["--", "-mine-"], "fetch")
    assert verbs.seen["name"] == "-mine-"


def test_quiet_is_taken_by_verbs_without_it(verbs: Recorder) -> None:
    assert run_verb(verbs.check, ["--quiet", "a.csv"], "check") == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-stps", "3"], "train: unknown flag '--max-stps'. Did you mean '--max-steps'?"),
        (["--max-stps=3"], "train: unknown flag '--max-stps'. Did you mean '--max-steps'?"),
        (["--no-resum"], "train: unknown flag '--no-resum'. Did you mean '--no-resume'?"),
        (["--max"], "train: unknown flag '--max'. Did you mean '--max-steps'?"),
        (["--foo=1"], "train: unknown flag '--foo'. See 'abmll train --help'."),
        (["-x"], "train: unknown flag '-x'. See 'abmll train --help'."),
        (["more"], "train: unexpected argument 'more'"),
        (["--max-steps", "x"], "train: --max-steps is 'x'; use a whole number"),
        (["--beta", "nan"], "train: --beta is 'nan'; use a finite number"),
        (["--beta", "-inf"], "train: --beta is '-inf'; use a finite number"),
        (["--max-steps"], "train: --max-steps takes a value"),
        (
            ["--answer", "leter"],
            "train: --answer is 'leter'; use 'letter' or 'text'. Did you mean 'letter'?",
        ),
        (["--max-steps", "--resume"], "train: --max-steps takes a value"),
        (["--resume=yes"], "train: --resume takes no value"),
        (["--inner-steps", "0"], "train: --inner-steps is '0'; use a whole number of 1 or more"),
        (["--beta", "0"], "beta is 0; use another"),
    ],
)
def test_refused_command_lines(verbs: Recorder, argv: list[str], message: str) -> None:
    assert refusal(verbs, *NEEDED, *argv).startswith(message)
    assert verbs.seen == {}


def test_everything_missing_is_named_at_once(verbs: Recorder) -> None:
    assert refusal(verbs) == "train: missing RUN, --output-dir; see 'abmll train --help'"


def test_precedence(verbs: Recorder, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("run: from-file\noutput-dir: there\nmax_steps: 20\nbeta: 1e-3\nresume: true\nmax_length: 5\n")
    offered: dict[str, Any] = {}

    def preset(values: Mapping[str, Any]) -> dict[str, Any]:
        offered.update(values)
        return {"max_steps": 1, "beta": 1.0, "inner_steps": 11}

    seen = run(verbs, "--config", str(config), "--max-steps", "30", "--max-length", "none", fill=preset)
    assert (seen["run"], seen["output_dir"], seen["resume"]) == ("from-file", Path("there"), True)
    assert seen["max_steps"] == 30  # the flag wins over the file and the preset
    assert seen["max_length"] is None
    assert seen["learning"] == Learning(beta=1e-3, inner_steps=11)  # the file over the preset, that over the default
    assert seen["explicit"] == {"run", "output_dir", "max_steps", "beta", "resume", "max_length"}
    assert (offered["beta"], offered["inner_steps"], offered["preset"]) == (1e-3, 5, "default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmax_stps: 3\n", ":2: unknown setting 'max_stps'. Did you mean 'max_steps'?"),
        ("max_steps: many\n", ":1: max_steps is 'many'; use a whole number"),
        ("\nresume: yes\n", ":2: resume is 'yes'; use true or false"),
        ("beta: .inf\n", ":1: beta is '.inf'; use a finite number"),
        ("max_steps: [1]\n", ":1: max_steps is a list; use a whole number"),
        ("max_steps:\n", ":1: max_steps is null; use a whole number"),
        ("inner_steps: 0\n", ":1: inner_steps is '0'; use a whole number of 1 or more"),
        ("explicit: [beta]\n", ":1: unknown setting 'explicit'."),
    ],
)
def test_refused_settings_name_file_and_line(verbs: Recorder, tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text.replace("seed: 1", "max_length: 1"))
    assert refusal(verbs, *NEEDED, "--config", str(config)).startswith(f"{config}{message}")


def test_printed_configuration_is_complete_and_reads_back(
    verbs: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "Ä: #1",
        "--output-dir",
        "a b",
        "--beta",
        "5e-10",
        "--max-length",
        "7",
        "--target-modules",
        "1,null",
        "--resume",
    ]
    first = run(verbs, *argv)
    verbs.seen = {}
    assert run_verb(verbs.train, [*argv, "--print-config"], "train") == 0
    assert verbs.seen == {}
    printed = capsys.readouterr().out
    config = tmp_path / "run.yaml"
    config.write_text(printed, encoding="utf-8")
    again = run(verbs, "--config", str(config))
    assert {**again, "explicit": None} == {**first, "explicit": None}
    assert again["explicit"] == {
        "run", "output_dir", "beta", "inner_steps", "target_modules", "max_steps", "answer", "max_length", "resume",
        "preset", "quiet",
    }  # fmt: skip
    assert run_verb(verbs.train, ["--config", str(config), "--print-config"], "train") == 0
    assert capsys.readouterr().out == printed


def test_printed_configuration_has_the_preset_in_it(
    verbs: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def preset(values: Mapping[str, Any]) -> dict[str, Any]:
        return {"beta": 0.5} if values["preset"] == "strong" else {}

    assert run_verb(verbs.train, [*NEEDED, "--preset", "strong", "--print-config"], "train", preset) == 0
    config = tmp_path / "run.yaml"
    config.write_text(capsys.readouterr().out)
    assert run(verbs, "--config", str(config), fill=preset)["learning"].beta == 0.5


def test_printed_configuration_marks_what_is_missing(verbs: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(verbs.train, ["--print-config"], "train") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["# run: (required)", "# output_dir: (required)", "beta: 1.0e-06"]


def test_printing_refuses_what_running_would_refuse(verbs: Recorder) -> None:
    assert refusal(verbs, *NEEDED, "--beta", "0", "--print-config").startswith("beta is 0")


def test_help(verbs: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run_verb(verbs.train, ["--help", "--nonsense"], "train") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: abmll train RUN --output-dir PATH [options] Train something. At length.")
    assert "--max-steps INT how many steps, continued here (default: 100)" in shown
    assert "--answer {letter,text} what is scored (default: text)" in shown
    assert "How it learns: --beta FLOAT weight, 100% yours (default: 1e-06)" in shown
    assert "--target-modules TEXT,... layers (default: q_proj,v_proj)" in shown
    assert "--resume continue" in shown
    assert "--no-resume" not in shown  # understood, but what is off by default is not switched off by hand
    assert "never" not in shown
    assert run_verb(verbs.check, ["-h"], "tasks check") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: abmll tasks check FILES... [options] Check files.")
    assert "FILES what to check (required)" in shown
    assert "--strict, --no-strict refuse more (default: on)" in shown
    assert run_verb(verbs.fetch, ["-h"], "tasks fetch") == 0
    assert capsys.readouterr().out.startswith("usage: abmll tasks fetch [NAME] [options]")


@dataclass(frozen=True)
class Both(Learning, Source):
    """Both in one; that is all."""

    own: int = setting(1, "its own")


def combined(*, both: Both, loud: bool = False) -> int:
    """Do it.

    Args:
        loud: with noise
    """
    return both.own + loud


def test_help_groups_fields_by_the_dataclass_that_declares_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(combined, ["-h"], "do") == 0
    sections = capsys.readouterr().out.split("\n\n")
    flags = {section.split(":")[0]: re.findall(r"^  (--[\w-]+)", section, re.MULTILINE) for section in sections[2:]}
    assert flags["How it learns"] == ["--beta", "--inner-steps", "--target-modules"]
    assert flags["Where it comes from"] == ["--origin", "--tags"]
    assert flags["options"] == ["--own", "--loud"]


def test_every_parameter_is_explained() -> None:
    def undocumented(*, steps: int) -> int:
        """Do it."""
        return steps

    with pytest.raises(KeyError, match="steps"):
        run_verb(undocumented, [], "verb")
