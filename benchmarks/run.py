"""python -m benchmarks.run: measure everything, side by side, in one run (make bench).

benchmarks/results.json is written when every cell is finished; a run that was stopped goes on where it stopped.
"""

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from abmll.common.config import ModelConfig
from abmll.common.errors import AbmllError, nearest
from abmll.common.files import write_json
from abmll.common.progress import progress
from benchmarks import machine
from benchmarks.bench import Bench, announce
from benchmarks.cells import CELLS, EXTRA, GPU, Cell
from benchmarks.small import small_model
from benchmarks.store import Store, results

RESULTS = machine.ROOT / "benchmarks" / "results.json"
FINISHED = machine.ROOT / "runs" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where a cell failed."""
    given = parser().parse_args(arguments)
    chosen = given.only or ([*CELLS, *EXTRA] if given.all else list(CELLS))
    for name in chosen:
        if name not in known():
            parser().error(f"--only: no cell '{name}';{nearest(name, known())} see --list")
    if given.list:
        others = [*(f"{name} (when named, or with --all)" for name in EXTRA), *(f"{name} (when named)" for name in GPU)]
        print("\n".join([*CELLS, *others]))
        return 0
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    described = machine.machine(given.device), machine.versions()
    model = given.model or (small_model(FINISHED / "quick" / "model") if given.quick else ModelConfig.model)
    settings = {"model": model, "device": given.device, "data": str(given.data_dir or "")}
    key = {"code": machine.code_hash(), "machine": described[0], "versions": described[1], "settings": settings}
    store = Store(FINISHED / ("quick" if given.quick else "full"), key)
    if given.fresh:
        store.clear(chosen)
    failed = measure(Bench(model, given.device, given.quick, given.data_dir), store, chosen)
    finished = {name: rows for name in known() if (rows := store.load(name)) is not None}
    document = results([row for rows in finished.values() for row in rows], *described, machine.commit(), given.quick)
    output = given.output or (RESULTS if CELLS.keys() <= finished.keys() and not given.quick else None)
    if output is not None:
        write_json(output, document)
        announce(f"wrote {output}: {len(document['rows'])} rows of {len(finished)} cells")
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--model", help="language model (default: the embedded one; with --quick a random small one)")
    made.add_argument("--data-dir", type=Path, help="folder with the suite's tasks (default: fetched into the cache)")
    made.add_argument("--only", nargs="+", metavar="CELL", help="measure these cells alone")
    made.add_argument(
        "--all", action="store_true", help="measure also what is measured only when named, but for a GPU's"
    )
    made.add_argument("--quick", action="store_true", help="everything once, as small as can be: does each row work?")
    made.add_argument("--fresh", action="store_true", help="measure finished cells again")
    made.add_argument(
        "--output", type=Path, help="write all finished rows here (default: benchmarks/results.json, once complete)"
    )
    made.add_argument("--list", action="store_true", help="print the cells' names")
    return made


def known() -> dict[str, Cell]:
    """All cells by name."""
    return CELLS | EXTRA | GPU


def measure(bench: Bench, store: Store, chosen: Sequence[str]) -> list[str]:
    """Measure the cells that are not finished and print their rows; returns the names of those that failed."""
    failed = []
    with progress(len(chosen), "measuring", "cell") as bar:
        for name in chosen:
            rows = store.load(name)
            if rows is None:
                started = time.perf_counter()
                try:
                    rows = store.save(name, known()[name](bench), time.perf_counter() - started)
                except (AbmllError, RuntimeError) as error:
                    failed.append(name)
                    announce(f"{name}: failed: {error}")
                    continue
                finally:
                    gc.collect()
                announce(f"{name}: {time.perf_counter() - started:.0f} s")
            for row in rows:
                announce(f"  {line(row)}")
            bar.update()
    return failed


def line(row: dict[str, Any]) -> str:
    """A row for reading."""
    target = "" if row["target"] is None else f"   target {row['target']:g}: {'met' if row['met'] else 'missed'}"
    return f"{row['name']}: {row['ratio']:.3g} {row['unit']} ({row['low']:.3g} to {row['high']:.3g}){target}"


if __name__ == "__main__":
    sys.exit(main())
