"""The README.md of a run folder: what was trained, on what, how, and how to use it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

CARD = """---
{front_matter}---

# {label} adapter for {model}

Meta-trained with abmll {version}: {episodes} episodes over {num_tasks} tasks
({tasks}).
Negative log-likelihood per training example over the last {last} episodes: {nll:.3f} nats, accuracy {accuracy:.3f}.
These are training numbers; `abmll evaluate` measures on unseen tasks.
{remark}
    abmll adapt new_task.jsonl --theta {run} --output-dir adapted
    abmll predict adapted --input questions.jsonl --output answers.jsonl

The adapter fits only the base model named above ({fingerprint:.12}...). Settings: config.yaml.
Training curves: report.html. Every number: metrics.jsonl.
"""


def model_card(
    label: str,
    run: str,
    settings: Mapping[str, Any],
    fingerprint: str,
    tasks: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    remark: str = "",
) -> str:
    """A model card in Markdown with the Hub's front matter.

    Args:
        label: the learning rule's name for people.
        run: the run folder.
        settings: the run's flat settings.
        fingerprint: of the base model.
        tasks: names of the training tasks.
        rows: the run's metrics, one mapping an episode.
        remark: what became of the run on its validation tasks.
    """
    model, last = settings["model"], rows[-len(tasks) :]
    tags = ["lora", "meta-learning", "bayesian", settings["method"]]
    front_matter = {"base_model": model, "library_name": "abmll", "tags": tags}
    means = {key: sum(row[key] for row in last) / len(last) for key in ("nll", "accuracy")}
    counts = {"episodes": len(rows), "num_tasks": len(tasks), "last": len(last)}
    names = {"label": label, "model": model, "tasks": ", ".join(tasks), "run": run, "fingerprint": fingerprint}
    names["remark"] = f"{remark}\n" if remark else ""
    yaml_text = yaml.safe_dump(front_matter, sort_keys=False)
    return CARD.format(front_matter=yaml_text, version=version("abmll"), **names, **counts, **means)
