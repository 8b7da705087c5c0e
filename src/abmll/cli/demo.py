"""``abmll demo``: the whole method on real tasks, from download to report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from abmll.cli.console import narrator, print_json
from abmll.common.config import ActivationCacheConfig, ModelConfig


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
) -> None:
    """Compare ABMLL with structured LoRA and the pretrained model on unseen BIG-bench tasks, one seed.

    The first run downloads the embedded model (93 MB) and the tasks (358 MB) into the cache.

    Args:
        output_dir: folder for the runs, comparison.json and report.html
        max_steps: episodes per method (default: what fits a quarter of an hour on two cores)
        test_examples: questions per unseen task
        seed: seed of everything
    """
    from abmll.cli.places import check_folder, resumable
    from abmll.common.settings import flatten
    from abmll.experiments.demonstration import DEMO, Demo
    from abmll.experiments.html import write_report

    episodes = DEMO.train.max_steps if max_steps is None else max_steps
    train = replace(DEMO.train, seed=seed, max_steps=episodes, **flatten(activations))
    asked = DEMO.evaluate.test_examples if test_examples is None else test_examples
    settings = replace(DEMO, train=train, evaluate=replace(DEMO.evaluate, test_examples=asked))
    check_folder(output_dir, overwrite=True)  # its own earlier results
    with resumable(output_dir):
        comparison = Demo(output_dir, settings, base, narrator(quiet), quiet).run()
    report = write_report(output_dir)
    if json:
        print_json(comparison)
    elif not quiet:
        _print_table(comparison, seed, report)


def _print_table(comparison: dict[str, Any], seed: int, report: Path) -> None:
    from abmll.experiments.html.tables import headline

    methods = comparison["methods"].values()
    print(headline({row["label"]: row["mean"] for row in methods}).text())
    questions = next(iter(methods))["mean"]
    print(
        f"\nmean over {questions['num_tasks']} unseen tasks, {questions['num_examples']} questions, one seed ({seed}): "
        f"small differences may be chance\nreport: {report}"
    )
