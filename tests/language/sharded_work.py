"""What test_sharding.py runs in one process and in several: passes, gradients, whole adaptations and training steps.

As a program it is one of two processes that share a base; torchrun starts it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.config import LearningConfig, ModelConfig
from abmll.language.base import Base, load_base
from abmll.language.scorer import Pass, nll
from abmll.language.targets import decoder_blocks
from abmll.posterior import Noise
from tests.conftest import SHORT, toy_task

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointed": {"checkpointing": True},
    "adapters in all blocks": {"layers": None},
    "conv1d": {"family": "gpt2"},
}


def facts(base: Base, folder: Path, checkpointing: bool = False, layers: str | None = "1") -> dict[str, Tensor]:
    """What a model on ``base`` computes, its lowest decoder block without an adapter unless ``layers`` is None."""
    model = AbmllModel.from_base(base, prompt=SHORT, r=2, layers_to_transform=layers, target_modules=["all-linear"])
    task, settings = toy_task("letters"), {"inner_steps": 2, "per_device_train_batch_size": 2}
    if checkpointing:
        model.gradient_checkpointing_enable()
    scorer, examples = model.scorer, list(task.examples)
    encoded = scorer.encode(examples[:6], task.name)
    found = {"bare": scorer.scores(scorer.batch(encoded), None).options}
    phi, generator = scorer.new_adapter(3).requires_grad_(), torch.Generator().manual_seed(4)
    batch = scorer.batch(encoded)
    scores = scorer.scores(batch, phi, Pass(Noise("local", generator=generator, mask=batch.mask)))
    nll(scores, batch.answers, "options").backward()
    found |= {f"gradient {name}": own.grad for name, own in phi.named_tensors() if own.grad is not None}
    run = {"output_dir": str(folder), "max_steps": 2, "calibration_tasks": 0, **settings}
    MetaTrainer(model, [task, toy_task("others", 1)], TrainConfig(**run)).train(overwrite=True)
    found |= {f"theta {name}": tensor for name, tensor in model.theta.state_dict().items()}
    return found | learned(model, seed=0, steps=3, questions=10)


def learned(model: AbmllModel, seed: int, steps: int, questions: int) -> dict[str, Tensor]:
    """A task as it is learned by steps and by a head, and what each of them answers."""
    examples = list(toy_task("letters", 2).examples)
    by_steps = model.adapt(examples[:20], steps=steps, seed=seed, how="full")
    by_head = model.adapt(examples[:20], seed=seed, how="head")
    asked = examples[20 : 20 + questions]
    found = {"probs": by_steps.predict(asked).probs, "head": by_head.predict(asked).probs}
    return {name: torch.as_tensor(probs) for name, probs in found.items()}


def uneven(base: Base, rank: int) -> dict[str, Tensor]:
    """Other work in every process: more steps, other examples in the caches, more questions, and for one none."""
    model = AbmllModel.from_base(base, prompt=SHORT, r=2, layers_to_transform="1", target_modules=["all-linear"])
    model.learning = LearningConfig()
    found = learned(model, seed=rank, steps=1 + 3 * rank, questions=4 + 20 * rank)
    base.settle()
    return found | (learned(model, seed=5, steps=2, questions=3) if rank == 1 else {})


def main() -> None:
    """Write what this process computes, and how much of the base it keeps."""
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()

    def load(family: str = "llama") -> Base:
        place = ModelConfig(str(root / family), device="cpu", dtype="fp32", shard_base=True)
        return load_base(place, print, quiet=True)

    for number, case in enumerate(CASES.values()):
        base = load(case.pop("family", "llama"))
        parts: list[Any] = [one for block in decoder_blocks(base.model) for one in block.parameters()]
        found = facts(base, out / f"run {number} {rank}", **case)
        found["kept"] = torch.tensor([sum(one.to_local().numel() for one in parts), sum(one.numel() for one in parts)])
        save_file({name: one.contiguous() for name, one in found.items()}, out / f"{number} {rank}.safetensors")
    base = load()
    save_file(uneven(base, rank), out / f"uneven {rank}.safetensors", {"fingerprint": base.fingerprint})
    base.settle()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
