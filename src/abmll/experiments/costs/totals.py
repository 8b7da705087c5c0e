"""The four methods' costs, put together of what ``saved`` and ``flops`` count."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from abmll.common.config import EstimateConfig
from abmll.experiments.costs import flops, saved
from abmll.experiments.costs.gpus import Gpu
from abmll.experiments.costs.saved import FP32, AdapterBytes, width
from abmll.experiments.costs.shapes import Linear, Shape


@dataclass(frozen=True)
class Memory:
    """Bytes of a gradient step where it needs most: all activations are kept and the logits' gradient is at hand.

    With gradient checkpointing ``logits`` is the more of those and of one block that is computed anew: by then the
    logits are gone.
    """

    weights: int
    adapters: int
    optimizer: int
    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.adapters + self.optimizer + self.gradients + self.activations + self.logits


@dataclass(frozen=True)
class Estimate:
    """What a method costs; ``checkpointed`` is None for a method that cannot compute its activations anew."""

    method: str
    adapter_parameters: int
    memory: Memory
    checkpointed: Memory | None
    step_flops: int
    checkpointed_step_flops: int | None
    episode_flops: int
    largest_batch: int  # examples; 0 where not even one fits
    checkpointed_largest_batch: int | None
    step_seconds: float
    episode_seconds: float


@dataclass(frozen=True)
class Cost:
    """A method's bytes and operations before they meet a device."""

    method: str
    adapter_parameters: int
    memory: Memory
    checkpointed: Memory | None
    step_flops: int
    recomputed_flops: int
    episode_flops: int


def abmll(shape: Shape, config: EstimateConfig) -> Cost:
    """ABMLL as ``abmll train`` runs it: weight space, sigma of rank 1, low-rank noise, scored positions only.

    theta and phi with a mean, r (d_out + d_in) numbers, and log sigma's factors, d_out + d_in, all in fp32 and each
    with AdamW's two moments; an episode is K steps, and a divergence for theta's step.
    """
    one = _mean_parameters(shape.adapted, config) + sum(linear.d_out + linear.d_in for linear in shape.adapted)
    memory = Memory(
        weights=_weights(shape, config),
        adapters=2 * one * FP32,
        optimizer=4 * one * FP32,
        gradients=one * FP32,
        activations=saved.scored_decoder_bytes(shape, config, saved.abmll_bytes)
        + saved.factor_bytes(shape.adapted, config),
        logits=saved.scored_logits_bytes(shape, config),
    )
    anew = _anew(memory, shape, config, saved.abmll_bytes, kept=saved.factor_bytes(shape.adapted, config))
    step = _step(shape, config, _scored(config)) + flops.abmll_flops(shape, config)
    episode = config.inner_steps * step + flops.divergence_flops(shape.adapted, config)
    return Cost("ABMLL", 2 * one, memory, anew, step, flops.recomputed_flops(shape, config), episode)


def lora(shape: Shape, config: EstimateConfig) -> Cost:
    """LoRA with PEFT and the Trainer: one mean in fp32, AdamW, logits of every token; K steps stand for an episode."""
    one = _mean_parameters(shape.adapted, config)
    memory = Memory(
        weights=_weights(shape, config),
        adapters=one * FP32,
        optimizer=2 * one * FP32,
        gradients=one * FP32,
        activations=saved.decoder_bytes(shape, config, saved.lora_bytes),
        logits=saved.full_logits_bytes(shape, config),
    )
    anew = _anew(memory, shape, config, saved.lora_bytes)
    step = _step(shape, config, saved.tokens(config)) + flops.lora_flops(shape, config)
    episode = config.inner_steps * step
    return Cost("Plain LoRA", one, memory, anew, step, flops.recomputed_flops(shape, config), episode)


def published(shape: Shape, config: EstimateConfig) -> Cost:
    """The published algorithm: four branches a layer (mean and log variance of phi and of theta) in the model's
    dtype, moments too, two of the four learning at a time; logits of every token; an episode is K + 1 whole steps."""
    four = 4 * _mean_parameters(shape.adapted, config)
    memory = Memory(
        weights=_weights(shape, config),
        adapters=four * width(config),
        optimizer=2 * four * width(config),
        gradients=four // 2 * width(config),
        activations=saved.decoder_bytes(shape, config, saved.published_bytes),
        logits=saved.full_logits_bytes(shape, config),
    )
    anew = _anew(memory, shape, config, saved.published_bytes)
    step = _step(shape, config, saved.tokens(config)) + 2 * (
        flops.lora_flops(shape, config) + flops.constant_lora_flops(shape, config)
    )
    episode = (config.inner_steps + 1) * step
    return Cost("Published", four, memory, anew, step, flops.recomputed_flops(shape, config), episode)


def maml(shape: Shape, config: EstimateConfig) -> Cost:
    """Second-order MAML: one mean in fp32, of which every inner step leaves a copy; scored positions only.

    All K inner steps keep their forward and backward graphs until the outer step's backward pass. Attention is eager:
    its kernels have no second derivative. An inner step costs a forward and a backward pass, and once more both when
    the outer gradient runs back through it, its backward pass as a forward and a backward one.
    """
    config = replace(config, attention="eager")
    one, steps = _mean_parameters(shape.adapted, config), config.inner_steps
    forward = saved.decoder_bytes(shape, config, saved.maml_bytes)
    kept = forward + saved.graph_bytes(shape, config) + saved.scored_bytes(shape, config)
    memory = Memory(
        weights=_weights(shape, config),
        adapters=(1 + steps) * one * FP32,
        optimizer=2 * one * FP32,
        gradients=(1 + steps) * one * FP32,
        activations=steps * kept + forward,
        logits=saved.scored_logits_bytes(shape, config),
    )
    step = _step(shape, config, _scored(config)) + flops.lora_flops(shape, config)
    episode = steps * (step + flops.second_order_flops(shape, config, _scored(config))) + step
    return Cost("MAML", one, memory, None, step, 0, episode)


METHODS = (abmll, lora, published, maml)


def estimate_all(shape: Shape, config: EstimateConfig, gpu: Gpu, operations_a_second: float) -> list[Estimate]:
    """Every method's cost on a device that reaches so many operations a second."""
    estimates = []
    for method in METHODS:
        cost = method(shape, config)
        anew = cost.step_flops + cost.recomputed_flops
        estimates.append(
            Estimate(
                method=cost.method,
                adapter_parameters=cost.adapter_parameters,
                memory=cost.memory,
                checkpointed=cost.checkpointed,
                step_flops=cost.step_flops,
                checkpointed_step_flops=anew if cost.checkpointed else None,
                episode_flops=cost.episode_flops,
                largest_batch=_largest_batch(method, shape, config, gpu.memory, anew=False),
                checkpointed_largest_batch=_largest_batch(method, shape, config, gpu.memory, anew=True)
                if cost.checkpointed
                else None,
                step_seconds=cost.step_flops / operations_a_second,
                episode_seconds=cost.episode_flops / operations_a_second,
            )
        )
    return estimates


def _largest_batch(
    method: Callable[[Shape, EstimateConfig], Cost], shape: Shape, config: EstimateConfig, memory: int, *, anew: bool
) -> int:
    """The most examples a step that fit into ``memory``."""

    def too_large(examples: int) -> bool:
        cost = method(shape, replace(config, per_device_train_batch_size=examples))
        chosen = cost.checkpointed if anew else cost.memory
        assert chosen is not None
        return chosen.total > memory

    above = 1
    while not too_large(above):
        above *= 2
    return bisect_left(range(above), True, lo=1, key=too_large) - 1


def _anew(memory: Memory, shape: Shape, config: EstimateConfig, adapters: AdapterBytes, kept: int = 0) -> Memory:
    """The same with gradient checkpointing; ``kept`` are activations' bytes that do not depend on the tokens."""
    block = saved.largest_block_bytes(shape, config, adapters)
    inputs = saved.checkpoint_bytes(shape, config) + kept
    return replace(memory, activations=inputs, logits=max(memory.logits, block))


def _weights(shape: Shape, config: EstimateConfig) -> int:
    """The frozen model, tied weights once."""
    return shape.parameters * width(config)


def _mean_parameters(adapted: list[Linear], config: EstimateConfig) -> int:
    """A and B of one adapter: r (d_out + d_in) a layer."""
    return sum(config.r * (linear.d_out + linear.d_in) for linear in adapted)


def _scored(config: EstimateConfig) -> int:
    """H, positions at which option tokens are scored."""
    return config.per_device_train_batch_size * config.option_tokens


def _step(shape: Shape, config: EstimateConfig, positions: int) -> int:
    """Operations of the frozen model: forward, backward, and logits of so many positions both ways."""
    head = 2 * flops.head_flops(shape, positions)
    return flops.forward_flops(shape, config) + flops.backward_flops(shape, config) + head
