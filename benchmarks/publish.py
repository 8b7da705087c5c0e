"""python -m benchmarks.publish FOLDER...: keep comparisons in results/ and write the tables of docs/results.md.

FOLDER is what ``abmll compare`` wrote for one suite. Its cells and its comparison go to results/ under the folder's own
name, without the predictions and the training runs; of the predictions there remains how much each task was doubted,
and where they are not in FOLDER any more, what was known of that before. A table stands between
``<!-- table: NAME TABLE -->`` and ``<!-- end -->``, where TABLE is headline, differences, cost or commands. Without a
folder the tables alone are written.
"""

import argparse
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abmll.common.files import write_json, write_text
from abmll.experiments.cells import load_predictions
from abmll.experiments.markdown import against_reference, cost, headline, notes
from benchmarks.machine import ROOT

DOCUMENT = ROOT / "docs" / "results.md"
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- table: (\S+) (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
COMPARISON = "comparison.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    for folder in parser.parse_args(arguments).folders:
        print(keep(folder, RESULTS))
    write_text(DOCUMENT, filled(DOCUMENT.read_text(encoding="utf-8"), RESULTS))
    return 0


def keep(folder: Path, results: Path) -> Path:
    """Copy a comparison's numbers to ``results``, in the place of an earlier one; returns the folder made."""
    comparison = read(folder)
    kept = results / folder.resolve().name
    before = read(kept)["methods"] if (kept / COMPARISON).exists() else {}
    shutil.rmtree(kept, ignore_errors=True)
    for path in sorted((folder / "cells" / comparison["suite"]).glob("*.json")):
        write_json(kept / "cells" / comparison["suite"] / path.name, json.loads(path.read_text(encoding="utf-8")))
    for key, row in comparison["methods"].items():
        cells = [folder / path.replace(".predictions.jsonl", ".json") for path in row["predictions"]]
        is_known = not cells and key in before and before[key]["tasks"] == row["tasks"]
        row["doubt"] = before[key]["doubt"] if is_known else [doubt(cell) for cell in cells]
        row |= {"predictions": [], "run": None}  # they are not kept
    write_json(kept / COMPARISON, comparison)
    for name in ("table.csv", "tasks.csv"):
        shutil.copyfile(folder / name, kept / name)
    return kept


def read(folder: Path) -> dict[str, Any]:
    """The comparison in a folder."""
    return json.loads((folder / COMPARISON).read_text(encoding="utf-8"))


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
        opening, name, table, closing = match.groups()
        return f"{opening}{TABLES[table](read(results / name), results / name)}\n{closing}"

    return BLOCK.sub(block, text)


def _differences(comparison: dict[str, Any], folder: Path) -> str:
    table = against_reference(comparison)
    return "" if table is None else table.markdown()


def _headline(comparison: dict[str, Any], folder: Path) -> str:
    remarks = "\n".join(f"- {line}" for line in notes(comparison))
    return f"{headline(comparison).markdown()}\n\n{remarks}"


def _commands(comparison: dict[str, Any], folder: Path) -> str:
    """Every command that has computed cells, how many, and at which commit (+: and changes)."""
    counts: dict[tuple[str, str], int] = {}
    for path in sorted((folder / "cells" / comparison["suite"]).glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        commit, plus, _ = str(cell["commit"]).partition("+")
        key = (cell["command"], commit[:12] + plus)
        counts[key] = counts.get(key, 0) + 1
    lines = [f"# cells: {count}, at commit {commit}\n{command}" for (command, commit), count in counts.items()]
    summary = f"<summary>What was run: {sum(counts.values())} cells, {len(counts)} commands</summary>"
    return "\n".join(["<details>", summary, "", "```bash", *lines, "```", "", "</details>"])


TABLES = {
    "headline": _headline,
    "differences": _differences,
    "cost": lambda comparison, folder: cost(comparison).markdown(),
    "commands": _commands,
}


if __name__ == "__main__":
    sys.exit(main())
