"""Accuracy and cost against the choice of adapted layers, on held-out training tasks of bigbench-demo.

    python benchmarks/layer_curve.py --output-dir results/layer_curve            # all cells, then the table
    python benchmarks/layer_curve.py --output-dir results/layer_curve --table    # the table of the finished cells

Twelve of the suite's training tasks are learned from, six judge; the evaluation tasks are not touched. A cell is one
choice of layers with one seed, runs in a process of its own and leaves one JSON file: what is there is not run again.
Every choice gets the same episodes, examples, adaptation steps and questions under a seed. Needs the embedded model and
the tasks in the cache ('abmll demo' or 'abmll tasks fetch bigbench').
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

VALIDATION = (
    "goal_step_wikihow.goal_inference",
    "misconceptions",
    "phrase_relatedness",
    "ruin_names",
    "snarks",
    "winowhy",
)
# layers_to_transform and layer_selection of each choice.
CHOICES = {
    "top-third": ("top-third", "depth"),
    "top-half": ("top-half", "depth"),
    "all": (None, "depth"),
    "similarity-10": ("top-10", "similarity"),
}
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
METRICS = ("accuracy", "nll", "ece", "aurc")
WARM_EPISODES = 4


def main() -> None:
    """Run the cells that are missing, one process after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the cells' files")
    parser.add_argument("--choices", default=",".join(CHOICES), help="choices of layers, of: " + ", ".join(CHOICES))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--episodes", type=int, default=36)  # each of the twelve tasks three times
    parser.add_argument("--test-examples", type=int, default=40)
    parser.add_argument("--commit", default="", help="noted in the cells' files")
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells and stop")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    if given.cell:
        return run_cell(given.cell, given)
    cells = [f"{choice}_seed{seed}" for seed in given.seeds.split(",") for choice in given.choices.split(",")]
    for cell in cells:
        if not given.table and not (given.output_dir / f"{cell}.json").exists():
            print(cell, file=sys.stderr, flush=True)
            subprocess.run([sys.executable, *sys.argv, "--cell", cell], check=True)
    print(table(given.output_dir, given.choices.split(",")))


def run_cell(cell: str, given: argparse.Namespace) -> None:
    """Meta-train, adapt to the validation tasks, measure; writes the cell's file at the end."""
    import torch

    from abmll.common.config import AdapterConfig, EvaluateConfig, ModelConfig, PromptConfig, TrainConfig
    from abmll.common.files import write_json
    from abmll.common.settings import flatten, pick
    from abmll.experiments.few_shot import evaluate_tasks, versions
    from abmll.language.activation_cache import ActivationCache
    from abmll.language.base import load_base
    from abmll.language.layer_selection import choose_layers
    from abmll.language.targets import parse_layers
    from abmll.model.meta_learner import AbmllModel
    from abmll.tasks import load_suite
    from abmll.training.trainer import MetaTrainer

    torch.set_num_threads(1)
    name, _, seed = cell.rpartition("_seed")
    layers, selection = CHOICES[name]
    suite = load_suite("bigbench-demo")
    learned = [task for task in suite.train if task.name not in VALIDATION]
    evaluation = [task for task in suite.train if task.name in VALIDATION]
    assert (len(learned), len(evaluation)) == (12, 6)
    prompt = pick(PromptConfig, suite.prompt)
    base = load_base(ModelConfig(), lambda line: None, quiet=True)
    started = time.process_time()
    adapter = AdapterConfig(target_modules=TARGETS, layers_to_transform=layers, layer_selection=selection)
    adapter = choose_layers(base, adapter, prompt, learned)
    selection_seconds = time.process_time() - started
    model = AbmllModel(base, adapter, prompt, int(seed))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            max_steps=given.episodes, save_steps=given.episodes, seed=int(seed), output_dir=f"{folder}/run"
        )
        cache = ActivationCache(10**10)  # large enough to keep everything
        peak_loaded = peak_memory()
        cold = train(MetaTrainer(model, learned, config, cache))
        peak_training = peak_memory()
        settings = EvaluateConfig(adapt_examples=20, test_examples=given.test_examples, num_samples=0)
        started = time.process_time()
        evaluation = evaluate_tasks(model, evaluation, settings, seed=int(seed), quiet=True)
        evaluation_seconds = time.process_time() - started
        # The first episodes once more: their activations are all in the cache now.
        again = replace(config, max_steps=min(WARM_EPISODES, given.episodes), output_dir=f"{folder}/again")
        warm = train(MetaTrainer(model, learned, again, cache)) if model.scorer.lower_blocks else cold
    blocks = base.model.config.get_text_config().num_hidden_layers
    document = {
        "choice": name,
        "seed": int(seed),
        "layers": sorted(parse_layers(adapter.layers_to_transform, blocks)),
        "mean": evaluation.mean,
        "tasks": evaluation.tasks,
        "seconds_per_episode": {"cold": cold, "warm": warm},
        "selection_seconds": selection_seconds,
        "evaluation_seconds": evaluation_seconds,
        "peak_memory_bytes": {"loaded": peak_loaded, "training": peak_training},
        "activation_cache_bytes": cache.num_bytes,
        "settings": model.scorer.settings() | flatten(config, settings) | {"output_dir": None},
        "versions": versions(),
        "commit": given.commit,
    }
    write_json(given.output_dir / f"{cell}.json", document)


def train(trainer: Any) -> dict[str, Any]:
    """Run a trainer; the wall-clock seconds of each episode and the mean processor seconds, which wait for nobody."""
    started = time.process_time()
    result = trainer.train(quiet=True)
    processor = (time.process_time() - started) / result.episodes
    return {"wall": [row["seconds"] for row in trainer.folder.rows("timing.jsonl")], "processor": processor}


def peak_memory() -> int:
    """The highest resident memory of this process so far, in bytes, by the operating system's account."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(folder: Path, choices: list[str]) -> str:
    """The finished cells as a table: mean and range over the seeds, cost in processor seconds of one thread."""
    head = ["layers", "which", "seeds", *METRICS, "s / episode", "s / episode, lower_blocks kept", "peak MB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for choice in choices:
        cells = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{choice}_seed*.json"))]
        if cells:
            lines.append("| " + " | ".join(_row(choice, cells)) + " |")
    majority = [json.loads(path.read_text())["mean"]["majority"] for path in folder.glob("*_seed*.json")]
    return "\n".join(lines) + (f"\n\nbest constant answer: accuracy {mean(majority):.3f}" if majority else "")


def _row(choice: str, cells: list[dict[str, Any]]) -> list[str]:
    def spread(values: list[float]) -> str:
        low, high = min(values), max(values)
        return f"{mean(values):.3f}" + (f" ({low:.3f}-{high:.3f})" if len(values) > 1 else "")

    peak = max(cell["peak_memory_bytes"]["training"] for cell in cells)
    return [
        choice,
        _spans(cells[0]["layers"]),
        str(len(cells)),
        *(spread([cell["mean"][metric] for cell in cells]) for metric in METRICS),
        *(f"{mean(cell['seconds_per_episode'][kind]['processor'] for cell in cells):.2f}" for kind in ("cold", "warm")),
        f"{peak / 1e6:.0f}",
    ]


def _spans(layers: list[int]) -> str:
    """``[0, 1, 2, 7]`` as ``0-2, 7``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
