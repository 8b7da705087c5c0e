"""The figures of the report. Each takes numbers and colour indices and returns one inline SVG."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from abmll.experiments.html.figure import (
    DASHES,
    GRID,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    color_of,
    draw,
    label_ends,
    printable,
    shorten,
)
from abmll.experiments.metrics import Floats, Outcomes, calibration_error, reliability_bins, risk_coverage

SMALL, CURVE, WIDE = (340, 380), (340, 260), (420, 320)
MAX_POINTS = 300


def reliability(label: str, each: Outcomes, method: int, tallest: int) -> str:
    """Accuracy against confidence in 15 bins, with the bins' counts below; `tallest` is the counts' common scale."""
    bins = reliability_bins(each.confidence, each.correct)
    filled = bins.size > 0
    low, high = wilson_interval(bins.accuracy[filled], bins.size[filled])

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(4, 3))
        top.vlines(bins.confidence[filled], low, high, color=color_of(method), linewidth=1.2, alpha=0.45)
        area = 12 + 110 * np.sqrt(bins.size[filled] / bins.size.max())
        top.scatter(
            bins.confidence[filled], bins.accuracy[filled], area, color_of(method), linewidths=1, edgecolors=PAPER,
            zorder=3,
        )  # fmt: skip
        top.set(ylim=(-0.02, 1.02), ylabel="Accuracy", title=printable(label))
        top.text(0.02, 0.95, f"ECE {calibration_error(bins):.3f}", color=MUTED, va="top", fontsize=11)
        top.text(0.98, 0.04, "overconfident", color=MUTED, ha="right", fontsize=9.5, style="italic")
        top.tick_params(bottom=False)
        _histogram(bottom, each, bins.lower, bins.size, method, tallest)

    error = calibration_error(bins)
    description = f"Reliability diagram of {label}: {len(each.correct)} examples, calibration error {error:.3f}."
    return draw(f"reliability-{method}", SMALL, f"Reliability of {label}", description, paint)


def _histogram(ax: Axes, each: Outcomes, lower: Floats, size: NDArray[np.int64], method: int, tallest: int) -> None:
    """Counts of right (solid) and wrong (pale) answers in each confidence bin, the total written above."""
    right = reliability_bins(each.confidence[each.correct == 1], each.correct[each.correct == 1]).size
    width = 1 / len(lower)
    style = {"width": width * 0.86, "align": "center", "color": color_of(method), "linewidth": 0}
    ax.bar(lower + width / 2, right, **style)
    ax.bar(lower + width / 2, np.subtract(size, right), bottom=right, alpha=0.32, **style)
    for x, count in zip(lower + width / 2, size, strict=True):
        if count:
            text = {"ha": "center", "fontsize": 7.5, "color": MUTED}
            ax.annotate(f"{count}", (x, count), (0, 2), textcoords="offset points", **text)
    ax.set(xlim=(-0.02, 1.02), ylim=(0, tallest * 1.15), xlabel="Confidence", ylabel="Examples", yticks=[])
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    ax.spines["bottom"].set_color(GRID)


def wilson_interval(rate: Floats, count: ArrayLike, z: float = 1.96) -> tuple[Floats, Floats]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927); arrays of the shape of `rate`."""
    n = np.asarray(count, dtype=float)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def risk_coverage_curves(by_method: Mapping[str, tuple[int, Outcomes]]) -> str:
    """Error rate among the most confident examples against the share answered; label -> (colour index, outcomes)."""

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        ends = []
        for label, (method, each) in by_method.items():
            coverage, risk = risk_coverage(each.confidence, each.correct)
            first = len(risk) // 50  # below 2 % of the examples a single error makes the curve jump
            keep = np.unique(np.linspace(first, len(risk) - 1, MAX_POINTS).astype(int))
            ax.plot(
                coverage[keep], risk[keep], color=color_of(method), linewidth=1.8, dashes=DASHES[method % len(DASHES)]
            )
            ends.append((float(risk[-1]), f"{shorten(label, 20)} {risk.mean():.3f}", method))
        ax.set(xlim=(0, 1), xlabel="Coverage: share of examples answered", ylabel="Error rate")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_formatter(PercentFormatter(1, 0))
        ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
        label_ends(ax, ends, 1, WIDE[1])

    description = "Error rate against coverage, one line a method; the number after its name is the area under it."
    return draw("risk-coverage", WIDE, "Risk-coverage curves", description, paint)


def task_dots(
    key: str, heading: str, by_method: Mapping[str, tuple[int, Mapping[str, Mapping[str, Any]]]], constant: str | None
) -> str:
    """One line a task, one dot a method at its value of `key`; a tick at the value of `constant`, if given."""
    names = list(dict.fromkeys(name for _, tasks in by_method.values() for name in tasks))
    rows = {name: row for row, name in enumerate(names)}

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        for name, row in rows.items():
            values = [tasks[name][key] for _, tasks in by_method.values() if name in tasks]
            ax.hlines(row, min(values), max(values), color=GRID, linewidth=3)
            if constant:
                about = next(tasks[name] for _, tasks in by_method.values() if name in tasks)
                ax.plot(about[constant], row, "|", color=INK, markersize=13, markeredgewidth=1.6)
        for method, tasks in reversed(list(by_method.values())):  # the first method on top
            ax.plot(
                [tasks[name][key] for name in names if name in tasks], [rows[name] for name in names if name in tasks],
                linestyle="none", color=color_of(method), marker=MARKERS[method % len(MARKERS)], markersize=8,
                markeredgecolor=PAPER, markeredgewidth=0.8,
            )  # fmt: skip
        _name_rows(ax, names, heading)

    description = f"{heading} of each method on each of {len(names)} tasks; the table below holds the same numbers."
    return draw(f"tasks-{key}", _row_size(names), f"{heading} task by task", description, paint)


def ood_aurocs(by_method: Mapping[str, tuple[int, Mapping[str, float | None]]]) -> str:
    """One line a method: how well its entropy (filled) and mutual information (hollow) tell out-of-distribution inputs apart."""

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        ax.axvline(0.5, color=MUTED, linewidth=1, dashes=(4, 3))
        for row, (method, aurocs) in enumerate(by_method.values()):
            color, marker = color_of(method), MARKERS[method % len(MARKERS)]
            for name, inside in (("mutual_information", PAPER), ("entropy", color)):
                if (value := aurocs.get(name)) is not None:
                    ax.plot(value, row, marker, markersize=8, color=color, markerfacecolor=inside)
        _name_rows(ax, by_method, "AUROC of inputs of another task")

    description = (
        "AUROC of out-of-distribution inputs by entropy and by mutual information; the table has the same numbers."
    )
    return draw(
        "out_of_distribution", _row_size(by_method), "Out-of-distribution inputs told apart", description, paint
    )


def _name_rows(ax: Axes, names: Collection[str], heading: str) -> None:
    """A row for each name, the first on top, with vertical lines to read values by."""
    ax.set_yticks(range(len(names)), [shorten(name, 22) for name in names])
    ax.set(ylim=(len(names) - 0.5, -0.5), title=heading)
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(axis="y", labelsize=10)


def _row_size(names: Collection[str]) -> tuple[int, int]:
    """Width and height of a figure of named rows."""
    return 420, 90 + 24 * len(names)


def smooth(values: Floats, window: int) -> Floats:
    """Centred moving average over `window` episodes (fewer at the ends), leaving out NaN; NaN where all are NaN."""
    known = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(known, values, 0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def training_curve(
    key: str, heading: str, by_method: Mapping[str, tuple[int, Floats, Floats]], window: int
) -> str | None:
    """Raw points and moving average against the episode; label -> (colour index, episodes, values). None without values."""
    present = {label: curve for label, curve in by_method.items() if np.isfinite(curve[2]).any()}
    if not present:
        return None

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        ends, last = [], max(float(episodes[-1]) for _, episodes, _ in present.values())
        for label, (method, episodes, values) in present.items():
            line = smooth(values, window)
            ax.plot(episodes, values, ".", color=color_of(method), markersize=2.5, alpha=0.4)
            ax.plot(episodes, line, color=color_of(method), linewidth=1.8, dashes=DASHES[method % len(DASHES)])
            ends.append((float(line[np.isfinite(line)][-1]), shorten(label, 18), method))
        ax.set(xlabel="Episode", title=heading)
        ax.set_xlim(right=last)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if np.nanmax(np.abs(ax.get_ylim())) >= 1e4:
            ax.yaxis.set_major_formatter(EngFormatter(sep=""))
        label_ends(ax, ends, last, CURVE[1])

    description = f"{heading} during training: points are episodes, lines a moving average of {window} episodes."
    return draw(f"curve-{key}", CURVE, f"{heading} during training", description, paint)
