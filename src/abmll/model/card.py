"""The README.md of a folder that is shared: what was learned, on what, how, how well, and how to use it.

Its front matter is what a model hub reads: licence, base model, tags, and results as far as they were measured.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from abmll.common.checkpoint import DOCUMENT, STATE, load_bundle, model_checkpoint
from abmll.common.documents import Document, is_of, read_json
from abmll.common.errors import one_line
from abmll.common.markdown_text import as_text, span
from abmll.language import embedded
from abmll.methods import find_rule
from abmll.model.run_folder import EVALUATED, RunFolder
from abmll.tasks.written import WRITTEN

NAMES = {"accuracy": "Accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE", "auroc": "AUROC"}

RUN = """---
{front_matter}
---

# {label} adapter for {base}

{origin}
{training}
    abmll adapt new_task.jsonl --theta {name} --output-dir adapted
    abmll predict adapted --input questions.jsonl --output answers.jsonl

The adapter fits only the base model named above ({fingerprint:.19}...){note}.
"""

TRAINING = """Negative log-likelihood per training example over the last {last} episodes: {nll:.3f} nats, accuracy
{accuracy:.3f}. These are training numbers; `abmll evaluate` measures on unseen tasks. Settings: config.yaml. Every
number: metrics.jsonl.
"""

POSTERIOR = """---
{front_matter}
---

# {task}

What abmll {version} ({label}) has learned of one text task from {examples} labelled examples.

{use}

It fits only the base model {base} ({fingerprint:.19}...){note}.
"""


CHOSEN = """    abmll predict {name} --input new.csv --output answers.csv

Labels: {labels}"""

WRITTEN_ANSWERS = """    abmll predict {name} --input new.csv --output answers.jsonl

Its answers are written, not chosen:

    from abmll import TaskPosterior

    posterior = TaskPosterior.from_pretrained({quoted})
    print(posterior.generate(["a new text"])[0].output)"""


@dataclass(frozen=True)
class CardOptions:
    """What nothing on the disk says: the licence, and the hub's names of the data sets that were learned from."""

    license: str | None = None
    datasets: Sequence[str] = ()


NOTHING_SAID = CardOptions()


class BaseName(NamedTuple):
    """A base model without any path of this computer: a hub's name, or a folder's last name."""

    name: str
    is_hub_name: bool
    note: str | None

    @property
    def hub_name(self) -> str | None:
        """The name, where it is a hub's."""
        return self.name if self.is_hub_name else None


def base_name(model: str) -> BaseName:
    """How others know the base model that is called ``model`` here."""
    if model == embedded.NAME:
        return BaseName(embedded.HUB_NAME, True, embedded.NOTE)
    folder = Path(model).expanduser()
    try:
        validate_repo_id(model)
        is_hub_name = not folder.is_dir()
    except HFValidationError:
        is_hub_name = False
    return BaseName(model, True, None) if is_hub_name else BaseName(folder.resolve().name, False, None)


def front_matter(
    base: str | None,
    library: str,
    tags: Sequence[str],
    options: CardOptions = NOTHING_SAID,
    name: str | None = None,
    results: Sequence[EvalResult] = (),
) -> str:
    """The YAML at the top of a card, without the lines around it; ``base``: the base model, where a hub has it."""
    data = ModelCardData(
        base_model=base,
        library_name=library,
        license=options.license,
        datasets=list(options.datasets) or None,
        tags=list(tags),
        model_name=name if results else None,
        eval_results=list(results) or None,
    )
    return data.to_yaml()


def folder_card(folder: Path, name: str, options: CardOptions = NOTHING_SAID) -> str:
    """The card of a training run's folder, or of a posterior's, that is to be called ``name``.

    Raises ``CheckpointError`` where the folder is damaged or neither of them.
    """
    if (folder / DOCUMENT).exists():
        return posterior_card(load_bundle(folder, DOCUMENT).document, name, options)
    document = load_bundle(model_checkpoint(folder), STATE).document
    rows = [row for row in RunFolder(folder).rows() if row["episode"] <= document["episode"]]
    results = _evaluated(folder)
    settings, fingerprint, episodes = document["settings"], document["base_fingerprint"], document["episode"]
    return run_card(name, settings, fingerprint, document["tasks"], episodes, rows, results, options)


def run_card(
    name: str,
    settings: Mapping[str, Any],
    fingerprint: str,
    tasks: Sequence[str],
    episodes: int,
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[EvalResult] = (),
    options: CardOptions = NOTHING_SAID,
    remark: str = "",
) -> str:
    """The card of a training run.

    Args:
        name: the run's folder or its name on the hub.
        settings: the run's flat settings.
        fingerprint: of the base model.
        tasks: names of the training tasks.
        episodes: how many there were.
        rows: the run's metrics, one mapping an episode; none where they are not known.
        results: what was measured on unseen tasks; without any the training's own numbers are given.
        options: licence and data sets.
        remark: what became of the run on its validation tasks.
    """
    base, rule = base_name(settings["model"]), find_rule(settings["method"])
    training, last = "", rows[-max(1, len(tasks)) :]
    if last:
        means = {key: sum(row[key] for row in last) / len(last) for key in ("nll", "accuracy")}
        training = TRAINING.format(last=len(last), **means) + (f"{remark}\n" if remark else "")
        results = results or _results("training", f"training tasks, last {len(last)} episodes", "in training", means)
    tags = ["abmll", "text-classification", "lora", "meta-learning", "bayesian", rule.name]
    return RUN.format(
        front_matter=front_matter(base.hub_name, "abmll", tags, options, _short(name), results),
        label=rule.label,
        base=as_text(base.name),
        origin=_origin(tasks, episodes),
        training=training,
        name=one_line(name),
        fingerprint=fingerprint,
        note=_note(base),
    )


def posterior_card(document: Document, name: str, options: CardOptions = NOTHING_SAID) -> str:
    """The card of a posterior with this ``document``."""
    settings, labels = document["settings"], document["labels"]
    base, method = base_name(settings["model"]), settings.get("method")
    is_written, task = bool(settings.get(WRITTEN)), one_line(document["task_name"])
    use, known = CHOSEN, span(json.dumps(labels, ensure_ascii=False)) if labels else "those of each question"
    kind = "text-classification"
    if is_written:
        use, kind = WRITTEN_ANSWERS, "text-generation"
    results = _results("task", task, "cross-validated", document.get("measured", {}))
    tags = ["abmll", kind, "few-shot", "bayesian", *([method] if method else [])]
    return POSTERIOR.format(
        front_matter=front_matter(base.hub_name, "abmll", tags, options, _short(name), results),
        task=as_text(task),
        version=version("abmll"),
        label=find_rule(method).label if method else "a method of its own",
        examples=settings.get("adapt_examples", "no"),
        use=use.format(name=one_line(name), quoted=json.dumps(name, ensure_ascii=False), labels=known),
        base=as_text(base.name),
        fingerprint=document["base_fingerprint"],
        note=_note(base),
    )


def _results(kind: str, dataset: str, how: str, metrics: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics that are numbers, as the hub lists them."""
    return [
        EvalResult("text-classification", f"abmll-{kind}", dataset, key, value, metric_name=f"{NAMES[key]}, {how}")
        for key, value in metrics.items()
        if key in NAMES and isinstance(value, int | float) and math.isfinite(value)
    ]


def _evaluated(folder: Path) -> list[EvalResult]:
    """What ``abmll evaluate`` has left in the run's folder, if anything."""
    path = folder / EVALUATED
    if not is_of(path, "evaluation"):
        return []
    document = read_json(path, "evaluation", "evaluate the run again")
    how = f"mean over {len(document['tasks'])} unseen tasks"
    return _results("suite", document["suite"], how, document["mean"])


def _origin(tasks: Sequence[str], episodes: int) -> str:
    if not episodes:
        return f"The language model as it was downloaded, for abmll {version('abmll')}."
    named = f"\n({', '.join(map(as_text, tasks))})" if tasks else ""
    return f"Meta-trained with abmll {version('abmll')}: {episodes} episodes over {len(tasks)} tasks{named}."


def _short(name: str) -> str:
    return Path(name).name or "theta"


def _note(base: BaseName) -> str:
    return "" if base.note is None else f"; {base.note}"
