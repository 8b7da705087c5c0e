"""Cell on operations: how many a training step hands to the device, beside plain LoRA's. Needs no GPU, and no time.

Beside a small model a GPU waits for its host, which queues one operation after the other: then a step takes as long as
there are operations in it, whatever their size.

Counted is every operation that torch dispatches below autograd, of the whole step: making the batch, the forward pass,
the backward pass, clipping, AdamW. A *launch* is one that computes or copies. A view, a detached tensor and memory that
is only allocated cost the host a little and the device nothing: they are counted apart. An operation on a list of
tensors, such as the fused AdamW, is one. All is as on a GPU: bf16, transformers' fused attention, plain LoRA's
gradients clipped as a list, and normal numbers that a CPU draws one part after the other into one memory drawn at once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from abmll.language.base import Base
from benchmarks.bench import Bench, Dtype
from benchmarks.contenders import ALL, QV, Ours, Setting, batches_of
from benchmarks.machine import ROOT
from benchmarks.plain_lora import PlainLora
from benchmarks.rows import Row
from benchmarks.small import small_model

LAYERS = 30  # as many as SmolLM2-135M has; how wide they are does not matter
FOLDER = ROOT / "runs" / "benchmarks" / "operations"
TARGETS = {"weight": 1.05, "output": 1.25}
PLAIN, OFF = "PEFT LoRA + Trainer", "posterior off"
ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh")
WARM = 1  # steps before the one that is counted: AdamW's moments exist, and nothing is done for the first time


@dataclass
class Operations(TorchDispatchMode):
    """Inside, counts what is dispatched, by name: ``launches``, and ``views`` that launch nothing."""

    launches: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        again, self.last = func._schema.name == self.last == "aten::normal_", func._schema.name
        if not again and func.namespace != "profiler":  # marks for a profiler
            (self.views if launches_nothing(func) else self.launches)[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def launches_nothing(func: Any) -> bool:
    """Whether an operation gives a view of what there is, or memory as it is."""
    returned = [value.alias_info for value in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in returned)
    return is_view or func._schema.name.removeprefix("aten::") in ALLOCATIONS


class LikeGpu(Bench):
    """Models as ``load_base`` gives them on a GPU."""

    @property
    def dtype(self) -> Dtype:
        return "bf16"

    def base(self, dtype: Dtype | None = None) -> Base:
        base = super().base(dtype)
        model: Any = base.model
        model.set_attn_implementation("sdpa")
        return base


class ListClipped(PlainLora):
    """Plain LoRA whose gradients are clipped as on a GPU, as a list; torch takes one after the other on a CPU."""

    def clip(self) -> None:
        gradients = [one.grad for one in self.prepared.parameters() if one.grad is not None]
        whole = torch.linalg.vector_norm(torch.stack(torch.ops.aten._foreach_norm(gradients, 2.0)))
        torch.ops.aten._foreach_mul_(gradients, (self.trainer.args.max_grad_norm / (whole + 1e-6)).clamp(max=1.0))


def operations(bench: Bench) -> list[Row]:
    """The rows of q and v and of all linear layers."""
    like_gpu = LikeGpu(small_model(FOLDER, num_hidden_layers=LAYERS), bench.device, data_dir=bench.data_dir)
    return [row for modules in (QV, ALL) for row in rows(like_gpu, Setting(modules))]


def rows(bench: Bench, setting: Setting) -> list[Row]:
    """Each contender's operations as multiples of plain LoRA's: those that launch, and all."""
    counted = {name: count(step) for name, step in steps(bench, setting).items()}
    plain, made = counted[PLAIN], []
    for name, one in counted.items():
        if name == PLAIN:
            continue
        label = f"{name} / {PLAIN} ({setting.label(bench)})"
        all_of_it = one.launches.total() + one.views.total(), plain.launches.total() + plain.views.total()
        target = TARGETS.get(name.removesuffix(" space"))
        made.append(_row(f"operations of a step, {label}", one.launches.total(), plain.launches.total(), target))
        made.append(_row(f"operations of a step with views, {label}", *all_of_it))
    return made


def steps(bench: Bench, setting: Setting) -> dict[str, Callable[[int], object]]:
    """A step of each contender, on the same batches."""
    ours = {f"{space} space": Ours(bench, setting, space=space) for space in TARGETS}
    ours[OFF] = Ours(bench, setting, method="structured-lora")
    batches = [batches_of(ours[OFF], number)[0] for number in range(WARM + 1)]
    base = bench.base()
    plain = ListClipped(base.model, base.tokenizer, modules=setting.modules, r=setting.r, alpha=setting.alpha)
    made: Mapping[str, Callable[[int], object]] = {name: one.step for name, one in ours.items()}
    return {**made, PLAIN: lambda number: plain.step(batches[number])}


def count(step: Callable[[int], object]) -> Operations:
    """The operations of a step that follows ``WARM`` others."""
    for number in range(WARM):
        step(number)
    with Operations() as counted:
        step(WARM)
    return counted


def _row(name: str, ours: int, plain: int, target: float | None = None) -> Row:
    ratio = ours / plain
    return Row(name, ratio, ratio, ratio, "x", target, ours, plain, "operations")
