"""What the cells of a comparison say together: ``comparison.json``.

The statistics of the pooled calibration error need the predictions. Methods whose predictions are not kept have those
of an earlier summary: the bootstrap's draws are of tasks and examples alone, so that a method's interval is the same
whatever else is resampled beside it, and so is its difference from the reference. They hold as long as its own error,
and that of the reference, are what they were.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abmll.common.documents import Document, read_json, write_document
from abmll.experiments.budget import CURVES, REFERENCE
from abmll.experiments.cells import Cell, load_cell, load_predictions, predictions_path
from abmll.experiments.execution import Failure
from abmll.experiments.metrics import METRICS, Predictions, evaluate_task, mean_over_tasks, pooled
from abmll.experiments.significance import Answers, joined, of_means, of_pooled, only_pooled
from abmll.experiments.statistics import estimate, over_seeds, task_ranks
from abmll.tasks import Suite

RESULT = "comparison.json"
RANKED = {"accuracy": "higher", "nll": "lower", "ece": "lower"}
RECALIBRATED = {
    "none": "",
    "adaptation": " + temperature (adaptation)",  # of version 0.1, in published results
    "meta": " + temperature (meta)",
    "calibration": " + ABMLL calibration",
}
COSTS = ("seconds", "episodes", "gradient_steps", "tokens", "forward_passes", "peak_memory_mb")
EVALUATION = ("seconds", "gradient_passes", "forward_passes", "tokens", "peak_memory_mb")
OF_A_MACHINE = ("seconds", "peak_memory_mb")
Computed = Sequence[tuple[Cell, Document]]  # the cells of one row of the tables that were computed


def summarize(
    cells: Sequence[Cell], folder: Path, suite: Suite, failures: Sequence[Failure] = (), reference: str = REFERENCE
) -> Document:
    """Read every result that is there, compare, and write ``comparison.json``; returns what it holds.

    Differences are those from the row ``reference``, where it is there. A method counts with the seeds that it has;
    intervals and p-values are of the methods that have all seeds that any has.
    """
    earlier = _earlier(folder / RESULT, suite.name)
    computed = _by_row(cells, folder)
    mains = {key: own for key, pairs in computed.items() if (own := [pair for pair in pairs if pair[0].is_main])}
    rows = {key: _row(pairs, folder) for key, pairs in mains.items()}
    answers = {key: {cell.seed: _by_task(cell.path(folder)) for cell, _ in pairs} for key, pairs in mains.items()}
    documents = [document for pairs in mains.values() for _, document in pairs]
    seeds = sorted({document["seed"] for document in documents})
    of_answers, of_rows = of_pooled(answers, reference), of_means(rows, seeds, reference)
    for key, ranks in ranks_of(rows).items():
        known = _known_statistics(earlier, rows, key, reference)
        rows[key] |= {
            "curves": _curves(computed[key]),
            "statistics": joined(known, of_answers.get(key, {}), of_rows.get(key, {})),
            "ranks": {name: estimate(list(own.values())).mean for name, own in ranks.items() if own},
            "task_ranks": ranks,
        }
    summary = {
        "suite": suite.name,
        "seeds": seeds,
        "reference": reference if reference in rows else None,
        "uniform_nll": _uniform_nll(answers, earlier),
        "missing": list(suite.missing),
        "known_leaks": list(suite.known_leaks),
        "settings": _shared([document["settings"] for document in documents]),
        "versions": documents[0]["versions"] if documents else {},
        "commits": sorted({str(document["commit"]) for document in documents}),
        "failures": [{"method": one.cell.row, "seed": one.cell.seed, "error": one.error} for one in failures],
        "methods": rows,
    }
    write_document(folder / RESULT, "comparison", summary)
    return summary


def _earlier(path: Path, suite: str) -> Document:
    """The summary in that file, empty where there is none of this suite; ``CheckpointError`` for a damaged one."""
    found = read_json(path, "comparison", "delete it, and it is made again of the cells") if path.exists() else {}
    return found if found.get("suite") == suite else {}


def _by_row(cells: Sequence[Cell], folder: Path) -> dict[str, list[tuple[Cell, Document]]]:
    """The cells that have a result, with it, by their row of the tables."""
    rows: dict[str, list[tuple[Cell, Document]]] = {}
    for cell in cells:
        document = load_cell(cell.path(folder))
        if document is not None:
            rows.setdefault(cell.row, []).append((cell, _completed(document, cell.path(folder))))
    return rows


def _completed(document: Document, path: Path) -> Document:
    """The cell with the metrics that are newer than it is, where its predictions are there."""
    rows = {} if all(name in document["mean"] for name in METRICS) else _by_task(path)
    if not rows:
        return document
    asked = {
        task: Predictions([row["probs"] for row in own], [row["answer"] for row in own]) for task, own in rows.items()
    }
    tasks = {task: evaluate_task(*asked[task]) | known for task, known in document["tasks"].items()}
    means = {"mean": mean_over_tasks(tasks), "pooled": pooled(asked)}
    return document | {"tasks": tasks} | {place: own | document[place] for place, own in means.items()}


def _by_task(path: Path) -> dict[str, list[Document]]:
    """What metrics need of the predictions of the cell in that file."""
    rows: dict[str, list[Document]] = {}
    for row in load_predictions(path):
        rows.setdefault(row["task"], []).append({name: row[name] for name in ("id", "probs", "answer")})
    return rows


def _row(pairs: Computed, folder: Path) -> Document:
    """A method's numbers: means over its seeds, and their standard errors."""
    cell, first = pairs[0]
    documents = [document for _, document in pairs]
    predictions = [predictions_path(one.path(folder)) for one, _ in pairs]
    mean, mean_errors = over_seeds([document["mean"] for document in documents])
    pooled, pooled_errors = over_seeds([document["pooled"] for document in documents])
    ood_mean, ood_errors = over_seeds([document["out_of_distribution"]["mean"] for document in documents])
    run = None if cell.training is None else Path("runs") / cell.training.name
    return {
        "label": cell.spec.label + RECALIBRATED[cell.settings["recalibrate"]],
        "seeds": [one.seed for one, _ in pairs],
        "settings": first["settings"],
        "machines": _machines(documents),
        "cost": _cost(documents),
        "tasks": {name: over_seeds([document["tasks"][name] for document in documents])[0] for name in first["tasks"]},
        "out_of_distribution": {"mean": ood_mean, "errors": ood_errors},
        "mean": mean,
        "mean_errors": mean_errors,
        "pooled": pooled,
        "pooled_errors": pooled_errors,
        "truncated_prompts": sum(document["truncated_prompts"] for document in documents),
        "demonstrations_left_out": sum(document["demonstrations_left_out"] for document in documents),
        "predictions": [path.relative_to(folder).as_posix() for path in predictions if path.exists()],
        "run": run.as_posix() if run is not None and (folder / run).is_dir() else None,
    }


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


def _curves(pairs: Computed) -> dict[str, list[Document]]:
    """By curve, its points in order: the value, and mean and standard error over seeds of the metrics."""
    main = next(cell for cell, _ in pairs if cell.is_main).point()
    curves = {}
    for name in CURVES:
        points: dict[float, list[Document]] = {}
        for cell, document in pairs:
            value, others = cell.point()[name], cell.point() | {name: main[name]}
            if others == main:
                points.setdefault(value, []).append(document)
        if len(points) > 1:
            curves[name] = [_point(value, documents) for value, documents in sorted(points.items())]
    return curves


def _point(value: float, documents: Sequence[Document]) -> Document:
    mean, errors = over_seeds(
        [{name: one["mean"][name] for name in METRICS if name in one["mean"]} for one in documents]
    )
    pooled_ece = estimate([one["pooled"]["ece"] for one in documents]).mean
    return {"value": value, "mean": mean, "mean_errors": errors, "pooled_ece": pooled_ece}


def ranks_of(rows: Mapping[str, Document]) -> dict[str, dict[str, dict[str, float]]]:
    """By method and metric, the rank on every task of the mean over seeds."""
    ranks: dict[str, dict[str, dict[str, float]]] = {key: {} for key in rows}
    for metric, better in RANKED.items():
        values = {key: {task: own[metric] for task, own in row["tasks"].items()} for key, row in rows.items()}
        for key, own in task_ranks(values, better).items():
            ranks[key][metric] = own
    return ranks


def _known_statistics(earlier: Document, rows: Mapping[str, Document], key: str, reference: str) -> Document:
    """What was known of the row's pooled error: nothing if it has changed, no difference if the reference has."""
    if not _is_same(earlier, rows, key):
        return {}
    known = only_pooled(earlier["methods"][key])
    if earlier["reference"] == reference and _is_same(earlier, rows, reference):
        return known
    return {name: value for name, value in known.items() if name != "differences"}


def _is_same(earlier: Document, rows: Mapping[str, Document], key: str) -> bool:
    before, now = earlier.get("methods", {}).get(key), rows.get(key)
    return before is not None and now is not None and before["pooled"]["ece"] == now["pooled"]["ece"]


def _uniform_nll(answers: Mapping[str, Answers], earlier: Document) -> float | None:
    """The NLL of the uniform prediction, mean over tasks and seeds: log C of a question with C options.

    Of any method that has its predictions, since all were asked the same; else what the earlier summary says.
    """
    known = next((own for own in answers.values() if all(own.values())), {})
    asked = [rows for tasks in known.values() for rows in tasks.values()]
    nll = [sum(math.log(len(row["probs"])) for row in rows) / len(rows) for rows in asked]
    return estimate(nll).mean if nll else earlier.get("uniform_nll")


def _shared(settings: Sequence[Mapping[str, Any]]) -> Document:
    """The settings that all have in common."""
    first = settings[0] if settings else {}
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in settings)}
