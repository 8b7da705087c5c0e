"""python -m benchmarks.table: write the tables of docs/performance.md from benchmarks/results.json.

A table stands between ``<!-- rows: CELL ... -->`` and ``<!-- end -->`` and holds the rows of the cells named;
``<!-- run -->`` stands for a line on machine, versions and commit. All other text is written by hand.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

from abmll.common.documents import read_json
from abmll.common.files import write_text
from benchmarks.machine import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results.json"
BLOCK = re.compile(r"(<!-- (rows:[^>]*|run) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
HEAD = "| what | target | measured | spread | made of | met |\n|---|---|---|---|---|---|\n"
MET = {True: "yes", False: "**no**", None: ""}


def main() -> int:
    """Rewrite the document in place; refuses the results of a trial run."""
    results = read_json(RESULTS, None, "run python -m benchmarks.run")
    if results["smoke"]:
        print(f"{RESULTS}: a trial run (--quick); run python -m benchmarks.run", file=sys.stderr)
        return 1
    write_text(DOCUMENT, filled(DOCUMENT.read_text(encoding="utf-8"), results))
    return 0


def filled(text: str, results: dict[str, Any]) -> str:
    """``text`` with every block between its markers made anew from ``results``."""

    def block(match: "re.Match[str]") -> str:
        opening, kind, closing = match.groups()
        body = run_line(results) if kind == "run" else table(results["rows"], kind.removeprefix("rows:").split())
        return f"{opening}{body}{closing}"

    return BLOCK.sub(block, text)


def table(rows: Sequence[dict[str, Any]], cells: Sequence[str]) -> str:
    """The rows of ``cells``, in their order. Raises ``ValueError`` for a cell without rows."""
    lines = []
    for cell in cells:
        own = [row for row in rows if row["cell"] == cell]
        if not own:
            raise ValueError(f"the results have no rows of the cell '{cell}'")
        lines += [table_line(row) for row in own]
    return HEAD + "".join(lines)


def table_line(row: dict[str, Any]) -> str:
    """One row of a table."""
    target = "" if row["target"] is None else f"≤ {number(row['target'], row['unit'])}"
    spread = f"{number(row['low'], row['unit'])} to {number(row['high'], row['unit'])}"
    made_of = row["note"]
    if row["numerator"] is not None:
        made_of = f"{digits(row['numerator'])} / {digits(row['denominator'])} {row['measured_in']}"
    values = (row["name"], target, number(row["ratio"], row["unit"]), spread, made_of, MET[row["met"]])
    return f"| {' | '.join(values)} |\n"


def number(value: float, unit: str) -> str:
    """A value of the table: ratios to three digits, anything else with its unit."""
    if unit in ("x", "exponent"):
        return f"{value:.2f}" if value < 10 else f"{value:.3g}"
    return f"{digits(value)} {unit}".rstrip()


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def run_line(results: dict[str, Any]) -> str:
    """The machine, the versions and the commit, as a paragraph."""
    machine, versions = results["machine"], results["versions"]
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    bf16 = "with" if machine["bf16_hardware"] else "without"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['processor']} ({bf16} bf16 hardware), {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB{gpu}; {packages}; commit {results['commit']}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
