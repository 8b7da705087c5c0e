"""The list of cells: each a name and a function that measures a few rows. Memory first, while the process is small."""

from collections.abc import Callable

from benchmarks import (
    data,
    floors,
    growth,
    kept_heads,
    members,
    mixed,
    operations,
    peaks,
    predicting,
    scaling,
    serving,
    speed,
    starting,
    torchrun,
    training,
)
from benchmarks.bench import Bench
from benchmarks.contenders import ALL, QV, Setting
from benchmarks.rows import Row

Cell = Callable[[Bench], list[Row]]

THIRD = "top-third"
TOP = "top-12"  # 40 % of SmolLM2-135M's 30 layers
# 64 samples of all layers take minutes a round, and are four times 16.
FULL_WAYS = [way for way in predicting.WAYS if way != "64 samples"]
FULL_TARGETS = {"16 samples": 8.0, predicting.LINEARIZED: 6.0}
TOP_TARGETS = {"16 samples": 4.0, predicting.LINEARIZED: 6.0}

CELLS: dict[str, Cell] = {
    "ceilings": floors.ceilings,
    "memory-qv": lambda bench: peaks.training(bench, Setting()),
    "memory-all": lambda bench: peaks.training(bench, Setting(ALL)),
    "memory-tasks": lambda bench: peaks.tasks(bench, Setting()),
    "memory-posteriors": lambda bench: peaks.posteriors(bench, Setting()),
    "steps-qv": lambda bench: training.steps(bench, Setting()),
    "steps-all": lambda bench: training.steps(bench, Setting(ALL)),
    "episodes-qv": lambda bench: training.episodes(bench, Setting(batch_size=2, inner_steps=2)),
    "lower-blocks": lambda bench: training.cached_lower(bench, Setting(), TOP),
    "floor-qv": lambda bench: floors.floor(bench, Setting()),
    "floor-all": lambda bench: floors.floor(bench, Setting(ALL)),
    "predict-full": lambda bench: predicting.prediction(bench, Setting(), FULL_WAYS, FULL_TARGETS),
    "predict-top": lambda bench: predicting.prediction(bench, Setting(layers=TOP), [*predicting.WAYS], TOP_TARGETS),
    "predict-error": lambda bench: predicting.prediction_error(bench, Setting(layers=TOP)),
    "adapt-10": lambda bench: predicting.adaptation(bench, Setting(), 10, steps=4, batch_size=2),
    "adapt-50": lambda bench: predicting.adaptation(bench, Setting(), 50, steps=4, batch_size=5),
    "head": lambda bench: predicting.head(bench, 20),
    "growth-rank": lambda bench: scaling.rank(bench, Setting(ALL, batch_size=1)),
    "growth-length": lambda bench: scaling.length(bench, Setting()),
    "growth-layers": lambda bench: scaling.layers(bench, Setting()),
    "padding": lambda bench: data.padding(bench, Setting()),
    "commands": starting.commands,
    "first-step": starting.first_step,
}

# Measured only when named: minutes a step where the processor lacks the other precision, hardly another answer, no
# language model in it, a count in place of a time, or what only a server does.
EXTRA: dict[str, Cell] = {
    "steps-qv-other": lambda bench: training.other_precision(bench, _small(bench, QV)),
    "steps-all-other": lambda bench: training.other_precision(bench, _small(bench, ALL)),
    "episodes-all": lambda bench: training.episodes(bench, Setting(ALL, batch_size=2)),
    "members": lambda bench: members.members(members.small(bench)),
    "operations": operations.operations,
    "samples": lambda bench: members.samples(members.small(bench)),
    "head-theta": lambda bench: predicting.head(bench, 20, TOP),
    "heads": predicting.heads,
    "kept-heads": kept_heads.kept_heads,
    "mixed-qv": lambda bench: mixed.adapters(bench, Setting(layers=THIRD), instruction=False),
    "mixed-qv-instruction": lambda bench: mixed.adapters(bench, Setting(layers=THIRD), instruction=True),
    "mixed-all": lambda bench: mixed.adapters(bench, Setting(ALL, layers=THIRD), instruction=False),
    "mixed-heads": mixed.heads,
    "server-one": serving.one_client,
    "server-many": serving.many_clients,
    "server-tasks": serving.many_tasks,
    "growth-options": lambda bench: scaling.options(bench, Setting()),
    "growth-members": lambda bench: scaling.members(bench, Setting()),
    "growth-files": growth.files,
    "growth-examples": growth.examples,
    "growth-parquet": growth.parquet,
    "growth-run-tasks": growth.run_tasks,
    "growth-served": growth.served,
    "growth-head-examples": growth.head_examples,
    "growth-head-options": growth.head_options,
    "growth-processes": torchrun.processes,
}

# Questions to a GPU.
GPU: dict[str, Cell] = {
    "speed-qv": lambda bench: speed.steps(bench, Setting()),
    "speed-all": lambda bench: speed.steps(bench, Setting(ALL)),
    "speed-8b": speed.large_steps,
    "speed-members": speed.members,
}


def _small(bench: Bench, modules: tuple[str, ...]) -> Setting:
    """Batches of one example: the other precision may be many times slower than this machine's own."""
    return Setting(modules, batch_size=1, inner_steps=1, dtype=bench.other_dtype)
