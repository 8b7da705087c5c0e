"""python -m benchmarks.publish FOLDER...: keep comparisons in results/ and write the tables of docs/results.md.

FOLDER is what ``abmll compare`` wrote for one suite; rows that results/ has and FOLDER has not stay there. Its cells
and its comparison go to results/ under its name, without the predictions and the training runs. What the figures need
of the predictions is kept: how much each task was doubted. Where the predictions are gone from FOLDER, the earlier
summary of them stays. Statistics of means over tasks are computed anew for all of results/; those of the pooled
calibration error stay what they were with the predictions.

A table stands between ``<!-- table: NAME KIND CHOICE -->`` and ``<!-- end -->``. KIND is one of ``TABLES``. CHOICE is
the setting of a curve, or the rows of another table separated by commas; without it a table has all rows. Of the kind
``together`` NAME is several folders separated by ``+``, whose tasks count as those of one suite. Without a folder only
the tables are written.
"""

import argparse
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from abmll.common.documents import SEAL, Document
from abmll.common.files import write_json, write_text
from abmll.experiments.cells import load_cell, load_predictions
from abmll.experiments.markdown import against_reference, cost, difference_text, headline
from abmll.experiments.sheets import csv_text, method_rows, task_rows
from abmll.experiments.significance import joined, of_means, only_pooled
from abmll.experiments.statistics import estimate
from abmll.experiments.summary import ranks_of
from abmll.experiments.tables import Cell, Row, Table, number
from benchmarks.machine import ROOT

DOCUMENT = ROOT / "docs" / "results.md"
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- table: (\S+) (\w+)(?: (\S+))? -->\n).*?(<!-- end -->)", flags=re.DOTALL)
COMPARISON = "comparison.json"
PLACE = re.compile(r"(?<!\S)/(?:\S*?/)?(results/settings/\S+|[^/\s]+)(?!\S)")  # an absolute path in a command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    for folder in parser.parse_args(arguments).folders:
        print(keep(folder, RESULTS))
    for path in sorted(RESULTS.glob(f"*/{COMPARISON}")):
        restate(path.parent)
    write_text(DOCUMENT, filled(DOCUMENT.read_text(encoding="utf-8"), RESULTS))
    return 0


def keep(folder: Path, results: Path) -> Path:
    """Copy a comparison's numbers to ``results``, where rows that it has not stay; returns the folder made."""
    comparison = read(folder)
    kept = results / folder.resolve().name
    earlier = read(kept) if (kept / COMPARISON).exists() else {}
    before = earlier.get("methods", {})
    for key in comparison["methods"]:
        for path in (kept / "cells").rglob(f"{key.replace('@', '+')}-s*.json"):
            path.unlink()
    for path in sorted((folder / "cells" / comparison["suite"]).glob("*.json")):
        write_json(kept / "cells" / comparison["suite"] / path.name, cell_of(path))
    for key, row in comparison["methods"].items():
        cells = [folder / path.replace(".predictions.jsonl", ".json") for path in row["predictions"]]
        is_known = not cells and key in before and before[key]["tasks"] == row["tasks"]
        row["doubt"] = before[key]["doubt"] if is_known else [doubt(cell) for cell in cells]
        row |= {"predictions": [], "run": None}  # they are not kept
    others = {key: row for key, row in before.items() if key not in comparison["methods"]}
    if others:
        comparison = earlier | {"methods": others | comparison["methods"]}
        for key, ranks in ranks_of(comparison["methods"]).items():
            means = {name: estimate(list(own.values())).mean for name, own in ranks.items() if own}
            comparison["methods"][key] |= {"ranks": means, "task_ranks": ranks}
        write_text(kept / "tasks.csv", csv_text(task_rows(comparison)))
    else:
        shutil.copyfile(folder / "tasks.csv", kept / "tasks.csv")
    write_json(kept / COMPARISON, comparison)
    restate(kept)
    return kept


def restate(kept: Path) -> None:
    """Write a kept comparison's intervals and p-values as they follow from its tasks today."""
    comparison = read(kept)
    rows = comparison["methods"]
    means = of_means(rows, comparison["seeds"], comparison["reference"])
    for key, row in rows.items():
        row["statistics"] = joined(only_pooled(row), means.get(key, {}))
    write_json(kept / COMPARISON, comparison)
    write_text(kept / "table.csv", csv_text(method_rows(comparison)))


def read(folder: Path) -> Document:
    """The comparison in a folder."""
    return unsealed(folder / COMPARISON)


def cell_of(path: Path) -> Document:
    """A cell whose command names files and folders without the place where they lay."""
    cell = unsealed(path)
    return cell | {"command": PLACE.sub(r"\1", cell["command"])}


def unsealed(path: Path) -> Document:
    """A document without its seal: what is published of it is another one."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in document.items() if key != SEAL}


def main_cells(folders: Iterable[Path], method: str) -> list[Document]:
    """The cells in these folders that a method's row of the tables is made of; points of curves are left out."""
    paths = [path for folder in folders for path in sorted((folder / "cells").rglob(f"{method}-s*.json"))]
    return [cell for cell in filter(None, map(load_cell, paths)) if cell["row"] == method and cell["is_main"]]


def doubt(path: Path) -> dict[str, dict[str, float | None]]:
    """By task of a cell: error rate, NLL above that of the labels' own frequencies, mean mutual information, and 1 / T.

    Frequencies are those of the answers' indices among the questions asked, which nobody can know beforehand.
    """
    cell = json.loads(path.read_text(encoding="utf-8"))
    inverse = (cell["calibration"] or {}).get("inverse_temperatures", {})  # cells of other calibrations have none
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in load_predictions(path):
        rows.setdefault(row["task"], []).append(row)
    found: dict[str, dict[str, float | None]] = {}
    for task, asked in rows.items():
        shares = [count / len(asked) for count in Counter(row["answer"] for row in asked).values()]
        metrics = cell["tasks"][task]
        found[task] = {
            "error": 1 - metrics["accuracy"],
            "excess": metrics["nll"] + sum(share * math.log(share) for share in shares),
            "mutual_information": sum(row["mutual_information"] for row in asked) / len(asked),
            "inverse_temperature": inverse.get(task),
        }
    return found


def filled(text: str, results: Path) -> str:
    """``text`` with every table between its markers made anew from ``results``."""

    def block(match: "re.Match[str]") -> str:
        opening, name, kind, choice, closing = match.groups()
        chosen = tuple(choice.split(",")) if choice else ()
        if kind == TOGETHER:
            return f"{opening}{_together([read(results / one) for one in name.split('+')], chosen)}\n{closing}"
        return f"{opening}{TABLES[kind](read(results / name), results / name, chosen)}\n{closing}"

    return BLOCK.sub(block, text)


def _headline(comparison: Document, folder: Path, rows: Collection[str]) -> str:
    """The main metrics of the rows without their intervals, and below them what a reader has to know."""
    shown = ("Accuracy ↑", "NLL ↓", "ECE ↓", "Pooled ECE ↓", "AUROC ↑")
    table = re.sub(r" \[[^\]]*\]", "", _cut(headline(comparison), comparison, rows, shown))
    return f"{table}\n\n{_remark(comparison)}"


def _differences(comparison: Document, folder: Path, rows: Collection[str]) -> str:
    table = against_reference(comparison)
    return "" if table is None else _cut(table, comparison, rows, ("Accuracy", "NLL", "CE²", "Pooled ECE"))


def _together(comparisons: Sequence[Document], rows: Sequence[str]) -> str:
    """Means of the rows over the tasks of all suites, and what is left of them without the first row's."""
    merged: dict[str, Document] = {}
    for key in rows:
        own = [(one["suite"], one["methods"][key]) for one in comparisons]
        tasks = {f"{suite} {task}": metrics for suite, row in own for task, metrics in row["tasks"].items()}
        merged[key] = {"label": own[0][1]["label"], "tasks": tasks, "seeds": own[0][1]["seeds"]}
    means = of_means(merged, comparisons[0]["seeds"], rows[0])
    made = []
    for key, row in merged.items():
        statistics = means[key]
        cells = [number(statistics["intervals"][name][0]) for name in ("accuracy", "nll")]
        cells += [difference_text(statistics.get("differences", {}), name) for name in ("accuracy", "nll")]
        made.append(Row(row["label"], [Cell(text) for text in cells]))
    headers = ["Accuracy ↑", "NLL ↓", "Accuracy, minus the first row", "NLL, minus the first row"]
    table = Table("", "Method", headers, made).markdown()
    return f"{table}\n\n{len(merged[rows[0]]['tasks'])} unseen tasks."


def _cost(comparison: Document, folder: Path, rows: Collection[str]) -> str:
    shown = ("Forward passes", "Tokens", "Forward passes, unseen tasks", "Tokens, unseen tasks")
    return _cut(cost(comparison), comparison, rows, shown)


def _curve(comparison: Document, folder: Path, settings: Sequence[str]) -> str:
    """Accuracy / NLL / pooled ECE of every row by the values of one setting that it was varied for."""
    [setting] = settings
    curves = {row["label"]: row["curves"].get(setting) for row in comparison["methods"].values()}
    points = {label: {one["value"]: one for one in curve} for label, curve in curves.items() if curve}
    values = sorted({value for own in points.values() for value in own})
    rows = [
        [label, *(_three(own[value]["mean"], own[value]["pooled_ece"]) if value in own else "" for value in values)]
        for label, own in points.items()
    ]
    return _plain(setting, [str(value) for value in values], rows)


def _trained(comparison: Document, folder: Path, settings: Sequence[str]) -> str:
    """Accuracy / NLL / pooled ECE of the rows by one setting that they were trained anew for.

    The folder holds the other values; that of the main results is in the folder of the suite itself.
    """
    [setting] = settings
    folders = (folder, folder.parent / comparison["suite"])
    values: set[float] = set()
    rows: dict[str, dict[float, str]] = {}
    for key, row in comparison["methods"].items():
        for cell in main_cells(folders, key):
            if cell["seed"] in row["seeds"]:
                value = cell["settings"][setting]
                own = rows.setdefault(f"{row['label']}, seed {cell['seed']}", {})
                own[value] = _three(cell["mean"], cell["pooled"]["ece"])
                values.add(value)
    cells = [[label, *(own.get(value, "") for value in sorted(values))] for label, own in rows.items()]
    return _plain(setting, [f"{value:g}" for value in sorted(values)], cells)


def _three(means: Mapping[str, float], pooled_ece: float) -> str:
    return f"{means['accuracy']:.3f} / {means['nll']:.3f} / {pooled_ece:.3f}"


def _cut(table: Table, comparison: Document, rows: Collection[str], headers: Collection[str]) -> str:
    """The table with these rows (all where none is named) and columns only."""
    labels = {comparison["methods"][key]["label"] for key in rows}
    kept = [number for number, header in enumerate(table.headers) if header in headers]
    chosen = [
        row._replace(cells=[row.cells[number] for number in kept])
        for row in table.rows
        if row.label in labels or not rows
    ]
    return replace(table, headers=[table.headers[number] for number in kept], rows=chosen).markdown()


def _plain(setting: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts under the name of the setting that varies."""
    made = [Row(label, [Cell(text) for text in texts]) for label, *texts in rows]
    return Table("", f"`{setting}`", list(headers), made).markdown()


def _remark(comparison: Document) -> str:
    """How many tasks and questions the numbers are of, what is known without any method, and what did not fit."""
    methods = comparison["methods"].values()
    mean = next(iter(methods))["mean"]
    seeds = ", ".join(map(str, comparison["seeds"]))
    text = (
        f"{mean['num_tasks']} unseen tasks, {mean['num_examples']:,} questions, seeds {seeds}. "
        f"Best constant answer {mean['majority']:.3f}, chance {mean['chance']:.3f}, "
        f"NLL of the uniform prediction {comparison['uniform_nll']:.3f}."
    )
    if cut := max(row["truncated_prompts"] for row in methods):
        text += f" Prompts cut in the middle, over all seeds: {cut:,} of a method."
    if left_out := max(row["demonstrations_left_out"] for row in methods):
        text += f" Demonstrations that did not fit: {left_out:,} of a method."
    return text


TOGETHER = "together"
TABLES = {"headline": _headline, "differences": _differences, "cost": _cost, "curve": _curve, "trained": _trained}


if __name__ == "__main__":
    sys.exit(main())
