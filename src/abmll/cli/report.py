"""``abmll report``: one self-contained HTML page about a run, an evaluation or a comparison."""

from pathlib import Path

from abmll.cli.console import print_result


def report(folder: Path, *, quiet: bool = False, json: bool = False) -> None:
    """Write report.html into a folder, from what lies there.

    Args:
        folder: a training run, an evaluation, or a comparison (such as runs/demo)
    """
    from abmll.experiments.html import write_report

    page = str(write_report(folder))
    print_result({"report": page}, {"report": page}, quiet, json)
