"""--activation-cache-dir in every verb that reads examples, --layer-selection from the flag to what is predicted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Call = Callable[..., Any]

VERBS = {
    "train": "--output-dir out/run --max-steps 1",
    "adapt": "adapt run --task toy3.jsonl --output-dir out/new --steps 1",
    "predict": "predict new --input questions.jsonl --output out/answers.jsonl --num-samples 2",
    "evaluate": "evaluate run --suite suite.yaml --output-dir out/ev --num-samples 2 --steps 1",
}


def shards(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("activations-*/*.safetensors"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_fills_a_cache_and_reads_it(verb: str, work: Any, abmll: Call) -> None:
    command = VERBS[verb] if verb != "train" else f"{work.train} {VERBS[verb]}"
    assert abmll(command, "--activation-cache-dir activations --quiet").code == 0
    written = shards("activations")
    assert len(written) == 1
    assert abmll(command, "--overwrite --activation-cache-dir activations --quiet").code == 0
    assert shards("activations") == written


def test_a_full_cache_is_said_once_and_ends_nothing(work: Any, abmll: Call) -> None:
    code, _, err = abmll(
        work.train, "--output-dir out --max-steps 2 --activation-cache-dir activations --activation-cache-disk-gb 0"
    )
    assert code == 0
    assert err.count("activation_cache_dir activations is full") == 1
    assert shards("activations") == []


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


def test_layers_chosen_by_similarity_are_stored_and_used(work: Any, abmll: Call) -> None:
    train = f"{work.train} --layers-to-transform top-1 --layer-selection similarity --save-steps 1 --output-dir mine"
    code, _, err = abmll(train, "--max-steps 1")
    assert code == 0
    settings = yaml.safe_load(Path("mine/config.yaml").read_text())
    chosen = settings["layers_to_transform"]
    assert chosen in ("0", "1")
    assert err.startswith(f"adapting layers {chosen} of 0-1: those that change their input most\n")
    assert settings["layer_selection"] == "similarity"
    assert abmll(train, "--max-steps 2 --resume").code == 0
    assert abmll("adapt mine --task toy3.jsonl --output-dir mine_new --steps 1").code == 0
    assert abmll("predict mine_new --input questions.jsonl --output answers.jsonl --num-samples 2").code == 0
    # The stored settings are a configuration like any other.
    again = "train --tasks tasks --config mine/config.yaml --max-steps 2 --output-dir again"
    assert abmll(again).code == 0
    for name in ("metrics.jsonl", "checkpoint-2/theta.safetensors"):
        assert Path("again", name).read_bytes() == Path("mine", name).read_bytes()


def test_similarity_needs_a_number_of_layers(refused: Callable[..., str], work: Any) -> None:
    command = f"train --model {work.model} --tasks tasks --output-dir out"
    command += " --layer-selection similarity --layers-to-transform none"
    refused(command, "layer_selection: 'similarity' needs a number of layers", "layers_to_transform to 'top-12'")
