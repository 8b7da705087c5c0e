"""Progress goes to stderr: a bar on a terminal, elsewhere a line now and then, and nothing where it is not wanted."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from abmll.common import progress as module
from abmll.common.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_shows_description_and_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress(range(3), "Working", unit="episode")) == [0, 1, 2]
    assert all(part in terminal.getvalue() for part in ("Working: 100%", "3/3", "episode"))


def test_quiet_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress(range(3), "Working", quiet=True)) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_bytes_are_counted_in_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress(5_000_000, "Fetching", unit="B") as bar:
        bar.update(5_000_000)
    assert "5.00M/5.00M" in terminal.getvalue()


def test_what_is_short_says_nothing_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 1e9)
    assert list(progress(range(3), "Working")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_lines_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A step takes four seconds: a line comes after steps 4 and 8, at 16 and 32 seconds."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 15.0)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with progress(10, "training", unit="episode") as bar:
        for _ in range(10):
            clock.now += 4.0
            bar.update()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"training: 4/10 episode, \d\d:\d\d left\ntraining: 8/10 episode, \d\d:\d\d left\n", err)


def test_a_quiet_operation_has_no_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress(range(3), "Working", quiet=True)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
