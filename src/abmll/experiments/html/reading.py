"""What a folder holds, read into one shape: a run, an evaluation and a comparison all become a `Report`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from abmll.common.errors import DataError
from abmll.experiments.metrics import Floats, Outcomes, outcomes

PREDICTIONS = "predictions.jsonl"
CURVES = ("nll", "kl", "log_sigma")


@dataclass(frozen=True)
class Method:
    """One learned (or merely adapted) model: its numbers, its predictions and its training curves, where present."""

    label: str
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mean: Mapping[str, Any] = field(default_factory=dict)
    pooled: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # only those of this method, in a comparison
    cost: Mapping[str, float] = field(default_factory=dict)
    outcomes: Outcomes | None = None  # of all examples of all tasks
    curves: Mapping[str, Floats] = field(default_factory=dict)  # "episode" and CURVES, (episodes,), NaN where not known
    sweeps: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # points by the setting that varies
    ood: Mapping[str, float | None] = field(
        default_factory=dict
    )  # AUROC of each uncertainty, of out-of-distribution inputs


@dataclass(frozen=True)
class Report:
    """Everything the page shows, in the order of its source."""

    kind: Literal["run", "evaluation", "comparison"]
    name: str
    methods: Mapping[str, Method]
    suite: str | None = None
    seeds: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # tasks of the suite that were not there
    known_leaks: tuple[str, ...] = ()  # evaluation tasks that overlap with the training
    reference: str = "abmll"  # the method that the others are compared with


def read_report(folder: Path | str) -> Report:
    """Read a comparison, a run (with its evaluation, if any) or an evaluation; what is optional may be absent.

    Raises DataError where the folder holds none of them, or where a file is damaged.
    """
    folder = Path(folder)
    if (folder / "comparison.json").is_file():
        return _read_comparison(folder)
    if (folder / "metrics.jsonl").is_file():
        return _read_run(folder)
    if (folder / "metrics.json").is_file():
        return _read_evaluation(folder)
    raise DataError(
        f"{folder}: nothing to report, no comparison.json, metrics.jsonl or metrics.json; "
        "give a folder that train, evaluate or demo has written"
    )


def _read_comparison(folder: Path) -> Report:
    path = folder / "comparison.json"
    content = _read_json(path, "abmll-comparison-2")
    methods = {}
    for key, cell in _need(content, "methods", path).items():
        run = folder / cell["run"] if cell.get("run") else None
        # Of one seed a folder, of several a file each.
        evaluation = [Path(cell["evaluation"]) / PREDICTIONS] if cell.get("evaluation") else []
        methods[key] = Method(
            label=str(cell.get("label") or key),
            tasks=_need(cell, "tasks", path),
            mean=_need(cell, "mean", path),
            pooled=cell.get("pooled") or {},
            settings=cell.get("settings") or {},
            cost=cell.get("cost") or {},
            outcomes=_read_outcomes([folder / path for path in (*evaluation, *(cell.get("predictions") or ()))]),
            curves=_read_curves(run),
            sweeps=cell.get("curves") or {},
            ood=(cell.get("out_of_distribution") or {}).get("mean") or {},
        )
    reference = content.get("reference") or Report.reference
    return Report("comparison", folder.resolve().name, methods, reference=reference, **_origin(content))


def _read_run(folder: Path) -> Report:
    evaluated = (folder / "evaluation" / "metrics.json").is_file()
    report = _read_evaluation(folder / "evaluation") if evaluated else None
    key, method = next(iter(report.methods.items())) if report else ("run", Method(folder.resolve().name))
    method = Method(**{**vars(method), "curves": _read_curves(folder), "cost": _read_cost(folder)})
    config = folder / "config.yaml"
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{config}: not valid YAML ({' '.join(str(error).split())}); restore or remove it") from error
    origin = _origin(vars(report)) if report else {}
    return Report("run", folder.resolve().name, {key: method}, **{**origin, "settings": settings or {}})


def _read_evaluation(folder: Path) -> Report:
    path = folder / "metrics.json"
    content = _read_json(path, "abmll-evaluation-2")
    method = Method(
        label=str(content.get("label") or content.get("method") or folder.name),
        tasks=_need(content, "tasks", path),
        mean=_need(content, "mean", path),
        pooled=content.get("pooled") or {},
        outcomes=_read_outcomes([folder / PREDICTIONS]),
    )
    seeds = [content["seed"]] if content.get("seed") is not None else []
    key = str(content.get("method") or "evaluation")
    return Report("evaluation", folder.resolve().name, {key: method}, **_origin({**content, "seeds": seeds}))


def _origin(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "suite": content.get("suite"),
        "seeds": tuple(content.get("seeds") or ()),
        "settings": content.get("settings") or {},
        "versions": content.get("versions") or {},
        "missing": tuple(content.get("missing") or ()),
        "known_leaks": tuple(content.get("known_leaks") or ()),
    }


def _read_json(path: Path, format: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # malformed JSON and wrong encoding alike
        raise DataError(f"{path}: not valid JSON ({error}); write it again") from error
    if not isinstance(content, dict) or content.get("format") != format:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: format is {found!r}, expected '{format}'; write it again with this version")
    return content


def _need(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: key '{key}' is missing or empty; write the file again")
    return value


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file with their line numbers; a last line cut short by a killed process is left out."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or a line cut short
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}); remove the line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object, found {type(row).__name__}; remove the line")
        yield number, row


def _read_outcomes(paths: Sequence[Path]) -> Outcomes | None:
    """Of the predictions in all of these files together; those that are not there are left out."""
    found = [_outcomes_of(path) for path in paths if path.is_file()]
    known = [each for each in found if each is not None]
    return Outcomes(*map(np.concatenate, zip(*known, strict=True))) if known else None


def _outcomes_of(path: Path) -> Outcomes | None:
    probs, answers = [], []
    for number, row in _rows(path):
        if not isinstance(row.get("probs"), list) or not isinstance(row.get("answer"), int):
            raise DataError(f"{path}:{number}: needs 'probs' (a list) and 'answer' (an index); evaluate again")
        probs.append(row["probs"])
        answers.append(row["answer"])
    try:
        return outcomes(probs, answers) if probs else None
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_curves(folder: Path | None) -> dict[str, Floats]:
    path = folder / "metrics.jsonl" if folder else None
    if path is None or not path.is_file():
        return {}
    rows = list(_rows(path))
    if not rows:
        return {}
    return {key: np.array([_number(row, key, f"{path}:{n}") for n, row in rows]) for key in ("episode", *CURVES)}


def _number(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if value is not None and not isinstance(value, (int, float)):
        raise DataError(f"{where}: '{key}' is {value!r}, expected a number; remove the line")
    return float("nan") if value is None else float(value)


def _read_cost(folder: Path) -> dict[str, float]:
    path = folder / "timing.jsonl"
    if not path.is_file():
        return {}
    rows = [(f"{path}:{number}", row) for number, row in _rows(path)]
    episodes, calibration = len(rows), folder / "calibration.json"
    if calibration.is_file():
        learned = _read_json(calibration, "abmll-calibration-3")
        if learned.get("episode") == episodes:
            rows.append((str(calibration), _need(learned, "cost", calibration)))
    spent = {key: sum(_number(row, key, where) for where, row in rows) for key in ("seconds", "tokens")}
    return {"episodes": episodes, **spent}
