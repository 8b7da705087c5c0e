"""Figures of a comparison in which one setting varies: examples adapted to, posterior samples, pruning, episodes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from abmll.experiments.html.figure import DASHES, MARKERS, PAPER, color_of, draw, label_ends, shorten
from abmll.experiments.html.plots import CURVE
from abmll.experiments.metrics import Floats

HEADINGS = {
    "episodes": "Over training: episodes",
    "adapt_examples": "Examples adapted to",
    "num_samples": "Posterior samples (0: at the mean)",
    "prune": "Share of each adapted layer's output set to zero",
}
MEASURES = {"accuracy": "Accuracy", "nll": "NLL, nats", "ece": "ECE", "pooled_ece": "Pooled ECE"}


class Line(NamedTuple):
    """One method's points: the setting's values, and what was measured there with its standard error (NaN: unknown)."""

    method: int  # the index that gives its colour
    values: Sequence[float]
    measured: Floats
    errors: Floats


def sweeps(setting: str, curves: Mapping[str, tuple[int, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """One figure a measure; curves[label] is (colour index, points as ``comparison.json`` has them)."""
    figures = []
    for key, heading in MEASURES.items():
        lines = {label: _line(method, points, key) for label, (method, points) in curves.items()}
        figures.append(sweep(f"{setting}-{key}", heading, HEADINGS[setting], lines))
    return figures


def _line(method: int, points: Sequence[Mapping[str, Any]], key: str) -> Line:
    pooled = key == "pooled_ece"
    measured = [point["pooled_ece"] if pooled else point["mean"][key] for point in points]
    errors = [None if pooled else point["mean_errors"][key] for point in points]
    return Line(
        method,
        [point["value"] for point in points],
        np.array([np.nan if one is None else one for one in measured], dtype=float),
        np.array([np.nan if one is None else one for one in errors], dtype=float),
    )


def sweep(name: str, heading: str, axis: str, lines: Mapping[str, Line]) -> str:
    """What was measured against the setting's values, which stand at equal distances; bars are standard errors."""
    values = sorted({value for line in lines.values() for value in line.values})

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        ends = []
        for label, (method, own, measured, errors) in lines.items():
            places = np.array([values.index(value) for value in own], dtype=float)
            ax.plot(
                places, measured, color=color_of(method), linewidth=1.8, dashes=DASHES[method % len(DASHES)],
                marker=MARKERS[method % len(MARKERS)], markersize=6, markeredgecolor=PAPER, markeredgewidth=0.8,
            )  # fmt: skip
            ax.vlines(places, measured - errors, measured + errors, color=color_of(method), linewidth=1.2, alpha=0.45)
            if np.isfinite(measured).any():
                ends.append((float(measured[np.isfinite(measured)][-1]), shorten(label, 18), method))
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        ax.set(xlabel=axis, title=heading, xlim=(-0.2, len(values) - 0.8))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        label_ends(ax, ends, len(values) - 0.8, CURVE[1])

    description = f"{heading} against: {axis}; one line a method, points at {', '.join(f'{v:g}' for v in values)}."
    return draw(f"sweep-{name}", CURVE, f"{heading} by {axis.lower()}", description, paint)
