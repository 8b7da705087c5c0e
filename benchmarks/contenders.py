"""Everything that trains, behind one interface: a step and an episode on the n-th batch of the same workload.

A peer is one function here, and one line in ``PEERS`` where every cell on training is to have it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from abmll.common.config import AdapterConfig, ContinuedConfig, TrainConfig
from abmll.language.activation_cache import ActivationCache
from abmll.language.encoding import Encoded
from abmll.methods import Loss, make_rule
from abmll.model.meta_learner import AbmllModel
from abmll.training.trainer import MetaTrainer
from benchmarks.bench import Bench, Dtype
from benchmarks.plain_lora import PlainLora
from benchmarks.published import Published

QV = ("q_proj", "v_proj")
ALL = ("all-linear",)
NUMBERS = 12  # episodes whose batches are at hand: warm-up and repetitions need no more
LABELS = {QV: "q+v", ALL: "all-linear"}


@dataclass(frozen=True)
class Setting:
    """The same for all contenders of a comparison."""

    modules: tuple[str, ...] = QV
    layers: str | None = None
    r: int = 8
    alpha: float = 16.0
    batch_size: int = 4
    inner_steps: int = 5
    dtype: Dtype | None = None

    def adapter(self, **changes: Any) -> AdapterConfig:
        """The settings in ABMLL's terms."""
        return replace(
            AdapterConfig(
                r=self.r, lora_alpha=self.alpha, target_modules=self.modules, layers_to_transform=self.layers
            ),
            **changes,
        )

    def train(self, **changes: Any) -> TrainConfig:
        """ABMLL's training settings: its defaults but for the batches."""
        sizes: dict[str, Any] = {"per_device_train_batch_size": self.batch_size, "inner_steps": self.inner_steps}
        return TrainConfig(output_dir="unused", **(sizes | changes))

    def label(self, bench: Bench) -> str:
        """For the rows' names: adapted modules and precision."""
        return f"{LABELS[self.modules]}, {self.dtype or bench.dtype}"


class Contender(Protocol):
    """One that trains on the workload."""

    def step(self, number: int) -> object:
        """One gradient step on the first batch of episode ``number``."""
        ...

    def episode(self, number: int) -> object:
        """The whole episode ``number``."""
        ...


class Ours:
    """ABMLL (or a rule of its family) as ``abmll train`` runs it: the trainer's own rule, episodes and generators."""

    def __init__(self, bench: Bench, setting: Setting, *, cache: ActivationCache | None = None, **changes: Any) -> None:
        adapter = {key: changes.pop(key) for key in ("space", "sigma_rank") if key in changes}
        self.model = AbmllModel(bench.base(setting.dtype), setting.adapter(**adapter), bench.workload.prompt)
        self.trainer = MetaTrainer(self.model, bench.workload.train, setting.train(**changes), cache)
        self.rule, self.episodes = self.trainer.rule, self.trainer.episodes
        self.state = self.rule.init(self.model.theta)

    def step(self, number: int) -> Loss:
        batch = next(self.episodes.batches(number))
        return self.rule.inner_step(self.state, batch, self.episodes.generator(number, 0), 1.0)

    def episode(self, number: int) -> object:
        return self.trainer.outer_step.take(self.state, number)


class Peer:
    """A peer on the batches that ``ours`` draws, in tokens made beforehand (ABMLL makes its own in the step)."""

    def __init__(self, ours: Ours, step: Callable[[Sequence[Encoded]], object], episode: Callable[..., object]) -> None:
        self.batches = [batches_of(ours, number) for number in range(NUMBERS)]
        self._step = step
        self._episode = episode

    def step(self, number: int) -> object:
        return self._step(self.batches[number][0])

    def episode(self, number: int) -> object:
        return self.learn(self.batches[number])

    def learn(self, batches: Sequence[Sequence[Encoded]]) -> object:
        """An episode of other batches."""
        return self._episode(batches)


def batches_of(ours: Ours, number: int) -> list[list[Encoded]]:
    """The examples in tokens of each batch of an episode below ``NUMBERS``."""
    return list(ours.episodes.encoded(number))


def _first_step(peer: Peer) -> object:
    return peer.step(0)


def plain_lora(bench: Bench, setting: Setting, ours: Ours) -> Peer:
    """B1: PEFT and the Hugging Face Trainer's step."""

    def make(attention: str) -> Peer:
        base = bench.base(setting.dtype)
        base.model.set_attn_implementation(attention)
        plain = PlainLora(
            base.model, base.tokenizer, modules=setting.modules, r=setting.r, alpha=setting.alpha, layers=setting.layers
        )
        return Peer(ours, plain.step, plain.episode)

    return bench.faster_attention(make, _first_step)


def published(bench: Bench, setting: Setting, ours: Ours) -> Peer:
    """B2: the published algorithm."""

    def make(attention: str) -> Peer:
        model = bench.base(setting.dtype).model
        model.set_attn_implementation(attention)
        torch.manual_seed(0)
        num_tasks = len(bench.workload.train)
        one = Published(model, modules=setting.modules, layers=setting.layers, num_tasks=num_tasks)
        return Peer(ours, one.inner_step, one.episode)

    return bench.faster_attention(make, _first_step)


def blob(bench: Bench, setting: Setting, ours: Ours) -> Peer:
    """B3: our own BLoB, which is fitted to one task; its steps on the batches of an episode."""
    model = AbmllModel(bench.base(setting.dtype), setting.adapter(space="factor-a"), bench.workload.prompt)
    rule = make_rule(model.scorer, ContinuedConfig(method="blob"), len(bench.workload.train))
    state, generator = rule.init(model.theta), torch.Generator(model.scorer.device).manual_seed(0)

    def step(examples: Sequence[Encoded]) -> Loss:
        return rule.inner_step(state, model.scorer.batch(examples), generator, 1.0)

    return Peer(ours, step, lambda batches: [step(examples) for examples in batches])


def maml(bench: Bench, setting: Setting) -> Ours:
    """B4: our own MAML, second order, on episodes of its own: a query batch ends each of them."""
    return Ours(bench, setting, method="maml")


PEERS: dict[str, Callable[[Bench, Setting, Ours], Contender]] = {
    "PEFT LoRA + Trainer": plain_lora,
    "published algorithm": published,
}
BLOB, MAML = "BLoB", "MAML, second order"
