"""The task of this folder for lm-evaluation-harness; ``abmll.json`` beside it has prompt, labels and calibration.

``abmll export --format lm-eval`` copies this file: it needs the harness alone, and not ABMLL.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@cache
def about() -> dict[str, Any]:
    """What ``abmll.json`` says."""
    return json.loads((HERE / "abmll.json").read_text(encoding="utf-8"))


def data(**unused: Any) -> dict[str, Any]:
    """The rows of ``test.jsonl``: a text and the place of its label."""
    from datasets import Dataset

    lines = (HERE / "test.jsonl").read_text(encoding="utf-8").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}


def prompt(row: dict[str, Any]) -> str:
    """The prompt as in ABMLL, without the tokens that open it."""
    return about()["prompt"]["template"].replace("{input}", row["input"].strip())


def answers(row: dict[str, Any]) -> list[str]:
    """What is scored behind the prompt, in the order of the labels."""
    return about()["answer_texts"]


def as_given(row: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Metrics of a model's own log-probabilities."""
    return _metrics(row, [float(one[0]) for one in results])


def calibrated(row: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Metrics of the probabilities that ABMLL makes of a plain model's log-probabilities."""
    logs, how = [float(one[0]) for one in results], about()
    if how["prompt"]["length_normalize"]:
        logs = [log / len(tokens) for log, tokens in zip(logs, how["answer_tokens"], strict=True)]
    if how["calibration"] is not None:
        slope, biases = how["calibration"]["inverse_temperature"], how["calibration"]["biases"]
        logs = [slope * log + bias for log, bias in zip(_normalised(logs), biases, strict=True)]
    return _metrics(row, logs)


def _metrics(row: dict[str, Any], logs: list[float]) -> dict[str, float]:
    logs, right = _normalised(logs), row["answer"]
    brier = sum((math.exp(log) - (place == right)) ** 2 for place, log in enumerate(logs))
    return {"acc": float(logs.index(max(logs)) == right), "nll": -logs[right], "brier": brier}


def _normalised(logs: list[float]) -> list[float]:
    top = max(logs)
    total = top + math.log(sum(math.exp(log - top) for log in logs))
    return [log - total for log in logs]
