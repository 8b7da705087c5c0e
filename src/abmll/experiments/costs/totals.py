"""The four methods' costs, put together of what ``saved`` and ``flops`` count."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from abmll.common.config import EstimateConfig
from abmll.experiments.costs import flops, saved
from abmll.experiments.costs.gpus import Gpu
from abmll.experiments.costs.saved import FP32, AdapterBytes, tokens, width
from abmll.experiments.costs.shapes import Shape


@dataclass(frozen=True)
class Memory:
    """Bytes of a gradient step where it needs most: all activations are kept and the logits' gradient is at hand.

    With gradient checkpointing ``logits`` is the larger of those and of one block that is computed anew: by then the
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
        return sum(vars(self).values())


@dataclass(frozen=True)
class Numbers:
    """Learned numbers: of ``one`` adapter, ``size`` bytes each, and how many times so many a method holds."""

    one: int
    size: int
    held: int
    moments: int
    gradients: int

    def memory(self, shape: Shape, config: EstimateConfig, activations: int, logits: int) -> Memory:
        """A step's memory with them."""
        held, moments, gradients = (self.one * self.size * times for times in (self.held, self.moments, self.gradients))
        return Memory(shape.parameters * width(config), held, moments, gradients, activations, logits)


@dataclass(frozen=True)
class Estimate:
    """What a method costs; None for gradient checkpointing of a method that cannot compute its activations anew."""

    method: str
    adapter_parameters: int
    memory: Memory
    checkpointed: Memory | None
    step_flops: int
    checkpointed_step_flops: int | None
    episode_flops: int
    # on a device, see ``estimate_all``
    largest_batch: int = 0  # examples; 0 where not even one fits
    checkpointed_largest_batch: int | None = None
    step_seconds: float = 0.0
    episode_seconds: float = 0.0


def abmll(shape: Shape, config: EstimateConfig) -> Estimate:
    """ABMLL as ``abmll train`` runs it: weight space, sigma of rank 1, low-rank noise, scored positions only.

    theta and phi with a mean, r (d_out + d_in) numbers, and log sigma's factors, d_out + d_in, all in fp32 and each
    with AdamW's two moments; an episode is K steps, and a divergence for theta's step.
    """
    numbers = Numbers(_mean_parameters(shape, config.r + 1), FP32, held=2, moments=4, gradients=1)
    fixed = saved.factor_bytes(shape, config)
    activations = saved.scored_decoder_bytes(shape, config, saved.abmll_bytes) + fixed
    memory = numbers.memory(shape, config, activations, 4 * saved.scored_bytes(shape, config))
    divergence = flops.divergence_flops(shape, config)
    adapters = flops.adapter_flops(shape, config, saved.NOISE_RANK) + divergence
    step = flops.base_flops(shape, config, _scored(config)) + adapters
    plain = Estimate("ABMLL", 2 * numbers.one, memory, None, step, None, config.inner_steps * step + divergence)
    return _with_checkpoints(plain, shape, config, saved.abmll_bytes, fixed)


def lora(shape: Shape, config: EstimateConfig) -> Estimate:
    """LoRA with PEFT and the Trainer: one mean in fp32, AdamW, logits of every token; K steps stand for an episode."""
    numbers = Numbers(_mean_parameters(shape, config.r), FP32, held=1, moments=2, gradients=1)
    activations = saved.decoder_bytes(shape, config, saved.lora_bytes)
    memory = numbers.memory(shape, config, activations, saved.full_logits_bytes(shape, config))
    step = flops.base_flops(shape, config, tokens(config)) + flops.adapter_flops(shape, config)
    plain = Estimate("Plain LoRA", numbers.one, memory, None, step, None, config.inner_steps * step)
    return _with_checkpoints(plain, shape, config, saved.lora_bytes)


def published(shape: Shape, config: EstimateConfig) -> Estimate:
    """The published algorithm: four branches a layer (mean and log variance of phi and of theta) in the model's
    dtype, moments too, two of the four learning at a time; logits of every token; an episode is K + 1 whole steps."""
    numbers = Numbers(_mean_parameters(shape, config.r), width(config), held=4, moments=8, gradients=2)
    activations = saved.decoder_bytes(shape, config, saved.published_bytes)
    memory = numbers.memory(shape, config, activations, saved.full_logits_bytes(shape, config))
    branches = 2 * sum(flops.adapter_flops(shape, config, learns=learns) for learns in (True, False))
    step = flops.base_flops(shape, config, tokens(config)) + branches
    plain = Estimate("Published", 4 * numbers.one, memory, None, step, None, (config.inner_steps + 1) * step)
    return _with_checkpoints(plain, shape, config, saved.published_bytes)


def maml(shape: Shape, config: EstimateConfig) -> Estimate:
    """Second-order MAML: one mean in fp32, of which every inner step leaves a copy; scored positions only.

    All K inner steps keep their forward and backward graphs until the outer step's backward pass. Attention is eager:
    its kernels have no second derivative. An inner step costs a forward and a backward pass, and once more both when
    the outer gradient runs back through it, its backward pass as a forward and a backward one.
    """
    config = replace(config, attention="eager")
    steps, scored = config.inner_steps, saved.scored_bytes(shape, config)
    numbers = Numbers(_mean_parameters(shape, config.r), FP32, held=1 + steps, moments=2, gradients=1 + steps)
    forward = saved.decoder_bytes(shape, config, saved.maml_bytes)
    activations = steps * (forward + saved.graph_bytes(shape, config) + scored) + forward
    memory = numbers.memory(shape, config, activations, 4 * scored)
    step = flops.base_flops(shape, config, _scored(config)) + flops.adapter_flops(shape, config)
    episode = steps * (step + flops.second_order_flops(shape, config, _scored(config))) + step
    return Estimate("MAML", numbers.one, memory, None, step, None, episode)


Method = Callable[[Shape, EstimateConfig], Estimate]
METHODS: tuple[Method, ...] = (abmll, lora, published, maml)


def estimate_all(shape: Shape, config: EstimateConfig, gpu: Gpu, operations_a_second: float) -> list[Estimate]:
    """Every method's cost on a device that reaches so many operations a second."""
    return [_on_device(method, shape, config, gpu, operations_a_second) for method in METHODS]


def _on_device(method: Method, shape: Shape, config: EstimateConfig, gpu: Gpu, operations_a_second: float) -> Estimate:
    one = method(shape, config)
    fitting = partial(_largest_batch, method, shape, config, gpu)
    return replace(
        one,
        largest_batch=fitting("memory"),
        checkpointed_largest_batch=fitting("checkpointed") if one.checkpointed else None,
        step_seconds=one.step_flops / operations_a_second,
        episode_seconds=one.episode_flops / operations_a_second,
    )


def _largest_batch(method: Method, shape: Shape, config: EstimateConfig, gpu: Gpu, memory: str) -> int:
    """The most examples a step whose ``memory`` or ``checkpointed`` memory fits."""
    return bisect_left(range(1, 2**31), True, key=partial(_too_large, method, shape, config, gpu, memory))


def _too_large(method: Method, shape: Shape, config: EstimateConfig, gpu: Gpu, memory: str, examples: int) -> bool:
    estimate = method(shape, replace(config, per_device_train_batch_size=examples))
    return getattr(estimate, memory).total > gpu.memory


def _with_checkpoints(
    plain: Estimate, shape: Shape, config: EstimateConfig, adapters: AdapterBytes, fixed: int = 0
) -> Estimate:
    """The estimate with that of gradient checkpointing; ``fixed`` activations' bytes do not depend on the tokens.

    The blocks that a gradient runs through are computed once more, one at a time.
    """
    block = max(saved.block_bytes(shape, block, config) + adapters(block, config) for block in shape.read_back)
    kept = saved.checkpoint_bytes(shape, config) + fixed
    again = flops.forward_flops(shape, config) * len(shape.read_back) // len(shape.blocks)
    return replace(
        plain,
        checkpointed=replace(plain.memory, activations=kept, logits=max(plain.memory.logits, block)),
        checkpointed_step_flops=plain.step_flops + again,
    )


def _mean_parameters(shape: Shape, rank: int) -> int:
    """A and B of one adapter: r (d_out + d_in) a layer."""
    return sum(rank * (linear.d_out + linear.d_in) for linear in shape.adapted)


def _scored(config: EstimateConfig) -> int:
    """H, positions at which option tokens are scored."""
    return config.per_device_train_batch_size * config.option_tokens
