"""The bar goes to stderr, and only where it is wanted."""

import pytest

from abmll.common.progress import progress


def test_no_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "Working")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_forced_bar_shows_description_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "Working", unit="episode", force=True)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "Working: 100%" in err
    assert "3/3" in err
    assert "episode" in err


def test_quiet_wins(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "Working", quiet=True, force=True)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_bytes_are_counted_in_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(5_000_000, "Fetching", unit="B", force=True) as bar:
        bar.update(5_000_000)
    assert "5.00M/5.00M" in capsys.readouterr().err
