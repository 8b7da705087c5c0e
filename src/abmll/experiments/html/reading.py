"""What a folder holds, read into one shape: a run, an evaluation and a comparison all become a `Report`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from abmll.common.bounded_yaml import read_yaml_text, yaml_value
from abmll.common.checkpoint import best_episode
from abmll.common.documents import Document, is_of, read_json, read_json_lines
from abmll.common.errors import DataError
from abmll.common.files import refuse_link_out
from abmll.experiments.metrics import Floats, Outcomes, outcomes
from abmll.model.run_folder import CONFIG, METRICS, TIMING, VALIDATION, RunFolder

CURVES = ("episode", "nll", "accuracy", "kl", "log_sigma")
EVALUATIONS = ("episode", "nll", "accuracy")
AGAIN = "write it again with this version"


@dataclass(frozen=True)
class Method:
    """One learned (or merely adapted) model: its numbers, its predictions and its training curves, where present."""

    label: str  # unique on the page
    index: int = 0  # gives its colour
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mean: Mapping[str, Any] = field(default_factory=dict)
    pooled: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # only those of this method, in a comparison
    cost: Mapping[str, float] = field(default_factory=dict)
    outcomes: Outcomes | None = None  # of all examples of all tasks
    curves: Mapping[str, Floats] = field(default_factory=dict)  # those of CURVES, (episodes,), NaN where not known
    evaluations: Mapping[str, Floats] = field(default_factory=dict)  # those of EVALUATIONS, on validation tasks
    best_episode: int | None = None  # whose checkpoint was chosen, where one was
    sweeps: Mapping[str, Sequence[Document]] = field(default_factory=dict)  # points by the setting that varies
    ood: Mapping[str, float] = field(default_factory=dict)  # AUROC by uncertainty, where known


@dataclass(frozen=True)
class Report:
    """Everything the page shows, in the order of its source."""

    kind: Literal["run", "evaluation", "comparison"]
    name: str
    methods: Mapping[str, Method]
    suite: str | None = None
    seeds: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()  # tasks of the suite that were not there
    known_leaks: Sequence[str] = ()  # evaluation tasks that overlap with the training
    reference: str = "abmll"  # the method that the others are compared with


# What a document says of its origin under the same names as a Report.
ORIGIN = ("suite", "seeds", "settings", "versions", "missing", "known_leaks", "reference")


def read_report(folder: Path | str) -> Report:
    """Read a comparison, a run (with its evaluation, if any) or an evaluation; what is optional may be absent.

    Raises DataError where the folder holds none of them, DataError or CheckpointError where a file is damaged.
    """
    folder = Path(folder)
    if (folder / "comparison.json").is_file():
        return _read_comparison(folder)
    if (folder / METRICS).is_file():
        return _read_run(folder)
    if (folder / "metrics.json").is_file():
        return _read_evaluation(folder)
    raise DataError(
        f"{folder}: nothing to report, no comparison.json, metrics.jsonl or metrics.json; "
        "give a folder that train, evaluate or compare has written"
    )


def _read_comparison(folder: Path) -> Report:
    path = folder / "comparison.json"
    content = read_json(path, "comparison", AGAIN, DataError)
    rows = _need(content, "methods", path)
    labels = [str(row.get("label") or key) for key, row in rows.items()]
    methods = {}
    for index, (key, row) in enumerate(rows.items()):
        method = _method(row, path, labels[index], [folder / name for name in row.get("predictions") or ()])
        ood = row.get("out_of_distribution") or {}
        methods[key] = replace(
            method,
            label=method.label if labels.count(method.label) == 1 else f"{method.label} ({key})",
            index=index,
            settings=row.get("settings") or {},
            cost=row.get("cost") or {},
            curves=_read_curves(folder / row["run"]) if row.get("run") else {},
            sweeps=row.get("curves") or {},
            ood={name: value for name, value in (ood.get("mean") or {}).items() if value is not None},
        )
    return Report("comparison", folder.resolve().name, methods, **_origin(content))


def _read_run(folder: Path) -> Report:
    name = folder.resolve().name
    evaluated = is_of(folder / "evaluation" / "metrics.json", "evaluation")
    report = _read_evaluation(folder / "evaluation") if evaluated else Report("run", name, {"run": Method(name)})
    [(key, method)] = report.methods.items()
    cost = RunFolder(folder).cost() if (folder / TIMING).exists() else {}
    evaluations = _read_curves(folder, VALIDATION, EVALUATIONS)
    curves = {"curves": _read_curves(folder), "evaluations": evaluations}
    method = replace(method, **curves, cost=cost, best_episode=best_episode(folder))
    return replace(report, kind="run", name=name, methods={key: method}, settings=_read_settings(folder))


def _read_evaluation(folder: Path) -> Report:
    path = folder / "metrics.json"
    content = read_json(path, "evaluation", AGAIN, DataError)
    key = str(content.get("method") or "evaluation")
    method = _method(content, path, str(content.get("label") or key), [folder / "predictions.jsonl"])
    seeds = [] if content.get("seed") is None else [content["seed"]]
    return Report("evaluation", folder.resolve().name, {key: method}, **_origin(content | {"seeds": seeds}))


def _method(row: Document, path: Path, label: str, predictions: Sequence[Path]) -> Method:
    """What a comparison's row and an evaluation have in common."""
    found = [each for each in map(_read_outcomes, predictions) if each is not None]
    return Method(
        label=label,
        tasks=_need(row, "tasks", path),
        mean=_need(row, "mean", path),
        pooled=row.get("pooled") or {},
        outcomes=Outcomes(*map(np.concatenate, zip(*found, strict=True))) if found else None,
    )


def _read_settings(run: Path) -> dict[str, Any]:
    """The settings of a run; none where it has no file of them."""
    config, remedy = run / CONFIG, "restore or remove it"
    if not config.exists():
        return {}
    refuse_link_out(run, config, remedy, DataError)
    settings = yaml_value(read_yaml_text(config, DataError), str(config), DataError)
    if not isinstance(settings or {}, dict):
        raise DataError(f"{config}: must be a mapping: 'name: value', one a line; {remedy}")
    return settings or {}


def _origin(content: Document) -> dict[str, Any]:
    return {name: content[name] for name in ORIGIN if content.get(name)}


def _need(content: Document, key: str, path: Path) -> Document:
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: key '{key}' is missing or empty; write the file again")
    return value


def _read_outcomes(path: Path) -> Outcomes | None:
    """Of the predictions in a file; None where it is not there."""
    probs, answers = [], []
    for number, row in read_json_lines(path, "evaluate again", DataError):
        if not isinstance(row.get("probs"), list) or not isinstance(row.get("answer"), int):
            raise DataError(f"{path}:{number}: needs 'probs' (a list) and 'answer' (an index); evaluate again")
        probs.append(row["probs"])
        answers.append(row["answer"])
    try:
        return outcomes(probs, answers) if probs else None
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_curves(folder: Path, file: str = METRICS, names: Sequence[str] = CURVES) -> dict[str, Floats]:
    path = folder / file
    rows = list(read_json_lines(path, "remove the line", DataError))
    return {name: np.array([_number(row, name, f"{path}:{n}") for n, row in rows]) for name in names if rows}


def _number(row: Document, key: str, where: str) -> float:
    value = row.get(key)
    if value is not None and not isinstance(value, (int, float)):
        raise DataError(f"{where}: '{key}' is {value!r}, expected a number; remove the line")
    return float("nan") if value is None else float(value)
