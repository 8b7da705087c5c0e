"""The figures with a line a method: risk-coverage, training, and settings that vary. Each is one inline SVG."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from abmll.common.documents import Document
from abmll.experiments.html.figure import canvas, color_of, draw_line, inline_svg, label_ends, marks, shorten, styled
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import Floats, risk_coverage

CURVE, WIDE = (340, 260), (420, 320)
MAX_POINTS = 300
SETTINGS = {
    "episodes": "Over training: episodes",
    "adapt_examples": "Examples adapted to",
    "num_samples": "Posterior samples (0: at the mean)",
    "prune": "Share of each adapted layer's output set to zero",
}
MEASURES = {"accuracy": "Accuracy", "nll": "NLL, nats", "ece": "ECE", "pooled_ece": "Pooled ECE"}


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
def training_curve(key: str, heading: str, methods: Sequence[Method], window: int) -> Markup | None:
    """Values by episode, and their moving average; of the methods that have any. None where none has."""
    known = [method for method in methods if np.isfinite(method.curves[key]).any()]
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
    ax.set(xlabel="Episode", title=heading)
    ax.set_xlim(right=last)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if np.nanmax(np.abs(ax.get_ylim())) >= 1e4:
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    label_ends(ax, lines, last, CURVE[1])
    description = f"{heading} during training: points are episodes, lines a moving average of {window} episodes."
    return inline_svg(figure, f"curve-{key}", f"{heading} during training", description)


def smooth(values: Floats, window: int) -> Floats:
    """Centred moving average over ``window`` episodes (fewer at the ends), leaving out NaN; NaN where all are NaN."""
    known = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(known, values, 0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


@styled
def sweep(setting: str, key: str, methods: Sequence[Method]) -> Markup:
    """One of ``MEASURES`` against a setting's values, which stand at equal distances; bars are standard errors."""
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
    if key == "pooled_ece":
        return point["pooled_ece"], None
    return point["mean"][key], point["mean_errors"][key]
