"""Flags that save memory: with each of them a run is trained, a task adapted to, asked, and exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# PEFT asks a deprecated property of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QUANTISED = ("--load-in-4bit", "--load-in-8bit", "--load-in-int8-torchao")
FLAGS = (*QUANTISED, "--gradient-checkpointing", "--gradient-accumulation-steps 2")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_run_is_trained_adapted_asked_and_exported(
    flag: str, wide_llama: Path, work: Any, abmll: Callable[..., Any]
) -> None:
    def done(command: str) -> str:
        code, out, err = abmll(command, "--quiet")
        assert code == 0, err
        return out

    done(f"{work.train} --model {wide_llama} {flag} --max-steps 2 --calibration-tasks 0 --output-dir trained")
    own = flag if flag == "--gradient-checkpointing" else ""  # the others are remembered, or are of training alone
    done(f"adapt toy3.jsonl --theta trained --adapt full --method abmll --steps 2 {own} --output-dir learned")
    done("predict learned --input questions.jsonl --output answers.jsonl")
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sum(one["probs"]) for one in answers] == pytest.approx([1.0] * 6)

    done("export learned --format peft --output-dir adapter")
    update = load_file("adapter/adapter_model.safetensors")
    assert all(one.abs().sum() > 0 for one in update.values())  # B starts at zero: it has learned
    plain = AutoModelForCausalLM.from_pretrained(wide_llama, dtype=torch.float32)
    PeftModel.from_pretrained(plain, "adapter")
    code, _, err = abmll("export learned --format merged --output-dir merged --quiet")
    if flag in QUANTISED:
        assert (code, err.count("\n"), Path("merged").exists()) == (2, 1, False)
        assert "cannot merge into a quantised layer; export with --format peft" in err
    else:
        assert (code, err) == (0, "")
        AutoModelForCausalLM.from_pretrained("merged")
