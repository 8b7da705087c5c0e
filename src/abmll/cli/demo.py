"""``abmll demo``: the comparison of ``experiments/demo.yaml``, from download to report, sized to the machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from abmll.cli.compare import ComparisonFlags, compare, prepare
from abmll.cli.console import in_words, narrator
from abmll.common.config import ActivationCacheConfig, ModelConfig
from abmll.common.settings import pick
from abmll.experiments.budget import SharedConfig

SETTINGS = Path(__file__).parent.parent / "experiments" / "demo.yaml"
SIZE = "demo.json"
SECONDS = 510.0  # ten minutes, but for loading the model, the tables, and an inexact forecast


def demo(
    *,
    base: ModelConfig,
    activations: ActivationCacheConfig,
    output_dir: Path = Path("runs/demo"),
    max_steps: int | None = None,
    test_examples: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Compare ABMLL, its mixture, structured LoRA and the pretrained model on unseen BIG-bench tasks, one seed.

    The first run downloads the embedded model (93 MB) and the tasks (358 MB) into the cache. The rest should take ten
    minutes at most: a slow machine gets fewer episodes and questions, down to 6 and 10 a task. An interrupted demo goes
    on by the same command.

    Args:
        output_dir: folder for the runs, comparison.json and report.html
        max_steps: episodes of every training run (default: 30, or what fits)
        test_examples: questions of each unseen task (default: 30, or what fits)
        seed: seed of everything
    """
    from abmll.cli.places import check_folder
    from abmll.tasks.bigbench import fetch_bigbench

    check_folder(output_dir, overwrite=True)  # its own earlier results
    flags = {"max_steps": max_steps, "test_examples": test_examples}
    given = {name: value for name, value in flags.items() if value is not None}
    values = yaml.safe_load(SETTINGS.read_text(encoding="utf-8")) | given | {"seeds": [seed]}
    asked = arguments(values, base)  # refuses what cannot be, before anything is downloaded
    fetch_bigbench(narrator(quiet), quiet=quiet)
    try:
        size = fitted(output_dir, asked, values, given, quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{output_dir}: run the same command to begin again") from None
    asked = arguments(values | size, base)
    return compare(**asked, output_dir=output_dir, activations=activations, quiet=quiet, json=json)


def arguments(values: Mapping[str, Any], base: ModelConfig) -> dict[str, Any]:
    """Arguments of ``compare`` for the settings of a file."""
    return {
        "suite": values["suite"],
        "flags": ComparisonFlags(tuple(values["methods"])),
        "seeds": tuple(values["seeds"]),
        "shared": pick(SharedConfig, {**vars(base), **values}),
        "explicit": frozenset(values),
    }


def fitted(
    folder: Path, asked: Mapping[str, Any], values: Mapping[str, Any], given: Mapping[str, int], quiet: bool
) -> dict[str, int]:
    """Episodes and questions: as given, as an earlier call in this folder has chosen, or as the machine allows."""
    from abmll.common.documents import read_json, write_document
    from abmll.experiments.planning import plan
    from abmll.experiments.sizing import FLOOR, count_work, fit, measure_pace

    say, path = narrator(quiet), folder / SIZE
    known = read_json(path, "size", "delete it, and the machine is measured again") if path.exists() else {}
    if known.get("given") == given:
        size = known["size"]
        say(f"as before: {size['max_steps']} episodes, {size['test_examples']} questions a task")
        return size
    say("measuring this machine")
    results, config = prepare(folder, **asked, activations=ActivationCacheConfig())
    suite = results.load_suite()
    cells = plan(suite, config)
    work = count_work(cells, suite, measure_pace(cells, results, say))
    size = fit(work, {name: values[name] for name in FLOOR}, given, SECONDS)
    say(
        f"about {in_words(work.seconds(size))} on this machine: "
        f"{size['max_steps']} episodes, {size['test_examples']} questions a task"
    )
    write_document(path, "size", {"given": dict(given), "size": size})
    return size
