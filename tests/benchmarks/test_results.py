"""What a run leaves: cells that are kept or measured again, rows of a fixed form, a document that matches them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, run, table
from benchmarks.cells import CELLS, GPU
from benchmarks.pairs import Rounds, Spread
from benchmarks.rows import KEYS, Row, absolute, timed
from benchmarks.store import Store, results

ROOT = Path(__file__).parents[2]
ROW = Row("a / b", 0.5, 0.4, 0.6, target=0.7, numerator=1.0, denominator=2.0, measured_in="s")


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    described = {"processor": "P", "cores": 2, "threads": 2, "memory_gb": 8.0, "bf16_hardware": False}
    return results(rows, described, {"python": "3.11", "torch": "2.13"}, "abc", quick=False)


def test_timed_row() -> None:
    rounds = Rounds({"a": [1.0, 2.0, 3.0], "b": [2.0, 2.0, 2.0]})
    row = timed("a / b", rounds, "a", "b", target=0.9)
    assert (row.ratio, row.low, row.high, row.numerator, row.denominator) == (1.0, 0.75, 1.25, 2.0, 2.0)
    assert row.met is False
    assert timed("a / b", rounds, "a", "b").met is None
    assert set(row.document()) == set(KEYS)


def test_target_itself_is_met() -> None:
    assert Row("r", 0.7, 0.7, 0.7, target=0.7).met is True


def test_finished_cell_is_read_again_for_the_same_code_and_machine(tmp_path: Path) -> None:
    store = Store(tmp_path, {"code": "1"})
    saved = store.save("one", [ROW], 1.0)
    assert store.load("one") == saved == [{"cell": "one"} | ROW.document()]
    assert store.load("two") is None
    assert Store(tmp_path, {"code": "2"}).load("one") is None
    store.clear(["one"])
    assert store.load("one") is None


def test_code_hash_follows_the_code(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    first = machine.code_hash(tmp_path)
    (tmp_path / "benchmarks" / "results.json").write_text("{}")
    assert machine.code_hash(tmp_path) == first
    (tmp_path / "src" / "a.py").write_text("2")
    assert machine.code_hash(tmp_path) != first


def test_failed_cell_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: object) -> list[Row]:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(run, "FINISHED", tmp_path)
    monkeypatch.setattr(run, "CELLS", {"broken": broken, "whole": lambda bench: [ROW]})
    output = tmp_path / "out.json"
    assert run.main(["--quick", "--model", "unused", "--output", str(output)]) == 1
    assert "broken: failed: no such thing" in capsys.readouterr().err
    written = json.loads(output.read_text())
    assert [row["name"] for row in written["rows"]] == ["a / b"]
    assert written["smoke"] is True


def test_unknown_cell_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--only", "step-qv"])
    assert "no cell 'step-qv'; Did you mean 'steps-qv'?" in capsys.readouterr().err


def test_all_is_every_row_that_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(run, "FINISHED", tmp_path)
    monkeypatch.setattr(run, "measure", lambda bench, store, chosen: asked.extend(chosen))
    assert run.main(["--quick", "--model", "unused", "--all"]) == 0
    assert len(set(asked)) == len(asked)
    assert {"steps-qv", "growth-options", "server-many"} <= set(asked) == run.known().keys() - GPU.keys()


def test_machine_names_no_host_and_no_path() -> None:
    described = json.dumps(machine.machine("cpu"))
    assert "/" not in described.replace("GB/s", "")
    assert __import__("platform").node() not in described


def test_table_fills_every_block_and_leaves_other_text() -> None:
    text = "by hand\n<!-- rows: one -->\nold\n<!-- end -->\nalso\n<!-- run -->\n<!-- end -->\n"
    other = absolute("speed", Spread(123.4, 100.0, 150.0), "GFLOP/s", "a note")
    rows = [{"cell": "one"} | row.document() for row in (ROW, other)]
    made = table.filled(text, document(rows))
    assert "old" not in made
    assert "| a / b | ≤ 0.70 | 0.50 | 0.40 to 0.60 | 1 / 2 s | yes |" in made
    assert "| speed |  | 123 GFLOP/s | 100 GFLOP/s to 150 GFLOP/s | a note |  |" in made
    assert made.startswith("by hand\n")
    assert "P (without bf16 hardware), 2 cores, 2 threads, 8.0 GB; python 3.11, torch 2.13; commit abc." in made
    assert table.filled(made, document(rows)) == made


def test_table_of_a_cell_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows of the cell 'two'"):
        table.table([{"cell": "one"} | ROW.document()], ["two"])


def test_document_names_every_cell_once() -> None:
    text = table.DOCUMENT.read_text(encoding="utf-8")
    named = [name for kind in table.BLOCK.findall(text) for name in kind[1].removeprefix("rows:").split()]
    assert sorted(name for name in named if name != "run") == sorted(CELLS)


def test_committed_document_is_made_from_the_committed_results() -> None:
    committed = json.loads(table.RESULTS.read_text(encoding="utf-8"))
    text = table.DOCUMENT.read_text(encoding="utf-8")
    assert committed["smoke"] is False
    assert table.filled(text, committed) == text
    for row in committed["rows"]:
        assert set(row) == {"cell", *KEYS}
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["met"] == (None if row["target"] is None else row["ratio"] <= row["target"])
