"""The flags that quantise the language model, and the quiet of the libraries behind them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("flags", [[], ["--load-in-8bit"], ["--load-in-int8-torchao"]])
def test_a_table_is_learned_without_a_word_of_the_libraries(flags: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    rows = [f"{word} {number},{word}" for number in range(3) for word in ("good", "bad")]
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    command = ["adapt", "labelled.csv", "--model", str(tiny_llama), "--device", "cpu", "--dtype", "fp32"]
    command += [*flags, "--output-dir", "learned", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "abmll", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((tmp_path / "learned" / "posterior.json").read_text())
    saved = {name for name, value in document["settings"].items() if name.startswith("load_in") and value}
    assert saved == {flag.removeprefix("--").replace("-", "_") for flag in flags}
