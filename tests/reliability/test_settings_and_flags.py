"""Values of flags and settings that nobody meant: refused in one line with exit code 2, or accepted and shown again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from abmll.cli.flags import with_common
from abmll.cli.main import COMMANDS, entry
from abmll.cli.signature import read_signature

SEED = int(os.environ.get("ABMLL_SEED", "0"))
VALUES = [
    *("", " ", "0", "-0", "-1", "1", "2", "1e3", "1e308", "1e309", "-1e308", "nan", "inf", "-inf", "10" * 20, "1_000"),
    *("0x10", "1,5", "1.5", "٣", "true", "TRUE", "none", "None", "null", "~", "/", ".", "..", "a,b", ",", ",,", "a,,b"),
    *("--", "-", "-x", "é", "\u202e", "x" * 5000, "a\nb", "a=b", "[1]", "{}", "18-29", "29-18", "top-0", "top-99999"),
    *("0,0", "-1-2", "1-", "auto", "cuda:99", "cpu:1", "@", "user/name", "a/b/c", "hf:", "hf:x[", "\\", "%s", "{0}"),
]
WORDS = ["train", "adapt", "predict", "evaluate", "compare", "classify", "suggest", "export", "estimate", "tune"]


SCALARS = [
    "a",
    "1",
    "~",
    "'x'",
    "*a",
    "*b",
    "2026-02-31",
    "!!int x",
    "!!binary x",
    "x" * 3000,
    "é",
    "",
    "?",
    "- -",
    "{",
    "}",
]
KEYS = ["r", "seed", "tasks", "name", "train", "evaluation", "prompt", "description", "hub", "<<", "[a]", "*a", "1"]


def inside(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=3)
    return (
        st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]")
        | pairs.map(lambda found: "{" + ", ".join(f"{key}: {value}" for key, value in found) + "}")
        | st.tuples(st.sampled_from(["&a ", "&b ", "!!set ", "!!omap ", "[" * 30, "{a: " * 30]), inner).map("".join)
    )


YAML = st.recursive(st.sampled_from(SCALARS), inside, max_leaves=12)


def flags_of(verb: str) -> list[str]:
    from importlib import import_module

    target = COMMANDS[verb].target
    assert isinstance(target, str)
    module, _, name = target.partition(":")
    options = with_common(read_signature(getattr(import_module(module), name)))
    names = [option.name for option in options if option.name not in ("help", "print_config")]
    return [f"--{name.replace('_', '-')}" for name in names]


FLAGS = {verb: flags_of(verb) for verb in WORDS}


def run(capfd: pytest.CaptureFixture[str], argv: list[str]) -> tuple[int, str, str]:
    capfd.readouterr()
    code = entry(argv)
    out, err = capfd.readouterr()
    return code, out, err


def test_any_flag_with_any_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tries: Callable[[int], int]
) -> None:
    monkeypatch.chdir(tmp_path)

    @seed(SEED)
    @settings(max_examples=tries(500))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        verb = data.draw(st.sampled_from(WORDS), "verb")
        flag = data.draw(st.sampled_from(FLAGS[verb]), "flag")
        value = data.draw(st.sampled_from(VALUES) | st.text(max_size=20).filter(lambda text: "\0" not in text), "value")
        argv = [verb, flag, value, "--print-config"] if data.draw(st.booleans(), "apart") else [
            verb, f"{flag}={value}", "--print-config"]  # fmt: skip
        code, _, err = run(capfd, argv)
        assert code in (0, 2)
        if code == 2:
            assert err.startswith("abmll: error: ")
            assert err.count("\n") == 1

    check()


def test_any_setting_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tries: Callable[[int], int]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = [
        *VALUES,
        "[1, 2]",
        "{a: b}",
        "!!python/object:os.system {}",
        "&a [*a]",
        "2026-01-01",
        "'1'",
        "|\n  x",
        "a: b: c",
    ]

    @seed(SEED)
    @settings(max_examples=tries(300))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        verb = data.draw(st.sampled_from(WORDS), "verb")
        key = data.draw(st.sampled_from(FLAGS[verb]), "key").removeprefix("--").replace("-", "_")
        text = f"{key}: {data.draw(st.sampled_from(odd), 'value')}\n"
        how = data.draw(st.sampled_from(["as it is", "as it is", "twice", "cut", "bytes"]), "how")
        raw = (text * 2 if how == "twice" else text).encode()
        raw = raw[: data.draw(st.integers(0, len(raw)), "at")] if how == "cut" else raw
        raw += data.draw(st.binary(max_size=8), "bytes") if how == "bytes" else b""
        (tmp_path / "settings.yaml").write_bytes(raw)
        code, _, err = run(capfd, [verb, "--config", "settings.yaml", "--print-config"])
        assert code in (0, 2)
        if code == 2:
            assert err.startswith("abmll: error: ")
            assert err.count("\n") == 1

    check()


def test_any_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tries: Callable[[int], int]
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = "name: s\ntrain: [a]\nevaluation: [b]\n"

    @seed(SEED)
    @settings(max_examples=tries(400))
    @given(st.sampled_from(KEYS), YAML, st.booleans())
    def check(key: str, value: str, is_suite: bool) -> None:
        kept = "".join(line for line in suite.splitlines(True) if not line.startswith(f"{key}:"))
        Path("any.yaml").write_text((kept if is_suite else "") + f"{key}: {value}\n", encoding="utf-8")
        argv = ["tasks", "ls", "any.yaml"] if is_suite else ["train", "--config", "any.yaml", "--print-config"]
        code, _, err = run(capfd, argv)
        assert code in (0, 2)
        assert code == 2 or not is_suite
        if code == 2:
            assert err.startswith("abmll: error: ")
            assert err.count("\n") == 1

    check()


ROWS = "".join(f'{{"input": "{n}", "options": ["a", "b"], "answer": {n % 2}}}\n' for n in range(12))


@pytest.mark.parametrize("flag", ["--r", "--sigma-rank", "--noise-rank", "--num-demonstrations", "--meta-batch"])
@pytest.mark.parametrize("size", [2**62, 10**12])
def test_a_size_that_no_computer_has(
    flag: str, size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], family_folder: Callable[[str], Path]
) -> None:
    for n in range(2):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"t{n}.jsonl").write_text(ROWS.replace('"input": "', f'"input": "{n} '))
    argv = ["train", "--tasks", str(tmp_path / "tasks"), "--output-dir", str(tmp_path / "run"), "--quiet"]
    argv += ["--model", str(family_folder("llama")), "--dtype", "fp32", "--device", "cpu", "--max-steps", "1"]
    argv += ["--r", "2", "--layers-to-transform", "1", "--target-modules", "q_proj", flag, str(size)]
    code, _, err = run(capfd, argv)
    assert (code, err.count("\n")) in ((0, 0), (2, 1))
    assert code == 0 or err.startswith("abmll: error: ")
