"""The figures of the report. Each takes the methods that it shows, and is one inline SVG."""

from collections.abc import Collection, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from abmll.common.documents import Document
from abmll.experiments.html.figure import (
    GRID,
    INK,
    MUTED,
    PAPER,
    canvas,
    color_of,
    draw_line,
    inline_svg,
    label_ends,
    marks,
    shorten,
    styled,
)
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import Bins, Floats, calibration_error, reliability_bins, risk_coverage
from abmll.experiments.tables import printable

SMALL, CURVE, WIDE = (340, 380), (340, 260), (420, 320)
MAX_POINTS = 300
HEADINGS = {"nll": "NLL, nats per example", "kl": "KL(q(φ) ‖ p(φ | θ))", "log_sigma": "Mean log σ of θ"}  # noqa: RUF001 (Greek)
VALIDATED = {"nll": "NLL, nats per example", "accuracy": "Accuracy"}
SETTINGS = {
    "episodes": "Over training: episodes",
    "adapt_examples": "Examples adapted to",
    "num_samples": "Posterior samples (0: at the mean)",
    "prune": "Share of each adapted layer's output set to zero",
}
MEASURES = {"accuracy": "Accuracy", "nll": "NLL, nats", "ece": "ECE", "pooled_ece": "Pooled ECE"}


def reliability_diagrams(methods: Sequence[Method]) -> list[Markup]:
    """One of every method with predictions, their counts on a common scale."""
    known = [(method, method.outcomes) for method in methods if method.outcomes is not None]
    sizes = [reliability_bins(each.confidence, each.correct).size for _, each in known]
    return [reliability(method, int(np.max(sizes))) for method, _ in known]


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
    """Counts of correct (solid) and wrong (pale) answers in each confidence bin, the total written above."""
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
def risk_coverage_curves(methods: Sequence[Method]) -> Markup:
    """Error rate among the most confident examples against the share answered; of methods with predictions."""
    figure = canvas(WIDE)
    ax = figure.subplots()
    lines = []
    for method in methods:
        assert method.outcomes is not None
        coverage, risk = risk_coverage(method.outcomes.confidence, method.outcomes.correct)
        first = len(risk) // 50  # below 2 % of the examples a single error makes the curve jump
        keep = np.unique(np.linspace(first, len(risk) - 1, MAX_POINTS).astype(int))
        text = f"{shorten(method.label, 20)} {risk.mean():.3f}"
        lines.append(draw_line(ax, method, coverage[keep], risk[keep], text))
    ax.set(xlim=(0, 1), xlabel="Coverage: share of examples answered", ylabel="Error rate")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, 0))
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    label_ends(ax, lines, 1, WIDE[1])
    description = "Error rate against coverage, one line a method; the number after its name is the area under it."
    return inline_svg(figure, "risk-coverage", "Risk-coverage curves", description)


@styled
def training_curve(key: str, methods: Sequence[Method], window: int) -> Markup | None:
    """One of ``HEADINGS`` by episode, and its moving average, of the methods that have it; None where none has."""
    # a method without a posterior writes zeros for its KL: nothing to look at
    known = [method for method in methods if np.nan_to_num(method.curves[key]).any()]
    if not known:
        return None
    figure = canvas(CURVE)
    ax = figure.subplots()
    lines = []
    for method in known:
        episodes, values = method.curves["episode"], method.curves[key]
        ax.plot(episodes, values, ".", color=color_of(method.index), markersize=2.5, alpha=0.4)
        lines.append(draw_line(ax, method, episodes, smooth(values, window), shorten(method.label, 18)))
    last = max(float(method.curves["episode"][-1]) for method in known)
    ax.set(xlabel="Episode", title=HEADINGS[key])
    ax.set_xlim(right=last)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if np.nanmax(np.abs(ax.get_ylim())) >= 1e4:
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    label_ends(ax, lines, last, CURVE[1])
    description = f"{HEADINGS[key]} during training: points are episodes, lines a moving average of {window} episodes."
    return inline_svg(figure, f"curve-{key}", f"{HEADINGS[key]} during training", description)


@styled
def validation_curve(key: str, method: Method, window: int) -> Markup:
    """One of ``VALIDATED`` on the validation tasks by episode, and the moving average of training below it.

    A ring marks the evaluation whose theta was chosen, where one was.
    """
    figure = canvas(CURVE)
    ax = figure.subplots()
    episodes, values = method.evaluations["episode"], method.evaluations[key]
    trained = method.curves["episode"]
    [train] = ax.plot(trained, smooth(method.curves[key], window), color=MUTED, linewidth=1.4, label="training")
    line = draw_line(ax, method, episodes, values, "validation", markersize=5, **marks(method.index))
    chosen = episodes == method.best_episode
    if chosen.any():
        ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.4}
        ax.plot(episodes[chosen], values[chosen], "o", **ring)
    last = float(max(trained[-1], episodes[-1]))
    ax.set(xlabel="Episode", title=VALIDATED[key])
    ax.set_xlim(right=last)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    label_ends(ax, [line, train], last, CURVE[1])
    description = f"{VALIDATED[key]} of {len(episodes)} evaluations on validation tasks, and of training, by episode."
    return inline_svg(figure, f"validation-{key}", f"{VALIDATED[key]} on validation tasks", description)


def smooth(values: Floats, window: int) -> Floats:
    """Centred moving average over ``window`` episodes (fewer at the ends), leaving out NaN; NaN where all are NaN."""
    known = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(known, values, 0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


@styled
def sweep(setting: str, key: str, methods: Sequence[Method]) -> Markup:
    """One of ``MEASURES`` against the values of one of ``SETTINGS``, at equal distances; bars are standard errors."""
    heading, axis = MEASURES[key], SETTINGS[setting]
    varied = [method for method in methods if setting in method.sweeps]
    values = sorted({point["value"] for method in varied for point in method.sweeps[setting]})
    figure = canvas(CURVE)
    ax = figure.subplots()
    lines = []
    for method in varied:
        points = method.sweeps[setting]
        places = np.array([values.index(point["value"]) for point in points], dtype=float)
        measured, errors = np.array([_measured(point, key) for point in points], dtype=float).T  # None becomes NaN
        line = draw_line(ax, method, places, measured, shorten(method.label, 18), markersize=6, **marks(method.index))
        ax.vlines(places, measured - errors, measured + errors, color=color_of(method.index), linewidth=1.2, alpha=0.45)
        if np.isfinite(measured).any():
            lines.append(line)
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    ax.set(xlabel=axis, title=heading, xlim=(-0.2, len(values) - 0.8))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    label_ends(ax, lines, len(values) - 0.8, CURVE[1])
    description = f"{heading} against: {axis}; one line a method, points at {', '.join(f'{v:g}' for v in values)}."
    return inline_svg(figure, f"sweep-{setting}-{key}", f"{heading} by {axis.lower()}", description)


def _measured(point: Document, key: str) -> tuple[float | None, float | None]:
    """What was measured at a point and its standard error, as ``comparison.json`` has them."""
    return (point["pooled_ece"], None) if key == "pooled_ece" else (point["mean"][key], point["mean_errors"][key])


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
        rows = [row for row, name in enumerate(names) if name in method.tasks]
        values = [method.tasks[names[row]][key] for row in rows]
        ax.plot(values, rows, linestyle="none", markersize=8, color=color_of(method.index), **marks(method.index))
    description = f"{heading} of each method on each of {len(names)} tasks; the table below holds the same numbers."
    return inline_svg(figure, f"tasks-{key}", f"{heading} task by task", description)


@styled
def ood_aurocs(methods: Sequence[Method]) -> Markup:
    """How well each method's entropy (filled) and mutual information (hollow) detect out-of-distribution inputs."""
    figure, ax = _named_rows([method.label for method in methods], "AUROC of out-of-distribution inputs")
    ax.axvline(0.5, color=MUTED, linewidth=1, dashes=(4, 3))
    for row, method in enumerate(methods):
        color, shape = color_of(method.index), marks(method.index)["marker"]
        for name, inside in (("mutual_information", PAPER), ("entropy", color)):
            if name in method.ood:
                ax.plot(method.ood[name], row, shape, markersize=8, color=color, markerfacecolor=inside)
    description = "AUROC of out-of-distribution inputs by entropy and by mutual information, as in the table."
    return inline_svg(figure, "out_of_distribution", "Detection of out-of-distribution inputs", description)


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
