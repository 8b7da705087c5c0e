"""The report as one HTML page that needs nothing else: no network, no script, no fonts of its own."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from abmll.experiments.html import curves, plots, sections
from abmll.experiments.html.figure import NUM_COLORS
from abmll.experiments.html.reading import Method, Report
from abmll.experiments.metrics import reliability_bins
from abmll.experiments.tables import printable

CURVE_HEADINGS = {"nll": "NLL, nats per example", "kl": "KL(q(φ) ‖ p(φ | θ))", "log_sigma": "Mean log σ of θ"}  # noqa: RUF001 (Greek)


def render_page(report: Report) -> str:
    """The page's HTML. Every text of the folder is data: escaped, and stripped of control characters."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_clean
    )
    environment.filters["breakable"] = _breakable
    source = files("abmll.experiments.html").joinpath("page.html.j2").read_text(encoding="utf-8")
    methods = list(report.methods.values())
    shared = flatten(report.settings)
    return environment.from_string(source).render(
        report=report,
        methods=methods,
        num_colors=NUM_COLORS,
        facts=_facts(report, shared),
        **_results(report, methods),
        **_calibration(methods),
        **_training(methods),
        **_variants(methods),
        settings=shared,
        own_settings=[(method, _own(method, shared)) for method in methods if method.settings],
    )


def _clean(value: Any) -> Any:
    return printable(value) if type(value) is str else value


def _breakable(text: str) -> Markup:
    """Escaped text that a narrow column may break after an underscore or a dot, as task names have them."""
    return Markup(re.sub(r"([_.])(?=\w)", r"\1<wbr>", str(escape(printable(text)))))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with their values as text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) or "none"
        else:
            flat[f"{prefix}{key}"] = {"None": "none", "True": "yes", "False": "no"}.get(str(value), str(value))
    return flat


def _own(method: Method, shared: Mapping[str, str]) -> dict[str, str]:
    """The settings in which a method differs from those that all share."""
    return {key: value for key, value in flatten(method.settings).items() if shared.get(key) != value}


def _facts(report: Report, settings: Mapping[str, str]) -> dict[str, str]:
    """What was run, in a few words each."""
    mean = next(iter(report.methods.values())).mean
    facts = {
        "Model": next((value for key, value in settings.items() if key.split(".")[-1] == "model"), None),
        "Suite": report.suite,
        "Tasks": f"{mean['num_tasks']} unseen" if "num_tasks" in mean else None,
        "Missing tasks": ", ".join(report.missing),
        "Not quite unseen": ", ".join(report.known_leaks),
        "Test examples": f"{mean['num_examples']:,}" if "num_examples" in mean else None,
        "Seeds" if len(report.seeds) > 1 else "Seed": ", ".join(map(str, report.seeds)),
        "Versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return {key: value for key, value in facts.items() if value}


def _results(report: Report, methods: list[Method]) -> dict[str, Any]:
    """Tables and dot plots of the evaluation; all None where nothing was evaluated."""
    if not any(method.tasks for method in methods):
        return dict.fromkeys(("headline", "every_metric", "pooled", "differences", "per_task", "dots"))
    reference = report.methods.get(report.reference, methods[0])
    return {
        "headline": sections.headline(methods),
        "every_metric": sections.every_metric(methods, "mean"),
        "pooled": sections.every_metric(methods, "pooled") if all(method.pooled for method in methods) else None,
        "differences": sections.paired_differences(methods, reference) if len(methods) > 1 else None,
        "per_task": sections.per_task(methods),
        "dots": [
            plots.task_dots("accuracy", "Accuracy", methods, "majority"),
            plots.task_dots("nll", "NLL, nats", methods),
            plots.task_dots("ece", "ECE", methods),
        ],
    }


def _calibration(methods: list[Method]) -> dict[str, Any]:
    """Reliability diagrams and risk-coverage of the methods whose predictions are there."""
    known = [method for method in methods if method.outcomes is not None]
    sizes = [reliability_bins(m.outcomes.confidence, m.outcomes.correct).size for m in known if m.outcomes is not None]
    tallest = max((int(size.max()) for size in sizes), default=0)
    return {
        "reliability": [plots.reliability(method, tallest) for method in known],
        "risk_coverage": curves.risk_coverage_curves(known) if known else None,
        "selective": sections.selective_error(known) if known else None,
        "without_predictions": [method.label for method in methods if method.tasks and method.outcomes is None],
    }


def _training(methods: list[Method]) -> dict[str, Any]:
    """Training curves of the methods that were trained, and what training cost."""
    trained = [method for method in methods if method.curves]
    window = max(1, round(max((len(method.curves["episode"]) for method in trained), default=0) / 10))
    # a method without a posterior writes zeros for its KL: nothing to look at
    shown = {key: [m for m in trained if key != "kl" or np.nan_to_num(m.curves[key]).any()] for key in CURVE_HEADINGS}
    drawn = [curves.training_curve(key, heading, shown[key], window) for key, heading in CURVE_HEADINGS.items()]
    costs = [method for method in methods if method.cost]
    return {
        "curves": [curve for curve in drawn if curve],
        "window": window,
        "cost": sections.cost(costs) if costs else None,
    }


def _variants(methods: list[Method]) -> dict[str, Any]:
    """Figures of the settings that were varied, and how uncertainty tells out-of-distribution inputs apart."""
    varied = [name for name in curves.SETTINGS if any(name in method.sweeps for method in methods)]
    ood = [method for method in methods if any(value is not None for value in method.ood.values())]
    return {
        "varied": {
            curves.SETTINGS[name]: [curves.sweep(name, key, methods) for key in curves.MEASURES] for name in varied
        },
        "ood": sections.out_of_distribution(ood) if ood else None,
        "ood_figure": plots.ood_aurocs(ood) if ood else None,
    }
