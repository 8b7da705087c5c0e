"""A page on how far the answers of one task can be trusted, from cross-validation on its labelled rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abmll.common.files import write_text
from abmll.experiments.html.figure import shorten
from abmll.experiments.html.page import render
from abmll.experiments.html.plots import reliability, risk_coverage_curves
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import reliability_bins
from abmll.experiments.tables import Cell, Row, Table, number
from abmll.experiments.trust import Measured, Trust

MOST_LOOKED_AT, MOST_CONFUSED, WIDTH = 10, 10, 160


def write_trust_page(
    path: Path,
    name: str,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    measured: Measured,
    rows: Sequence[tuple[str, str]],
) -> None:
    """Write the page. ``rows`` are the measured ones: where each stands, and its text."""
    labels, probs, chosen, trust = measured
    method = Method("Cross-validated", outcomes=trust.each)
    several = bool((chosen.sum(1) != 1).any())
    page = render(
        "trust.html.j2",
        name=name,
        facts=facts,
        warnings=warnings,
        headline=_headline(trust),
        reliability=reliability(method, int(reliability_bins(trust.each.confidence, trust.each.correct).size.max())),
        coverage=risk_coverage_curves([method]),
        by_label=_by_label(labels, probs, chosen, several),
        by_label_caption=SEVERAL if several else SINGLE,
        confused=None if several else _confused(labels, probs, chosen),
        doubtful=None if several else _doubtful(labels, probs, chosen, rows),
    )
    write_text(path, page)


SINGLE = "Found: the share of its rows that were given the label. Right: the share of the rows given it that have it."
SEVERAL = SINGLE + " A label is given where its probability is above one half."


def _headline(trust: Trust) -> Table:
    metrics, baseline = trust.metrics, trust.baseline
    own = [Cell(number(metrics[key])) for key in ("accuracy", "nll", "ece", "auroc")]
    constant = [Cell(number(baseline.accuracy)), Cell(number(baseline.nll)), Cell(""), Cell("")]
    headers = ["Accuracy ↑", "NLL, nats ↓", "ECE ↓", "AUROC ↑"]
    helps = [
        "share of right answers",
        "mean -log probability of the right label",
        "mean distance of confidence and accuracy, in bins; chance makes it larger where rows are few",
        "chance that a right answer is more confident than a wrong one",
    ]
    rows = [Row("Cross-validated", own, 0), Row("Most frequent label", constant)]
    return Table("Measured", "", headers, rows, helps=helps)


def _given(probs: NDArray[np.float64], several: bool) -> NDArray[np.int64]:
    """(N, C), 1 where a row was given a label."""
    if several:
        return (probs > 0.5).astype(np.int64)
    return np.eye(probs.shape[1], dtype=np.int64)[probs.argmax(1)]


def _by_label(labels: Sequence[str], probs: NDArray[np.float64], chosen: NDArray[np.int64], several: bool) -> Table:
    given = _given(probs, several)
    right = (given * chosen).sum(0)
    rows = []
    for n, label in enumerate(labels):
        found, were = int(chosen[:, n].sum()), int(given[:, n].sum())
        shares: list[float | None] = [right[n] / found if found else None, right[n] / were if were else None]
        rows.append(Row(label, [Cell(str(found)), Cell(str(were)), *(Cell(number(share, 2)) for share in shares)]))
    return Table("Label by label", "Label", ["Rows", "Given to", "Found", "Right"], rows)


def _confused(labels: Sequence[str], probs: NDArray[np.float64], chosen: NDArray[np.int64]) -> Table | None:
    pairs = Counter(zip(chosen.argmax(1).tolist(), probs.argmax(1).tolist(), strict=True))
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]][:MOST_CONFUSED]
    rows = [Row(labels[int(true)], [Cell(labels[int(given)]), Cell(str(count))]) for (true, given), count in wrong]
    return Table("Taken for each other", "Label", ["Answered", "Rows"], rows) if rows else None


def _doubtful(
    labels: Sequence[str], probs: NDArray[np.float64], chosen: NDArray[np.int64], texts: Sequence[tuple[str, str]]
) -> Table | None:
    own = (probs * chosen).sum(1)
    order = [n for n in np.argsort(own, kind="stable").tolist() if probs[n].argmax() != chosen[n].argmax()]
    rows = []
    for n in order[:MOST_LOOKED_AT]:
        where, text = texts[n]
        answer = f"{labels[int(probs[n].argmax())]} ({number(float(probs[n].max()), 2)})"
        label = f"{labels[int(chosen[n].argmax())]} ({number(float(own[n]), 2)})"
        rows.append(Row(where, [Cell(shorten(text, WIDTH)), Cell(label), Cell(answer)]))
    return Table("Rows to look at again", "Row", ["Text", "Label", "Answer"], rows) if rows else None
