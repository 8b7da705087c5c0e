"""``abmll report``: one self-contained HTML page about a run, an evaluation or a comparison."""

from pathlib import Path

from abmll.cli.output import narrator


def report(folder: Path, *, quiet: bool = False) -> None:
    """Write report.html into a folder, from what lies there.

    Args:
        folder: a training run, an evaluation, or a comparison (such as runs/demo)
        quiet: say nothing
    """
    from abmll.report import write_report

    narrator(quiet)(f"report: {write_report(folder)}")
