"""python -m benchmarks.figures [NAME...]: draw docs/figures/ from results/, for docs/results.md and docs/howto/."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from abmll.common.documents import read_json
from abmll.experiments.metrics import calibration_error, reliability_bins, risk_coverage
from benchmarks.doubt import TRUST
from benchmarks.machine import ROOT
from benchmarks.publish import RESULTS, main_cells, read

FIGURES = ROOT / "docs" / "figures"
STYLE: dict[Any, Any] = {
    **{"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3},
    **{"axes.titlesize": 10, "axes.titlelocation": "left", "savefig.dpi": 150, "legend.frameon": False},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # seven, and ten colours: what has one in common differs in the other
COLOURS = ("tab:orange", "tab:green", "tab:blue")
MEASURES = {"accuracy": "Accuracy", "nll": "NLL", "pooled_ece": "Pooled ECE"}
UNKNOWN = {"value": math.nan, "low": math.nan, "high": math.nan}  # is not drawn
Rows = Mapping[str, Any]
Measured = Mapping[str, tuple[float, float]]  # by measure, a value and its standard error, 0 where there is none


def doubt(name: str) -> Callable[[Figure], None]:
    """Mutual information and temperature of a task against how hard it is, and out-of-distribution inputs found."""

    def paint(figure: Figure) -> None:
        found = read(RESULTS / name)["methods"]
        figure.set_figheight(4.2)
        spread, trust, ood = figure.subplots(1, 3, width_ratios=(4, 4, 3))
        for marker, method in zip(MARKERS, ("abmll@weights-only", "abmll"), strict=False):
            _against(spread, found[method], "error", "mutual_information", marker, f"{found[method]['label']}: ")
        spread.set(title="Mutual information, nats", xlabel="Error rate")
        _against(trust, found["abmll"], "excess", "inverse_temperature", MARKERS[1], "ABMLL: ", "tab:orange")
        trust.set(title="Inferred 1 / T", xlabel="NLL above that of the labels' frequencies, nats")
        for panel in (spread, trust):
            panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        _ood(ood, found)

    return paint


def _against(panel: Axes, row: Rows, x: str, y: str, marker: str, label: str, color: str | None = None) -> None:
    """A point for every task and seed of a method, with their rank correlation in the legend."""
    points = [(one[x], one[y]) for seed in row["doubt"] for one in seed.values()]
    across, up = zip(*points, strict=True)
    correlation = float(np.corrcoef(rankdata(across), rankdata(up))[0, 1])
    panel.scatter(across, up, marker=marker, color=color, label=f"{label}rank correlation {correlation:.2f}")


def _ood(panel: Axes, methods: Rows) -> None:
    for place, row in enumerate(methods.values()):
        for key, color in (("entropy", "tab:blue"), ("mutual_information", "tab:orange")):
            value = row["out_of_distribution"]["mean"][key]
            if value is not None:
                panel.plot(value, place, "o", color=color, label=key.replace("_", " ") if place == 0 else None)
    panel.axvline(0.5, color="0.6", linewidth=1)
    panel.set_yticks(range(len(methods)), [row["label"] for row in methods.values()], fontsize=7)
    panel.invert_yaxis()
    panel.set_title("Out-of-distribution AUROC", loc="right")
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def cost(name: str) -> Callable[[Figure], None]:
    """NLL against what a seed has cost in forward passes and in seconds."""

    def paint(figure: Figure) -> None:
        found = read(RESULTS / name)["methods"]
        for panel, key, axis in zip(
            _panels(figure, 2), ("forward_passes", "seconds"), ("forward passes", "seconds"), strict=True
        ):
            for number, row in enumerate(found.values()):
                parts = [row["cost"][key], row["cost"][f"evaluation_{key}"]]
                spent = math.nan if None in parts else sum(parts)  # not drawn; the legend keeps its place
                panel.scatter(spent, row["mean"]["nll"], marker=MARKERS[number % len(MARKERS)], label=row["label"])
            _plain_log(panel, (50, 100, 200, 500, 1000, 2000))
            panel.set(title=f"NLL and {axis} of a seed", xlabel=f"{axis}, training and unseen tasks")
        _legend(figure)

    return paint


def curve(name: str, setting: str, axis: str, is_log: bool = False) -> Callable[[Figure], None]:
    """Three measures against one setting, with standard errors; a line for every method that it was varied for."""

    def paint(figure: Figure) -> None:
        rows = [row for row in read(RESULTS / name)["methods"].values() if setting in row["curves"]]
        lines = {
            row["label"]: {
                one["value"]: _measured(one["pooled_ece"], one["mean"], one["mean_errors"])
                for one in row["curves"][setting]
            }
            for row in rows
        }
        _lines(figure, lines, axis, is_log)

    return paint


def retrained(key: str, method: str, axis: str, *names: str) -> Callable[[Figure], None]:
    """Three measures of one method against a setting that it was trained anew for; a point for every seed.

    ``names`` are folders of results on the same tasks; the cells say themselves which value they have.
    """

    def paint(figure: Figure) -> None:
        lines: dict[str, dict[float, Measured]] = {}
        for cell in main_cells([RESULTS / name for name in names], method):
            points = lines.setdefault(f"seed {cell['seed']}", {})
            points[cell["settings"][key]] = _measured(cell["pooled"]["ece"], cell["mean"], {})
        _lines(figure, dict(sorted(lines.items())), axis, is_log=True)

    return paint


def _measured(pooled_ece: float, means: Rows, errors: Rows) -> Measured:
    """The pooled calibration error, which never has a standard error, and the means over tasks, of which some have."""
    found = {key: (means[key], errors.get(key, 0.0)) for key in MEASURES if key != "pooled_ece"}
    return {**found, "pooled_ece": (pooled_ece, 0.0)}


def _lines(figure: Figure, lines: Mapping[str, Mapping[float, Measured]], axis: str, is_log: bool) -> None:
    """A panel for each measure, and in it a line for each label: by value of the setting, height and error bar."""
    for panel, (key, title) in zip(_panels(figure, 3), MEASURES.items(), strict=True):
        for marker, (label, points) in zip(MARKERS, lines.items(), strict=False):
            values = sorted(points)
            heights, errors = zip(*(points[value][key] for value in values), strict=True)
            panel.errorbar(values, heights, errors, marker=marker, capsize=2, label=label)
        ticks = sorted({value for points in lines.values() for value in points})
        if is_log:
            _plain_log(panel, ticks)
        else:
            panel.set_xticks(ticks)
        panel.set(title=title, xlabel=axis)
    _legend(figure)


def suites(*names: str) -> Callable[[Figure], None]:
    """How far the methods that all suites but one have are from the reference, with the intervals that there are."""

    def paint(figure: Figure) -> None:
        found = {name: read(RESULTS / name) for name in names}
        [reference] = {one["reference"] for one in found.values()}
        rows = {name: _apart(one["methods"]) for name, one in found.items()}
        common = [row for row in rows[names[0]] if sum(row in one for one in rows.values()) >= len(rows) - 1]
        labels = {row: one["label"] for row, one in found[names[0]]["methods"].items()}
        figure.set_figheight(1.6 + 0.45 * len(common))
        step = 0.8 / len(found)
        for panel, (key, title) in zip(_panels(figure, 3), MEASURES.items(), strict=True):
            for number, name in enumerate(names):
                apart = [rows[name].get(row, {}).get(key, UNKNOWN) for row in common]
                ends = np.transpose([(one["value"] - one["low"], one["high"] - one["value"]) for one in apart])
                places = np.arange(len(common)) + (number - (len(names) - 1) / 2) * step
                values = [one["value"] for one in apart]
                panel.errorbar(values, places, xerr=ends, fmt=MARKERS[number], markersize=4, label=name)
            panel.axvline(0.0, color="0.4", linewidth=1)
            panel.set_yticks(range(len(common)), [labels[row] for row in common] if key == "accuracy" else [])
            panel.set_ylim(len(common) - 0.5, -0.5)
            panel.set(title=title, xlabel=f"minus that of {labels[reference]}")
        _legend(figure, ncols=len(names))

    return paint


def trust(names: Mapping[str, str]) -> Callable[[Figure], None]:
    """Confidence against accuracy, and errors among the answers that are surest: a row for each set of tasks."""

    def paint(figure: Figure) -> None:
        document = read_json(TRUST, None, "make it with python -m benchmarks.doubt")
        figure.set_figheight(3.2 * len(names))
        for row, (name, title) in zip(figure.subplots(len(names), 4), names.items(), strict=True):
            *panels, last = row
            for panel, method, colour in zip(panels, document[name].values(), COLOURS, strict=True):
                confidence, correct = (np.array(method[key], dtype=float) for key in ("confidence", "correct"))
                bins = reliability_bins(confidence, correct, 10)
                panel.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
                panel.vlines(bins.confidence, bins.confidence, bins.accuracy, color=colour, alpha=0.4)
                panel.scatter(bins.confidence, bins.accuracy, 400 * bins.size / len(confidence), color=colour)
                panel.set(title=f"{method['label']}: ECE {calibration_error(bins):.2f}", xlabel="confidence")
                panel.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
                last.plot(*risk_coverage(confidence, correct), color=colour, label=method["label"])
            panels[0].set_ylabel(f"{title}\naccuracy")
            last.set(title="Errors of the surest answers", xlabel="share answered", ylabel="share of these wrong")
            last.set(xlim=(0, 1), ylim=(0, 0.8))
            last.legend(fontsize=8)

    return paint


def _apart(methods: Rows) -> dict[str, Any]:
    """By row, its differences from the reference, where there are any."""
    found = {row: one["statistics"].get("differences") for row, one in methods.items()}
    return {row: one for row, one in found.items() if one is not None}


def _plain_log(panel: Axes, ticks: Sequence[float]) -> None:
    high = panel.get_xlim()[1]
    panel.set_xscale("log")
    panel.set_xticks([tick for tick in ticks if tick < high], [f"{tick:g}" for tick in ticks if tick < high])
    panel.minorticks_off()


def _panels(figure: Figure, count: int) -> list[Axes]:
    return list(np.atleast_1d(figure.subplots(1, count)))


def _legend(figure: Figure, ncols: int = 4) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, fontsize=8)


WANTED: Mapping[str, Callable[[Figure], None]] = {
    "doubt": doubt("cls-45"),
    "cost": cost("cls-45"),
    "suites": suites("cls-45", "mcqa", "chembench", "legalbench-heldout", "bigbench"),
    "samples": curve("cls-45", "num_samples", "posterior samples (0: at the mean)"),
    "examples": curve("cls-45-examples", "adapt_examples", "adaptation examples", is_log=True),
    "trust": trust({"tickets": "Tickets", "bigbench-demo": "BIG-bench"}),
    "beta": retrained("beta", "abmll", "beta", "cls-45", "cls-45-beta"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw those that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WANTED))
    names = parser.parse_args(arguments).names or list(WANTED)
    for unknown in set(names) - set(WANTED):
        parser.error(f"unknown '{unknown}'; known are {', '.join(WANTED)}")
    for name in names:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(11, 3.6), layout="constrained")
            WANTED[name](figure)
            figure.savefig(FIGURES / f"{name}.png")
        print(FIGURES / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
