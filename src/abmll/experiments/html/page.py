"""The report as one HTML page that needs nothing else: no network, no script, no fonts of its own.

The template ``page.html.j2`` says what the page shows, and calls ``plots`` and ``sections`` for it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from abmll.common.files import write_text
from abmll.experiments.budget import SMOKE
from abmll.experiments.html import plots, sections
from abmll.experiments.html.figure import NUM_COLORS
from abmll.experiments.html.reading import Method, Report, read_report
from abmll.experiments.tables import printable


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` into a run, evaluation or comparison folder, atomically, and return its path.

    Raises as ``read_report`` where the folder cannot be read, AbmllError where the page cannot be written.
    """
    path = Path(folder) / "report.html"
    write_text(path, render_page(read_report(folder)))
    return path


def render_page(report: Report) -> str:
    """The page's HTML. Every text of the folder is data: escaped, and stripped of control characters."""
    methods = list(report.methods.values())
    settings = in_words(report.settings)
    trained = [method for method in methods if method.curves]
    return render(
        "page.html.j2",
        report=report,
        methods=methods,
        plots=plots,
        tables=sections,
        facts=_facts(report, settings),
        window=max(1, round(max((len(method.curves["episode"]) for method in trained), default=0) / 10)),
        varied=[name for name in plots.SETTINGS if any(name in method.sweeps for method in methods)],
        settings=settings,
        own_settings=[(method, own) for method in methods if (own := _own(method, settings))],
    )


def render(template: str, **values: Any) -> str:
    """The HTML of a template of this folder, which all share one style."""
    environment = Environment(
        loader=PackageLoader("abmll.experiments", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template(template).render(num_colors=NUM_COLORS, **values)


def _clean(value: Any) -> Any:
    return printable(value) if type(value) is str else value


def _breakable(text: str) -> Markup:
    """Escaped text that a narrow column may break after an underscore or a dot, as task names have them."""
    return Markup(re.sub(r"([_.])(?=\w)", r"\1<wbr>", str(escape(printable(text)))))


def in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings with their values as text."""
    words = {"None": "none", "True": "yes", "False": "no"}
    listed = {key: value if isinstance(value, (list, tuple)) else [value] for key, value in settings.items()}
    return {key: ", ".join(words.get(str(one), str(one)) for one in value) or "none" for key, value in listed.items()}


def _own(method: Method, shared: Mapping[str, str]) -> dict[str, str]:
    """The settings in which a method differs from what all share."""
    return {key: value for key, value in in_words(method.settings).items() if shared.get(key) != value}


def _facts(report: Report, settings: Mapping[str, str]) -> dict[str, str]:
    """What was run, in a few words each."""
    mean = next(iter(report.methods.values())).mean
    facts = {
        "Model": settings.get("model"),
        "Suite": report.suite,
        "Rehearsal": "random model, generated tasks: no results" if (report.suite or "").endswith(SMOKE) else None,
        "Tasks": f"{mean['num_tasks']} unseen" if "num_tasks" in mean else None,
        "Missing tasks": ", ".join(report.missing),
        "Not quite unseen": ", ".join(report.known_leaks),
        "Test examples": f"{mean['num_examples']:,}" if "num_examples" in mean else None,
        "Seeds" if len(report.seeds) > 1 else "Seed": ", ".join(map(str, report.seeds)),
        "Versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return {key: value for key, value in facts.items() if value}
