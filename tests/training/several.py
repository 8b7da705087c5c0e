"""A run in each process that torchrun starts: its arguments are a JSON list of settings, one trainer after the other.

``die`` is an episode in whose middle the last process kills itself, ``break_at`` one at which it meets a nan.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.config import QUANTIZATIONS, PromptConfig
from abmll.common.errors import AbmllError
from abmll.common.processes import Processes, together
from abmll.tasks import load_tasks

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
STEPS = {"max_steps": 8, "inner_steps": 2, "per_device_train_batch_size": 2, "meta_batch": 4, "save_steps": 4}
CALIBRATION = {"calibration_tasks": 3, "calibration_examples": 4}


def train(base: str, tasks: str, settings: dict[str, Any], processes: Processes) -> None:
    settings = dict(settings)
    resume, die, broken = settings.pop("resume", False), settings.pop("die", None), settings.pop("break_at", None)
    adapter = {"r": 2, "layers_to_transform": "1", "space": settings.pop("space", "weight")}
    how = {name: settings.pop(name) for name in QUANTIZATIONS if name in settings}
    model = AbmllModel.from_base(base, prompt=SHORT, dtype="fp32", device="cpu", **how, **adapter)
    chosen, held_out = load_tasks(Path(tasks)), []
    if "eval_steps" in settings:
        chosen, held_out = chosen[:-2], chosen[-2:]
    config = TrainConfig(**{**STEPS, **CALIBRATION, "lr_scheduler_type": "constant", **settings})
    trainer = MetaTrainer(model, chosen, config, eval_tasks=held_out, processes=processes)
    step, first = trainer.rule.inner_step, trainer.episodes.generator(die or 0, 0).initial_seed()

    def inner_step(state: Any, batch: Any, generator: torch.Generator, rate: float) -> Any:
        if die is not None and generator.initial_seed() == first:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = step(state, batch, generator, rate)
        if broken is not None and generator.initial_seed() == trainer.episodes.generator(broken, 0).initial_seed():
            loss = loss._replace(nll=loss.nll * torch.nan)
        return loss

    vars(trainer.rule)["inner_step"] = inner_step
    trainer.train(resume=resume)


def main() -> int:
    torch.set_num_threads(1)
    base, tasks, runs = sys.argv[1:]
    with together() as processes:
        for settings in json.loads(runs):
            try:
                train(base, tasks, settings, processes)
            except AbmllError as error:
                print(f"{type(error).__name__} {processes.rank}: {error}", file=sys.stderr, flush=True)
                return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
