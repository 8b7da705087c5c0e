"""The figures without lines: reliability diagrams, and rows of dots. Each is one inline SVG."""

from collections.abc import Collection, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from abmll.experiments.html.figure import (
    GRID,
    INK,
    MUTED,
    PAPER,
    canvas,
    color_of,
    inline_svg,
    marks,
    printable,
    shorten,
    styled,
)
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import Bins, Floats, calibration_error, reliability_bins

SMALL = (340, 380)


@styled
def reliability(method: Method, tallest: int) -> Markup:
    """Accuracy against confidence in 15 bins, with the bins' counts below; ``tallest`` is the counts' common scale."""
    each = method.outcomes
    assert each is not None
    bins = reliability_bins(each.confidence, each.correct)
    right = reliability_bins(each.confidence[each.correct == 1], each.correct[each.correct == 1]).size
    error = calibration_error(bins)
    filled = bins.size > 0
    confidence, accuracy, size = bins.confidence[filled], bins.accuracy[filled], bins.size[filled]
    color = color_of(method.index)
    figure = canvas(SMALL)
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(4, 3))
    top.vlines(confidence, *wilson_interval(accuracy, size), color=color, linewidth=1.2, alpha=0.45)
    area = 12 + 110 * np.sqrt(size / size.max())
    top.scatter(confidence, accuracy, area, color, linewidths=1, edgecolors=PAPER, zorder=3)
    top.set(ylim=(-0.02, 1.02), ylabel="Accuracy", title=printable(method.label))
    top.text(0.02, 0.95, f"ECE {error:.3f}", color=MUTED, va="top", fontsize=11)
    top.text(0.98, 0.04, "overconfident", color=MUTED, ha="right", fontsize=9.5, style="italic")
    top.tick_params(bottom=False)
    _histogram(bottom, bins, right, color, tallest)
    description = f"Reliability diagram of {method.label}: {len(each.correct)} examples, calibration error {error:.3f}."
    return inline_svg(figure, f"reliability-{method.index}", f"Reliability of {method.label}", description)


def _histogram(ax: Axes, bins: Bins, right: ArrayLike, color: str, tallest: int) -> None:
    """Counts of right (solid) and wrong (pale) answers in each confidence bin, the total written above."""
    width = 1 / len(bins.lower)
    centre = bins.lower + width / 2
    style = {"width": width * 0.86, "align": "center", "color": color, "linewidth": 0}
    ax.bar(centre, right, **style)
    ax.bar(centre, np.subtract(bins.size, right), bottom=right, alpha=0.32, **style)
    for x, count in zip(centre, bins.size, strict=True):
        if count:
            text = {"ha": "center", "fontsize": 7.5, "color": MUTED}
            ax.annotate(f"{count}", (x, count), (0, 2), textcoords="offset points", **text)
    ax.set(xlim=(-0.02, 1.02), ylim=(0, tallest * 1.15), xlabel="Confidence", ylabel="Examples", yticks=[])
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    ax.spines["bottom"].set_color(GRID)


def wilson_interval(rate: Floats, count: ArrayLike, z: float = 1.96) -> tuple[Floats, Floats]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927); arrays of the shape of ``rate``."""
    n = np.asarray(count, dtype=float)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


@styled
def task_dots(key: str, heading: str, methods: Sequence[Method], constant: str | None = None) -> Markup:
    """One line a task, one dot a method at its value of ``key``; a tick at the value of ``constant``, if given."""
    names = list(dict.fromkeys(name for method in methods for name in method.tasks))
    figure, ax = _named_rows(names, heading)
    for row, name in enumerate(names):
        known = [method.tasks[name] for method in methods if name in method.tasks]
        values = [metrics[key] for metrics in known]
        ax.hlines(row, min(values), max(values), color=GRID, linewidth=3)
        if constant:
            ax.plot(known[0][constant], row, "|", color=INK, markersize=13, markeredgewidth=1.6)
    for method in reversed(methods):  # the first method on top
        places = [(method.tasks[name][key], row) for row, name in enumerate(names) if name in method.tasks]
        ax.plot(*zip(*places, strict=True), color=color_of(method.index), linestyle="none", markersize=8, **marks(method.index))
    description = f"{heading} of each method on each of {len(names)} tasks; the table below holds the same numbers."
    return inline_svg(figure, f"tasks-{key}", f"{heading} task by task", description)


@styled
def ood_aurocs(methods: Sequence[Method]) -> Markup:
    """How well entropy (filled) and mutual information (hollow) of each method tell out-of-distribution inputs apart."""
    figure, ax = _named_rows([method.label for method in methods], "AUROC of out-of-distribution inputs")
    ax.axvline(0.5, color=MUTED, linewidth=1, dashes=(4, 3))
    for row, method in enumerate(methods):
        color, shape = color_of(method.index), marks(method.index)["marker"]
        for name, inside in (("mutual_information", PAPER), ("entropy", color)):
            if (value := method.ood.get(name)) is not None:
                ax.plot(value, row, shape, markersize=8, color=color, markerfacecolor=inside)
    description = "AUROC of out-of-distribution inputs by entropy and by mutual information, as in the table."
    return inline_svg(figure, "out_of_distribution", "Out-of-distribution inputs told apart", description)


def _named_rows(names: Collection[str], heading: str) -> tuple[Figure, Axes]:
    """A figure with a row for each name, the first on top, and vertical lines to read values by."""
    figure = canvas((420, 90 + 24 * len(names)))
    ax = figure.subplots()
    ax.set_yticks(range(len(names)), [shorten(name, 22) for name in names])
    ax.set(ylim=(len(names) - 0.5, -0.5), title=heading)
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(axis="y", labelsize=10)
    return figure, ax
