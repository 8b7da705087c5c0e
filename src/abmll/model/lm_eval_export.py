"""The files with which lm-evaluation-harness measures an exported adapter: two tasks, their code, their rows."""

import json
import re
from collections.abc import Sequence
from importlib.resources import files

from abmll.common.documents import Document, json_lines
from abmll.common.errors import ConfigError, DataError
from abmll.tasks import Example

CODE = "lm_eval_task"  # of this package; copied beside the tasks
HIGHER_IS_BETTER = {"acc": True, "nll": False, "brier": False}


def harness_name(task_name: str) -> str:
    """The task's name for the harness, which has names of many other tasks."""
    return "abmll_" + (re.sub(r"[^a-z0-9]+", "_", task_name.lower()).strip("_") or "task")


def harness_files(notes: Document, examples: Sequence[Example]) -> dict[str, str]:
    """Texts by file name; ``notes`` are those of the export (``export_notes``), ``examples`` what it is measured on.

    The task ``harness_name`` takes log-probabilities as a model gives them. That with ``_calibrated`` behind its name
    makes of a plain model's what ABMLL makes of them.
    Raises ``ConfigError`` where options differ by question, ``DataError`` for an example without one of the labels.
    """
    labels = notes["labels"]
    if not labels:
        raise ConfigError(
            "lm-eval: every question has its own options, and one task needs one list; export peft instead"
        )
    rows = []
    for example in examples:
        label = None if example.answer is None else example.options[example.answer]
        if label not in labels:
            what = "has no answer" if label is None else f"has the answer {label!r}, which is no label of the task"
            raise DataError(f"data: example '{example.id}' {what}; give rows with its labels")
        rows.append({"input": example.input, "answer": labels.index(label)})
    name = harness_name(notes["task_name"])
    return {
        "test.jsonl": json_lines(rows),
        f"{CODE}.py": (files(__package__ or "abmll.model") / f"{CODE}.py").read_text(encoding="utf-8"),
        f"{name}.yaml": _task(name, "as_given"),
        f"{name}_calibrated.yaml": _task(f"{name}_calibrated", "calibrated"),
    }


def _task(name: str, metrics: str) -> str:
    """The harness's own form of a task; ``!function`` is not YAML's, so this is written line by line."""
    lines = [
        f"task: {json.dumps(name)}",
        f"custom_dataset: !function {CODE}.data",
        "output_type: multiple_choice",
        "test_split: test",
        f"doc_to_text: !function {CODE}.prompt",
        f"doc_to_choice: !function {CODE}.answers",
        "doc_to_target: answer",
        'target_delimiter: ""',
        f"process_results: !function {CODE}.{metrics}",
        "metric_list:",
    ]
    for metric, higher in HIGHER_IS_BETTER.items():
        lines += [f"  - metric: {metric}", "    aggregation: mean", f"    higher_is_better: {json.dumps(higher)}"]
    return "\n".join([*lines, "metadata:", "  version: 1"]) + "\n"
