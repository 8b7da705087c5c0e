"""The report as one HTML page that needs nothing else: no network, no script, no fonts of its own."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from abmll.experiments.html import curves, plots, tables
from abmll.experiments.html.figure import NUM_COLORS
from abmll.experiments.html.reading import Method, Report
from abmll.experiments.html.tables import printable
from abmll.experiments.metrics import reliability_bins

CURVE_HEADINGS = {"nll": "NLL, nats per example", "kl": "KL(q(φ) ‖ p(φ | θ))", "log_sigma": "Mean log σ of θ"}  # noqa: RUF001 (Greek)


def render_page(report: Report) -> str:
    """The page's HTML. Every text of the folder is data: escaped, and stripped of control characters."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_clean
    )
    environment.filters["breakable"] = _breakable
    source = files("abmll.experiments.html").joinpath("page.html.j2").read_text(encoding="utf-8")
    methods = _unique_labels(report.methods)
    return environment.from_string(source).render(
        report=report,
        labels=list(methods),
        num_colors=NUM_COLORS,
        facts=_facts(report),
        **_results(report, methods),
        **_calibration(methods),
        **_training(methods),
        **_variants(methods),
        settings=flatten(report.settings),
        own_settings={label: _own(method, report) for label, method in methods.items() if method.settings},
    )


def _clean(value: Any) -> Any:
    return printable(value) if type(value) is str else value


def _breakable(text: str) -> Markup:
    """Escaped text that a narrow column may break after an underscore or a dot, as task names have them."""
    return Markup(re.sub(r"([_.])(?=\w)", r"\1<wbr>", str(escape(printable(text)))))


def _unique_labels(methods: Mapping[str, Method]) -> dict[str, Method]:
    """Methods by label, with the key added where two share one."""
    labels = [method.label for method in methods.values()]
    return {
        method.label if labels.count(method.label) == 1 else f"{method.label} ({key})": method
        for key, method in methods.items()
    }


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with their values as text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) or "none"
        elif value is None or isinstance(value, bool):
            flat[f"{prefix}{key}"] = {None: "none", True: "yes", False: "no"}[value]
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _own(method: Method, report: Report) -> dict[str, str]:
    """The settings in which a method differs from those that all share."""
    shared = flatten(report.settings)
    return {key: value for key, value in flatten(method.settings).items() if shared.get(key) != value}


def _facts(report: Report) -> dict[str, str]:
    """What was run, in a few words each."""
    flat = flatten(report.settings)
    mean = next(iter(report.methods.values())).mean
    facts = {
        "Model": next((v for k, v in flat.items() if k.split(".")[-1] == "model"), None),
        "Suite": report.suite,
        "Tasks": f"{mean['num_tasks']} unseen" if "num_tasks" in mean else None,
        "Missing tasks": ", ".join(report.missing) or None,
        "Not quite unseen": ", ".join(report.known_leaks) or None,
        "Test examples": f"{mean['num_examples']:,}" if "num_examples" in mean else None,
        "Seeds" if len(report.seeds) > 1 else "Seed": ", ".join(map(str, report.seeds)) or None,
        "Versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()) or None,
    }
    return {key: value for key, value in facts.items() if value}


def _results(report: Report, methods: Mapping[str, Method]) -> dict[str, Any]:
    """Tables and dot plots of the evaluation; all None where nothing was evaluated."""
    evaluated = {label: m for label, m in methods.items() if m.tasks}
    if not evaluated:
        return dict.fromkeys(("headline", "every_metric", "pooled", "differences", "per_task", "dots"))
    tasks = {label: m.tasks for label, m in evaluated.items()}
    indexed = {label: (index, of_method) for index, (label, of_method) in enumerate(tasks.items())}
    reference = next(
        (label for label, m in methods.items() if m is report.methods.get(report.reference)), next(iter(tasks))
    )
    pooled = {label: m.pooled for label, m in evaluated.items() if m.pooled}
    return {
        "headline": tables.headline({label: m.mean for label, m in evaluated.items()}),
        "every_metric": tables.every_metric({label: m.mean for label, m in evaluated.items()}),
        "pooled": tables.every_metric(pooled) if len(pooled) == len(evaluated) else None,
        "differences": tables.paired_differences(tasks, reference) if len(tasks) > 1 else None,
        "per_task": tables.per_task(tasks),
        "dots": [
            Markup(plots.task_dots("accuracy", "Accuracy", indexed, "majority")),
            Markup(plots.task_dots("nll", "NLL, nats", indexed, None)),
            Markup(plots.task_dots("ece", "ECE", indexed, None)),
        ],
    }


def _calibration(methods: Mapping[str, Method]) -> dict[str, Any]:
    """Reliability diagrams and risk-coverage of the methods whose predictions are there."""
    known = {
        label: (index, method.outcomes)
        for index, (label, method) in enumerate(methods.items())
        if method.outcomes is not None
    }
    missing = [label for label, method in methods.items() if method.tasks and method.outcomes is None]
    if not known:
        return {"reliability": [], "risk_coverage": None, "selective": None, "without_predictions": missing}
    tallest = max(int(reliability_bins(each.confidence, each.correct).size.max()) for _, each in known.values())
    return {
        "reliability": [Markup(plots.reliability(label, each, i, tallest)) for label, (i, each) in known.items()],
        "risk_coverage": Markup(plots.risk_coverage_curves(known)),
        "selective": tables.selective_error(known),
        "without_predictions": missing,
    }


def _variants(methods: Mapping[str, Method]) -> dict[str, Any]:
    """Figures of the settings that were varied, and how doubt tells out-of-distribution inputs apart."""
    numbered = {label: (index, method) for index, (label, method) in enumerate(methods.items())}
    varied = [name for name in curves.HEADINGS if any(name in method.sweeps for method in methods.values())]
    figures = {
        curves.HEADINGS[name]: curves.sweeps(
            name, {label: (i, method.sweeps[name]) for label, (i, method) in numbered.items() if name in method.sweeps}
        )
        for name in varied
    }
    known = {label: one for label, one in numbered.items() if any(v is not None for v in one[1].ood.values())}
    ood = {label: (index, method.ood) for label, (index, method) in known.items()}
    return {
        "varied": {heading: [Markup(one) for one in drawn] for heading, drawn in figures.items()},
        "ood": tables.ood(ood) if ood else None,
        "ood_figure": Markup(plots.ood_aurocs(ood)) if ood else None,
    }


def _training(methods: Mapping[str, Method]) -> dict[str, Any]:
    """Training curves of the methods that were trained, and what training cost."""
    trained = {label: (i, m) for i, (label, m) in enumerate(methods.items()) if m.curves}
    longest = max((len(m.curves["episode"]) for _, m in trained.values()), default=0)
    window = max(1, round(longest / 10))
    curves = []
    for key, heading in CURVE_HEADINGS.items():
        series = {label: (i, m.curves["episode"], m.curves[key]) for label, (i, m) in trained.items()}
        # a method without a posterior writes zeros for its KL: nothing to look at
        shown = {label: s for label, s in series.items() if key != "kl" or np.any(np.nan_to_num(s[2]) != 0)}
        curves.append(plots.training_curve(key, heading, shown, window))
    costs = {label: (i, m.cost) for i, (label, m) in enumerate(methods.items()) if m.cost}
    return {
        "curves": [Markup(curve) for curve in curves if curve],
        "window": window,
        "cost": tables.cost(costs) if costs else None,
    }
