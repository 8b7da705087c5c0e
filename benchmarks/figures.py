"""python -m benchmarks.figures [NAME...]: draw docs/figures/ from results/, for the questions of docs/results.md."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from benchmarks.machine import ROOT
from benchmarks.publish import COMPARISON, RESULTS

FIGURES = ROOT / "docs" / "figures"
MEASURES = {"accuracy": "Accuracy", "nll": "NLL, nats", "pooled_ece": "Pooled ECE"}
STYLE: dict[Any, Any] = {
    **{"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3},
    **{"axes.titlesize": 10, "axes.titlelocation": "left", "savefig.dpi": 150, "legend.frameon": False},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # seven, and ten colours: what has one in common differs in the other
Rows = Mapping[str, Any]


def read(name: str) -> dict[str, Any]:
    """The comparison that is kept under that name."""
    return json.loads((RESULTS / name / COMPARISON).read_text(encoding="utf-8"))


def curves(name: str, curve: str, axis: str, methods: Sequence[str]) -> Callable[[Figure], None]:
    """Each measure against one setting, a line a method."""

    def paint(figure: Figure) -> None:
        found = read(name)["methods"]
        for panel, (key, label) in zip(_panels(figure, len(MEASURES)), MEASURES.items(), strict=True):
            for marker, method in zip(MARKERS, methods, strict=False):
                points = found[method]["curves"].get(curve)
                if points:
                    values = [one["pooled_ece"] if key == "pooled_ece" else one["mean"][key] for one in points]
                    panel.plot([one["value"] for one in points], values, marker=marker, label=found[method]["label"])
                else:  # the setting means nothing to it
                    row = found[method]
                    value = row["pooled"]["ece"] if key == "pooled_ece" else row["mean"][key]
                    panel.axhline(value, linestyle=":", color="0.4", label=row["label"])
            panel.set_xscale("symlog", linthresh=1)
            ticks = sorted({one["value"] for row in found.values() for one in row["curves"].get(curve, [])})
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.minorticks_off()
            panel.set(title=label, xlabel=axis)
        _legend(figure)

    return paint


def sensitivity(pattern: str) -> Callable[[Figure], None]:
    """Each measure against beta, a comparison a value."""

    def paint(figure: Figure) -> None:
        found = [read(path.name)["methods"] for path in sorted(RESULTS.glob(pattern))]
        for panel, (key, label) in zip(_panels(figure, len(MEASURES)), MEASURES.items(), strict=True):
            for marker, method in zip(MARKERS, ("abmll", "abmll@weights-only"), strict=False):
                rows = sorted((one[method] for one in found), key=lambda row: row["settings"]["beta"])
                values = [row["pooled"]["ece"] if key == "pooled_ece" else row["mean"][key] for row in rows]
                panel.plot([row["settings"]["beta"] for row in rows], values, marker=marker, label=rows[0]["label"])
            panel.set_xscale("log")
            panel.set(title=label, xlabel="beta")
        _legend(figure)

    return paint


def doubt(name: str) -> Callable[[Figure], None]:
    """What the posterior doubts against what is hard, task by task, and foreign inputs told apart."""

    def paint(figure: Figure) -> None:
        found = read(name)["methods"]
        spread, trust, foreign = _panels(figure, 3)
        for marker, method in zip(MARKERS, ("abmll@weights-only", "abmll"), strict=False):
            rows = [one for seed in found[method]["doubt"] for one in seed.values()]
            error, information = ([one[key] for one in rows] for key in ("error", "mutual_information"))
            label = f"{found[method]['label']}, rank correlation {_rank_correlation(error, information):.2f}"
            spread.scatter(error, information, marker=marker, label=label)
        spread.set(title="Mutual information, nats", xlabel="error rate of a task, of each seed")
        spread.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        rows = [one for seed in found["abmll"]["doubt"] for one in seed.values()]
        excess, temperature = [one["excess"] for one in rows], [one["temperature"] for one in rows]
        trust.scatter(excess, temperature, label=f"rank correlation {_rank_correlation(excess, temperature):.2f}")
        trust.set(title="Temperature inferred from 20 examples", xlabel="NLL above that of the labels alone, nats")
        trust.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        _foreign(foreign, found)

    return paint


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _foreign(panel: Axes, methods: Rows) -> None:
    for place, row in enumerate(methods.values()):
        for key, color in (("entropy", "tab:blue"), ("mutual_information", "tab:orange")):
            value = row["foreign"]["mean"][key]
            if value is not None:
                panel.plot(value, place, "o", color=color, label=key.replace("_", " ") if place == 0 else None)
    panel.axvline(0.5, color="0.6", linewidth=1)
    panel.set_yticks(range(len(methods)), [row["label"] for row in methods.values()], fontsize=6)
    panel.set(title="Foreign inputs told apart, AUROC")
    panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def cost(name: str) -> Callable[[Figure], None]:
    """NLL against what a seed has cost in forward passes and in seconds."""

    def paint(figure: Figure) -> None:
        found = read(name)["methods"]
        for panel, key, axis in zip(
            _panels(figure, 2), ("forward_passes", "seconds"), ("forward passes", "seconds"), strict=True
        ):
            for number, row in enumerate(found.values()):
                spent = row["cost"][key] + row["cost"][f"judging_{key}"]
                panel.scatter(spent, row["mean"]["nll"], marker=MARKERS[number % len(MARKERS)], label=row["label"])
            _plain_log(panel, (50, 100, 200, 500, 1000, 2000))
            panel.set(title=f"NLL against {axis} of a seed", xlabel=f"{axis}, training and unseen tasks")
        _legend(figure)

    return paint


def _plain_log(panel: Axes, ticks: Sequence[float]) -> None:
    high = panel.get_xlim()[1]
    panel.set_xscale("log")
    panel.set_xticks([tick for tick in ticks if tick < high], [f"{tick:g}" for tick in ticks if tick < high])
    panel.minorticks_off()


def _panels(figure: Figure, count: int) -> list[Axes]:
    return list(np.atleast_1d(figure.subplots(1, count)))


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)


WANTED: Mapping[str, Callable[[Figure], None]] = {
    "samples": curves("cls-45-samples", "num_samples", "posterior samples", ("abmll", "abmll@weights-only")),
    "examples": curves(
        "cls-45-examples", "adapt_examples", "examples", ("abmll", "structured-lora", "pretrained-adapted", "icl")
    ),
    "visits": curves("cls-45-visits", "visits", "task visits", ("abmll", "structured-lora", "reptile")),
    "beta": sensitivity("cls-45-beta-*"),
    "doubt": doubt("cls-45"),
    "cost": cost("cls-45"),
}


def main(names: Sequence[str], folder: Path = FIGURES) -> int:
    """Draw these, or all of them."""
    for name, paint in WANTED.items():
        if names and name not in names:
            continue
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(11, 3.6), layout="constrained")
            paint(figure)
            figure.savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
