"""``abmll report``: one self-contained HTML page about a run, an evaluation or a comparison."""

from pathlib import Path

from abmll.cli.console import print_facts, print_json


def report(folder: Path, *, quiet: bool = False, json: bool = False) -> None:
    """Write report.html into a folder, from what lies there.

    Args:
        folder: a training run, an evaluation, or a comparison (such as runs/demo)
        quiet: say nothing but errors
        json: print the page's path as JSON
    """
    from abmll.experiments.html import write_report

    page = str(write_report(folder))
    if json:
        print_json({"report": page})
    elif not quiet:
        print_facts({"report": page})
