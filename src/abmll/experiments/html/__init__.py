"""The report: one self-contained HTML page beside the numbers it shows."""

from abmll.experiments.html.page import write_report

__all__ = ["write_report"]
