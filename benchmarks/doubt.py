"""python -m benchmarks.doubt FOLDER: keep what the figure of docs/howto/calibration.md needs, in results/trust.json.

FOLDER is what ``abmll compare --suite bigbench-demo --methods head,linear-probe,pretrained --seeds 0
--test-examples 60`` wrote, with its predictions. Beside them are answers to the tickets of ``examples/data``: six times
ten of each label are learned from, and the other 32 answered. Of each answer the confidence is kept, and whether it was
right.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from abmll import AbmllModel, load_task
from abmll.common.config import LearningConfig
from abmll.common.documents import Document
from abmll.common.files import write_json
from abmll.experiments.cells import load_cell, load_predictions
from abmll.experiments.metrics import outcomes
from abmll.methods import find_rule
from benchmarks.machine import ROOT

TRUST = ROOT / "results" / "trust.json"
DATA = ROOT / "examples" / "data"
METHODS = ("pretrained", "linear-probe", "head")
SPLITS = 6
EACH = 10  # examples of each label


class Answered(NamedTuple):
    """Answers of one method under one seed."""

    method: str
    probs: list[list[float]]
    answers: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    compared = parser.parse_args(arguments).folder
    write_json(TRUST, {"tickets": gathered(tickets()), "bigbench-demo": gathered(cells(compared))})
    print(TRUST)
    return 0


def gathered(all_answers: Iterator[Answered]) -> Document:
    """By method its name in figures, and over all seeds the confidences (four digits) and 0 or 1 for right."""
    methods: Document = {name: {"label": find_rule(name).label, "confidence": [], "correct": []} for name in METHODS}
    for one in all_answers:
        each = outcomes(one.probs, one.answers)
        methods[one.method]["confidence"] += [round(value, 4) for value in each.confidence.tolist()]
        methods[one.method]["correct"] += [int(value) for value in each.correct.tolist()]
    return methods


def cells(folder: Path) -> Iterator[Answered]:
    """The answers in the cells of a comparison."""
    for path in sorted(folder.glob("cells/*/*.json")):
        cell, rows = load_cell(path), list(load_predictions(path))
        if cell is not None:
            yield Answered(cell["method"], [row["probs"] for row in rows], [row["answer"] for row in rows])


def tickets() -> Iterator[Answered]:
    """The answers to the tickets, in ``SPLITS`` random splits of all of them."""
    model, task = AbmllModel.from_base(), load_task(DATA / "tickets.csv")
    known = [
        (one, one.answer) for path in ("tickets.csv", "checked_tickets.csv") for one in load_task(DATA / path).examples
    ]
    labelled = [(one, answer) for one, answer in known if answer is not None]
    for seed in range(SPLITS):
        random.Random(f"tickets {seed}").shuffle(labelled)
        place = {id(one): sum(answer == other for _, other in labelled[:n]) for n, (one, answer) in enumerate(labelled)}
        examples = [one for one, _ in labelled if place[id(one)] < EACH]
        asked = [(one, answer) for one, answer in labelled if place[id(one)] >= EACH]
        for method in METHODS:
            model.learning = LearningConfig(method=method)
            posterior = model.adapt(examples, task_name=task.name, seed=seed)
            yield Answered(
                method, posterior.predict([one for one, _ in asked]).lists(), [answer for _, answer in asked]
            )


if __name__ == "__main__":
    sys.exit(main())
