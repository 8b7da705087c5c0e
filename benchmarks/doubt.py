"""python -m benchmarks.doubt FOLDER: keep what the figure of docs/howto/calibration.md needs of a comparison.

FOLDER is what ``abmll compare`` wrote, with its predictions. ``results/trust.json`` gets the confidence of every answer
of every method, over tasks and seeds, whether it was right, and of which comparison they are.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from abmll.common.documents import Document
from abmll.common.files import write_json
from abmll.experiments.cells import load_cell, load_predictions
from abmll.experiments.metrics import outcomes
from benchmarks.machine import ROOT

TRUST = ROOT / "results" / "trust.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    write_json(TRUST, gathered(parser.parse_args(arguments).folder))
    print(TRUST)
    return 0


def gathered(folder: Path) -> Document:
    """Confidences (four digits) and 0 or 1 for right, by method, and the seeds and versions they are of."""
    methods: Document = {}
    for path in sorted(folder.glob("cells/*/*.json")):
        cell = load_cell(path)
        assert cell is not None
        rows = list(load_predictions(path))
        each = outcomes([row["probs"] for row in rows], [row["answer"] for row in rows])
        own = methods.setdefault(cell["row"], {"label": cell["label"], "seeds": [], "confidence": [], "correct": []})
        own["seeds"].append(cell["seed"])
        own["confidence"] += [round(value, 4) for value in each.confidence.tolist()]
        own["correct"] += [int(value) for value in each.correct.tolist()]
        common = {"suite": cell["suite"], "versions": cell["versions"], "tasks": sorted({row["task"] for row in rows})}
    return {**common, "methods": methods}


if __name__ == "__main__":
    sys.exit(main())
