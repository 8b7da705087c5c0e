"""What the cells of a comparison say together: ``comparison.json``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abmll.common.files import write_json
from abmll.experiments.bootstrap import METRICS, Replicates, bootstrap, difference, interval, make_sample
from abmll.experiments.budget import CURVES, REFERENCE
from abmll.experiments.cells import Cell, Document, load_cell, load_predictions, predictions_path
from abmll.experiments.earlier import known_statistics, read_earlier
from abmll.experiments.execution import Failure
from abmll.experiments.metrics import METRICS as TASK_METRICS
from abmll.experiments.statistics import estimate, task_ranks
from abmll.tasks.suite import Suite

FORMAT = "abmll-comparison-2"
RESULT = "comparison.json"
RANKED = {"accuracy": "higher", "nll": "lower", "ece": "lower"}
RECALIBRATED = {
    "none": "",
    "adaptation": " + temperature (adaptation)",  # of earlier versions, in published results
    "meta": " + temperature (meta)",
    "calibration": " + ABMLL calibration",
}
COSTS = ("seconds", "episodes", "gradient_steps", "tokens", "forward_passes", "peak_memory_mb")
EVALUATION = ("seconds", "gradient_passes", "forward_passes", "tokens", "peak_memory_mb")
OF_A_MACHINE = ("seconds", "peak_memory_mb")
Answers = dict[int, dict[str, list[Document]]]  # of a method, by seed and task


def summarize(
    cells: Sequence[Cell], folder: Path, suite: Suite, failures: Sequence[Failure] = (), reference: str = REFERENCE
) -> Document:
    """Read every result that is there, compare, and write ``comparison.json``; returns what it holds.

    Differences are those from the row ``reference``, where it is there. A method counts with the seeds that it has;
    intervals and p-values are of the methods that have all seeds that any has. Where predictions are not there, they
    are those of the summary that lay in the folder before, if the numbers are still the same.
    """
    earlier = read_earlier(folder / RESULT, FORMAT, suite.name)
    rows: dict[str, list[tuple[Cell, Document]]] = {}
    for cell in cells:
        document = load_cell(cell.path(folder))
        if document is not None:
            rows.setdefault(cell.row, []).append((cell, document))
    mains = {key: [pair for pair in pairs if pair[0].is_main] for key, pairs in rows.items()}
    mains = {key: pairs for key, pairs in mains.items() if pairs}
    answers = {key: {cell.seed: _by_task(cell.path(folder)) for cell, _ in pairs} for key, pairs in mains.items()}
    replicates = _replicates(answers)
    ranks = _ranks(mains) if mains else {}
    own_rows = {key: _row(pairs, folder) for key, pairs in mains.items()}
    methods = {
        key: row
        | {
            "curves": _curves(rows[key]),
            "statistics": known_statistics(earlier, own_rows, key, reference) | _statistics(replicates, key, reference),
            "ranks": {name: estimate(list(own.values())).mean for name, own in ranks[key].items() if own},
            "task_ranks": ranks[key],
        }
        for key, row in own_rows.items()
    }
    first = next(iter(mains.values()), [])
    document = {
        "format": FORMAT,
        "suite": suite.name,
        "seeds": sorted({cell.seed for pairs in mains.values() for cell, _ in pairs}),
        "reference": reference if reference in methods else None,
        "uniform_nll": _uniform_nll(next((own for own in answers.values() if all(own.values())), {}), earlier),
        "missing": list(suite.missing),
        "known_leaks": list(suite.known_leaks),
        "settings": _shared([pair[1]["settings"] for pairs in mains.values() for pair in pairs]),
        "versions": first[0][1]["versions"] if first else {},
        "commits": sorted({str(pair[1]["commit"]) for pairs in mains.values() for pair in pairs}),
        "failures": [
            {"method": failure.cell.row, "seed": failure.cell.seed, "error": failure.error} for failure in failures
        ],
        "methods": methods,
    }
    write_json(folder / RESULT, document)
    return document


def _row(pairs: Sequence[tuple[Cell, Document]], folder: Path) -> Document:
    """A method's numbers: means over its seeds, and their standard errors."""
    cell, first = pairs[0]
    documents = [document for _, document in pairs]
    predictions = [predictions_path(one.path(folder)) for one, _ in pairs]
    mean, mean_errors = _means([document["mean"] for document in documents])
    pooled, pooled_errors = _means([document["pooled"] for document in documents])
    run = None if cell.training is None else Path("runs") / cell.training.name
    return {
        "label": cell.spec.label + RECALIBRATED[cell.settings["recalibrate"]],
        "seeds": [one.seed for one, _ in pairs],
        "settings": first["settings"],
        "machines": _machines(documents),
        "cost": _cost(documents),
        "tasks": {name: _means([document["tasks"][name] for document in documents])[0] for name in first["tasks"]},
        "out_of_distribution": dict(
            zip(("mean", "errors"), _means([one["out_of_distribution"]["mean"] for one in documents]), strict=True)
        ),
        "mean": mean,
        "mean_errors": mean_errors,
        "pooled": pooled,
        "pooled_errors": pooled_errors,
        "truncated_prompts": sum(document["truncated_prompts"] for document in documents),
        "demonstrations_left_out": sum(document["demonstrations_left_out"] for document in documents),
        "predictions": [path.relative_to(folder).as_posix() for path in predictions if path.exists()],
        "run": run.as_posix() if run is not None and (folder / run).is_dir() else None,
    }


def _means(metrics: Sequence[Mapping[str, Any]]) -> tuple[Document, Document]:
    """Mean and standard error over seeds of every number; one that a seed does not know is left out of both."""
    mean, errors = {}, {}
    for name in metrics[0]:
        known = [one[name] for one in metrics if one[name] is not None]
        result = estimate(known) if known else None
        mean[name] = result.mean if result else None
        errors[name] = result.error if result else None
    counts = ("num_examples", "num_tasks", "auroc_tasks")
    return mean | {name: round(mean[name]) for name in counts if name in mean}, errors


def _cost(documents: Sequence[Document]) -> dict[str, float | None]:
    """Means over seeds: of the training under their own names, and of adapting and predicting after ``evaluation_``.

    There is no mean of seconds or memory of seeds on different devices or versions of torch.
    """
    left_out = OF_A_MACHINE if len(_machines(documents)) > 1 else ()
    places = [(name, "training", name) for name in COSTS]
    places += [(f"evaluation_{name}", "evaluation", name) for name in EVALUATION]
    costs: dict[str, float | None] = {}
    for key, part, name in places:
        known = [document["cost"][part][name] for document in documents]
        costs[key] = None if None in known or name in left_out else estimate(known).mean
    return costs


def _machines(documents: Sequence[Document]) -> list[str]:
    """Where the seeds were computed, as far as settings and versions tell."""
    return sorted({f"{one['settings']['device']}, torch {one['versions']['torch']}" for one in documents})


def _curves(pairs: Sequence[tuple[Cell, Document]]) -> dict[str, list[Document]]:
    """By curve, its points in order: the value, and mean and standard error over seeds of the metrics."""
    main = next(cell for cell, _ in pairs if cell.is_main).point()
    curves = {}
    for name in CURVES:
        points: dict[float, list[Document]] = {}
        for cell, document in pairs:
            point = cell.point()
            if all(point[other] == main[other] for other in CURVES if other != name):
                points.setdefault(point[name], []).append(document)
        if len(points) > 1:
            curves[name] = [_point(value, documents) for value, documents in sorted(points.items())]
    return curves


def _point(value: float, documents: Sequence[Document]) -> Document:
    mean, errors = _means([{name: one["mean"][name] for name in TASK_METRICS} for one in documents])
    pooled, _ = _means([{"ece": one["pooled"]["ece"]} for one in documents])
    return {"value": value, "mean": mean, "mean_errors": errors, "pooled_ece": pooled["ece"]}


def _ranks(mains: Mapping[str, Sequence[tuple[Cell, Document]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Each method's rank on every task, by metric, of its means over seeds."""
    ranks: dict[str, dict[str, dict[str, float]]] = {key: {} for key in mains}
    for metric, better in RANKED.items():
        values = {
            key: {
                name: estimate([document["tasks"][name][metric] for _, document in pairs]).mean
                for name in pairs[0][1]["tasks"]
            }
            for key, pairs in mains.items()
        }
        for key, own in task_ranks(values, better).items():
            ranks[key][metric] = own
    return ranks


def _replicates(answers: Mapping[str, Answers]) -> Replicates | None:
    """The bootstrap over those methods that have all seeds, with their predictions."""
    seeds = {seed for own in answers.values() for seed in own}
    whole = {key: own for key, own in answers.items() if own.keys() == seeds and all(own.values())}
    if not whole:
        return None
    tasks = next(iter(next(iter(whole.values())).values()))
    samples = [
        make_sample({key: {seed: own[seed][task] for seed in sorted(own)} for key, own in whole.items()})
        for task in tasks
    ]
    return bootstrap(list(whole), samples)


def _by_task(path: Path) -> dict[str, list[Document]]:
    rows: dict[str, list[Document]] = {}
    for row in load_predictions(path):
        rows.setdefault(row["task"], []).append({name: row[name] for name in ("id", "probs", "answer")})
    return rows


def _statistics(replicates: Replicates | None, key: str, reference: str) -> Document:
    """Intervals of the method's metrics, and its differences from the reference."""
    if replicates is None or key not in replicates.methods:
        return {}
    result: Document = {"intervals": {name: interval(replicates, name, key)[:3] for name in METRICS}}
    if reference in replicates.methods and key != reference:
        differences = {name: difference(replicates, name, key, reference)._asdict() for name in METRICS}
        result["differences"] = differences
    return result


def _uniform_nll(answers: Answers, earlier: Document) -> float | None:
    """The NLL of the uniform prediction, mean over tasks and seeds: log C of a question with C options.

    ``answers`` are those of any one method. Without predictions it is what the earlier summary says, if it does.
    """
    asked = [rows for tasks in answers.values() for rows in tasks.values()]
    nll = [sum(math.log(len(row["probs"])) for row in rows) / len(rows) for rows in asked]
    return estimate(nll).mean if nll else earlier.get("uniform_nll")


def _shared(settings: Sequence[Mapping[str, Any]]) -> Document:
    """The settings that all have in common."""
    first = settings[0] if settings else {}
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in settings)}
