"""Cells on training: one inner step and one episode beside the peers', and what the posterior adds to a step."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from abmll.common.config import LearningConfig
from abmll.language.activation_cache import ActivationCache
from abmll.posterior import Prior
from benchmarks.bench import Bench
from benchmarks.contenders import ALL, BLOB, MAML, PEERS, QV, Contender, Ours, Setting, blob, maml
from benchmarks.pairs import Rounds
from benchmarks.rows import Row, timed

PLAIN, PUBLISHED = tuple(PEERS)[:2]
OFF_TARGET = {QV: 1.08, ALL: 1.12}
PLAIN_TARGETS = {"weight": {QV: 0.55, ALL: 0.60}, "output": {QV: 0.70, ALL: 0.85}}
SPACES = ("weight", "output")


def steps(bench: Bench, setting: Setting) -> list[Row]:
    """One inner step of everything that trains, on the same batches."""
    contenders = _spaces(bench, setting) | _peers(bench, setting)
    ours = contenders["weight"]
    assert isinstance(ours, Ours)
    contenders["off"] = Ours(bench, setting, method="structured-lora")
    contenders[BLOB] = blob(bench, setting, ours)
    if setting.modules == ALL:
        contenders["rank 4"] = Ours(bench, setting, sigma_rank=4)
    rounds = bench.rounds(_steps(contenders) | {"terms": lambda number: divergences_and_prior(ours)})
    steps_of_episode = [setting.inner_steps * seconds for seconds in rounds.seconds["weight"]]
    rounds = Rounds({**rounds.seconds, "K steps": steps_of_episode})
    label = setting.label(bench)
    rows = []
    for space in SPACES:
        target = PLAIN_TARGETS[space][setting.modules]
        rows.append(timed(f"inner step, {space} space / {PLAIN} ({label})", rounds, space, PLAIN, target))
        rows.append(timed(f"inner step, {space} space / {PUBLISHED} ({label})", rounds, space, PUBLISHED, 0.40))
        target = OFF_TARGET[setting.modules] if space == "weight" else None
        rows.append(timed(f"inner step, {space} space / posterior off ({label})", rounds, space, "off", target))
    rows.append(timed(f"posterior off / {PLAIN} ({label})", rounds, "off", PLAIN))
    rows.append(timed(f"inner step, weight space / {BLOB} ({label})", rounds, "weight", BLOB))
    name = f"KL and prior of an episode / its K = {setting.inner_steps} inner steps, weight space ({label})"
    rows.append(timed(name, rounds, "terms", "K steps", 0.03))
    if setting.modules == ALL:
        rows.append(timed(f"inner step, sigma of rank 4 / rank 1 ({label})", rounds, "rank 4", "weight", 1.5))
    return rows


def episodes(bench: Bench, setting: Setting) -> list[Row]:
    """One whole episode: K inner steps and the outer one."""
    contenders = _spaces(bench, setting) | _peers(bench, setting)
    contenders[MAML] = maml(bench, setting)
    rounds = bench.rounds({name: contender.episode for name, contender in contenders.items()})
    label = f"K = {setting.inner_steps}, batches of {setting.batch_size}, {setting.label(bench)}"
    rows = []
    for space in SPACES:
        rows.append(timed(f"episode, {space} space / {PLAIN}, K steps ({label})", rounds, space, PLAIN))
        rows.append(timed(f"episode, {space} space / {PUBLISHED} ({label})", rounds, space, PUBLISHED, 0.40))
    rows.append(timed(f"episode, weight space / {MAML} ({label})", rounds, "weight", MAML))
    return rows


def other_precision(bench: Bench, setting: Setting) -> list[Row]:
    """One inner step beside plain LoRA in the precision that is not this machine's own, on a small batch."""
    ours = Ours(bench, setting)
    contenders = {"weight": ours, PLAIN: PEERS[PLAIN](bench, setting, ours)}
    rounds = bench.rounds(_steps(contenders))
    name = f"inner step, weight space / {PLAIN} ({setting.label(bench)}, batches of {setting.batch_size})"
    return [timed(name, rounds, "weight", PLAIN, 0.70)]


def cached_lower(bench: Bench, setting: Setting, top: str) -> list[Row]:
    """Adapters in the top layers only, the activations below them kept from an earlier pass / full depth."""
    full = Ours(bench, setting)
    upper = Setting(setting.modules, top, setting.r, setting.alpha, setting.batch_size, setting.inner_steps)
    cached = Ours(bench, upper, cache=ActivationCache(2_000_000_000))
    fresh = Ours(bench, upper, activation_cache_gb=0)
    for number in range(1 + bench.repetitions):
        next(cached.episodes.batches(number))  # fills the cache
    rounds = bench.rounds(_steps({"full": full, "cached": cached, "fresh": fresh}))
    label = setting.label(bench)
    return [
        timed(
            f"inner step, {top} layers, cached activations / full depth ({label})",
            rounds,
            "cached",
            "full",
            0.35,
        ),
        timed(f"inner step, {top} layers, no cache / full depth ({label})", rounds, "fresh", "full"),
    ]


def divergences_and_prior(ours: Ours) -> None:
    """All divergences of an episode, and the prior, forward and backward: K for phi's steps, then theta's own."""
    space, config = ours.model.scorer.space, ours.trainer.config
    phi, theta = ours.state.phi.stacks, ours.state.theta.stacks
    learned = [[tensor for factors in stacks.values() for tensor in factors] for stacks in (phi, theta)]

    def divergence() -> Tensor:
        return torch.stack([space.kl(phi[shape], theta[shape]) for shape in theta]).sum()

    for _ in range(config.inner_steps):
        torch.autograd.grad(divergence(), learned[0])
    log_prior = torch.stack([space.negative_log_prior(factors, _prior(config)) for factors in theta.values()]).sum()
    torch.autograd.grad(divergence() + log_prior, learned[1])


def _prior(config: LearningConfig) -> Prior:
    return Prior(config.prior_std, config.gamma_shape, config.gamma_rate)


def _spaces(bench: Bench, setting: Setting) -> dict[str, Any]:
    return {space: Ours(bench, setting, space=space) for space in SPACES}


def _peers(bench: Bench, setting: Setting) -> dict[str, Contender]:
    ours = Ours(bench, setting)
    return {name: make(bench, setting, ours) for name, make in PEERS.items()}


def _steps(contenders: Mapping[str, Contender]) -> dict[str, Callable[[int], object]]:
    return {name: contender.step for name, contender in contenders.items()}
