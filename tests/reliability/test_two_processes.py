"""Two commands at once: on one folder the second is refused or waits, and what the first one writes stays whole.

The two are forked from this process, which has everything imported, so that a pair takes a second or two.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from abmll.cli.main import entry
from abmll.common.checkpoint import STATE, checkpoints, load_bundle
from abmll.common.documents import read_json, read_json_lines

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SECONDS = 120

ROWS = [{"input": f"question {n} {'ab'[n % 2]}", "options": ["yes", "no"], "answer": n % 2} for n in range(24)]
TABLE = "text,label\n" + "".join(f"text {n} {'ab'[n % 2]},{['yes', 'no'][n % 2]}\n" for n in range(24))
SIZES = "--inner-steps 1 --per-device-train-batch-size 2 --r 2 --layers-to-transform 1 --target-modules q_proj"
SUITE = "name: mine\ntrain: [t0, t1]\nevaluation: [t2]\n"
TUNED = "name: tuned\ntrain: [t0, t1]\nvalidation: [t1]\nevaluation: [t2]\n"


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory, family_folder: Callable[[str], Path]) -> Path:
    """Tasks, tables, a run and a posterior."""
    root = tmp_path_factory.mktemp("desk")
    (root / "tasks").mkdir()
    (root / "learn").mkdir()
    for n in range(3):
        rows = [{**row, "input": f"{n} {row['input']}"} for row in ROWS]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "tasks" / f"t{n}.jsonl").write_text(text)
        if n < 2:
            (root / "learn" / f"t{n}.jsonl").write_text(text)
    (root / "table.csv").write_text(TABLE)
    (root / "new.csv").write_text("text\n" + "".join(f"text {n} a\n" for n in range(6)))
    (root / "tasks" / "suite.yaml").write_text(SUITE)
    (root / "tasks" / "tuned.yaml").write_text(TUNED)
    model = family_folder("llama")
    place = f"--model {model} --dtype fp32 --device cpu --quiet"
    assert start(root, f"train --tasks learn {SIZES} --max-steps 2 --output-dir run {place}")() == 0
    assert start(root, f"adapt tasks/t2.jsonl --theta run --steps 1 --output-dir new {place}")() == 0
    return root


def start(root: Path, command: str) -> Callable[[], int]:
    """Begin a command in a process of its own; what comes back waits for its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.chdir(root)
            out = os.open(root / f"log-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            code = entry(command.split())
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:
            os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def ended() -> int:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                log = (root / f"log-{pid}").read_text()
                assert "Traceback" not in log, f"{command}: {log}"
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise AssertionError(f"{command} hangs")

    return ended


def whole(root: Path, name: str) -> None:
    """What lies in an output is whole, if there is any."""
    folder = root / name
    for path in checkpoints(folder).values() if folder.is_dir() else ():
        load_bundle(path, STATE)
    if (folder / "metrics.jsonl").is_file():
        episodes = [row["episode"] for _, row in read_json_lines(folder / "metrics.jsonl", "")]
        assert episodes == list(range(1, len(episodes) + 1))
    if (folder / "comparison.json").is_file():
        read_json(folder / "comparison.json", "comparison", "")
    if (folder / "metrics.json").is_file():
        read_json(folder / "metrics.json", "evaluation", "")


COMMANDS = {
    "train": f"train --tasks learn {SIZES} --max-steps 6 --save-steps 1 --output-dir OUT",
    "adapt": "adapt tasks/t2.jsonl --theta run --steps 4 --output-dir OUT",
    "adapt by a head": "adapt tasks/t2.jsonl --output-dir OUT",
    "predict": "predict new --input tasks/t2.jsonl --output OUT.csv",
    "classify": "classify table.csv new.csv --output OUT.csv --save OUT",
    "evaluate": "evaluate run --suite tasks/suite.yaml --steps 1 --test-examples 2 --output-dir OUT",
    "export": "export new --format peft --output-dir OUT",
    "merge": "export new --format merged --output-dir OUT",
    "report": "report run",
    "compare": f"compare --suite tasks/suite.yaml --methods abmll {SIZES} --max-steps 2 --steps 1 --test-examples 2"
    " --output-dir OUT",
    "tune": f"tune --suite tasks/tuned.yaml --methods abmll --trials 1 {SIZES} --max-steps 1 --steps 1"
    " --test-examples 2 --output-dir OUT",
    "suggest": "suggest table.csv --pool new.csv --output OUT.csv",
}
NO_OVERWRITE = ("compare", "report", "tune")
PAIRS = [(first, second) for first in COMMANDS for second in (first, "train", "adapt", "export", "classify")]


def test_pairs(desk: Path, family_folder: Callable[[str], Path], tries: Callable[[int], int]) -> None:
    place = f"--model {family_folder('llama')} --dtype fp32 --device cpu --quiet"
    step = max(1, len(PAIRS) // tries(len(PAIRS)))
    for number, (first, second) in enumerate(PAIRS[::step]):
        name = f"out{number}"
        commands = [COMMANDS[one].replace("OUT", name) for one in (first, second)]
        waits = []
        for one, command in zip((first, second), commands, strict=True):
            of_model = "--quiet" if one == "report" else place
            again = "" if one in NO_OVERWRITE else " --overwrite"
            waits.append(start(desk, f"{command} {of_model}{again}"))
            time.sleep(0.1 * (number % 4))
        codes = [wait() for wait in waits]
        assert set(codes) <= {0, 2}, f"{first} and {second}: {codes}"
        said = "".join(path.read_text() for path in desk.glob("log-*"))
        assert first != second or 0 in codes, f"{first} twice: nobody was let through: {said}"
        for path in desk.glob("log-*"):
            path.unlink()
        whole(desk, name)
        left = [path.name for path in desk.iterdir() if path.name.endswith((".lock", ".tmp", ".replaced"))]
        assert left == [], f"{first} and {second}"
