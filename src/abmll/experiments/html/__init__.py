"""The report: one self-contained HTML page beside the numbers it shows."""

from pathlib import Path


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` into a run, evaluation or comparison folder, atomically, and return its path.

    Raises DataError where the folder holds nothing to report or a damaged file, AbmllError where it cannot be written.
    """
    # drawing needs matplotlib and jinja2: nobody who only asks for --help should wait for them
    from abmll.common.files import write_text
    from abmll.experiments.html.page import render_page
    from abmll.experiments.html.reading import read_report

    path = Path(folder) / "report.html"
    write_text(path, render_page(read_report(folder)))
    return path


__all__ = ["write_report"]
