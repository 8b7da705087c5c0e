"""--activation-cache-dir in every verb that reads examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]

VERBS = {
    "train": "--output-dir out/run --max-steps 1",
    "adapt": "adapt toy3.jsonl --theta run --output-dir out/new --steps 1",
    "predict": "predict new --input questions.jsonl --output out/answers.jsonl --num-samples 2",
    "evaluate": "evaluate run --suite suite.yaml --output-dir out/ev --num-samples 2 --steps 1",
}


def rows(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("activations-*/*.safetensors"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_fills_a_cache_and_reads_it(verb: str, work: Any, abmll: Call) -> None:
    command = VERBS[verb] if verb != "train" else f"{work.train} {VERBS[verb]}"
    assert abmll(command, "--activation-cache-dir activations --quiet").code == 0
    written = rows("activations")
    assert written
    assert abmll(command, "--overwrite --activation-cache-dir activations --quiet").code == 0
    assert rows("activations") == written


def test_a_full_cache_is_said_once_and_ends_nothing(work: Any, abmll: Call) -> None:
    code, _, err = abmll(
        work.train, "--output-dir out --max-steps 2 --activation-cache-dir activations --activation-cache-disk-gb 0"
    )
    assert code == 0
    assert err.count("activation_cache_dir activations is full") == 1
    assert rows("activations") == []


def test_a_cache_that_cannot_be_made_is_refused(refused: Callable[..., str], work: Any) -> None:
    refused(f"{work.train} --output-dir out --activation-cache-dir suite.yaml/x", "cannot write suite.yaml/x")


def test_a_run_may_go_on_with_another_cache(work: Any, abmll: Call) -> None:
    one = f"{work.train} --save-steps 1 --output-dir one"
    two = f"{work.train} --save-steps 1 --output-dir two"
    assert abmll(one, "--max-steps 2").code == 0
    assert abmll(two, "--max-steps 1 --activation-cache-dir activations").code == 0
    assert abmll(two, "--max-steps 2 --resume").code == 0
    for name in ("metrics.jsonl", "checkpoint-2/theta.safetensors"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
