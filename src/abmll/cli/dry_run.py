"""``abmll compare --dry-run``: what the comparison would cost, from the names of its tasks and the model's shape."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from abmll.cli.console import print_facts, print_json, print_table
from abmll.common.config import EstimateConfig

if TYPE_CHECKING:
    from abmll.experiments.method_spec import ComparisonConfig

GPUS = ("a100", "h100")


def show_costs(suite: str, config: "ComparisonConfig", quiet: bool, json: bool) -> None:
    """Print operations, hours and memory of every row. Raises as ``read_suite``, ``plan`` and ``forecast``."""
    from abmll.experiments.costs import find_gpu
    from abmll.experiments.forecast import forecast, stand_in
    from abmll.experiments.planning import plan
    from abmll.experiments.task_shapes import mean_tokens
    from abmll.tasks.definition import read_suite

    file = read_suite(suite)
    cells = plan(stand_in(file), config)
    costs = forecast(cells, file)
    dtype = str(config.shared["dtype"])
    speeds = {name: find_gpu(name).peak[dtype] * EstimateConfig.efficiency for name in GPUS}
    total = sum(cost.flops for cost in costs)
    hours = {name: total / speed / 3600 for name, speed in speeds.items()}
    if json:
        print_json({"suite": file.name, "hours": hours, "rows": [asdict(cost) for cost in costs]})
        return
    rows = [
        [
            cost.label,
            *(str(number) for number in (cost.cells, cost.runs)),
            *(f"{part / 1e15:,.1f}" for part in (cost.training_flops, cost.unseen_flops)),
            *(f"{cost.flops / speed / 3600:,.1f}" for speed in speeds.values()),
            f"{cost.memory / 1e9:,.1f}" if cost.memory else "\N{EN DASH}",
        ]
        for cost in costs
    ]
    if not quiet:
        longest = config.shared["max_length"]
        lengths = [str(mean_tokens(names, longest)) for names in (file.train, file.evaluation)]
        print_facts(
            {
                "suite": f"{file.name}, {len(file.train)} training and {len(file.evaluation)} unseen tasks",
                "model": str(config.shared["model"]),
                "examples": f"{lengths[0]} tokens on average to learn from, {lengths[1]} unseen",
                "speed": f"{dtype} peak of the GPU at an efficiency of {EstimateConfig.efficiency:g}",
            }
        )
        print()
    print_table(["", "cells", "runs", "PFLOP training", "unseen", "A100, h", "H100, h", "step, GB"], rows)
    print(f"\nall {len(cells)} cells: {hours['a100']:,.0f} hours on an A100, {hours['h100']:,.0f} on an H100")
