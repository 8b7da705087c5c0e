"""Operations of a step's matrix products: 2 d_out d_in for every token and linear layer (a product and a sum each).

Notation as in ``saved``. As usual, everything that is not a matrix product is left out (norms, rotation, softmax,
activation functions, noise), and attention counts its whole T x T square. The base is frozen: a backward pass computes
the gradients of inputs, never of weights, and only above the lowest adapted layer.
"""

from abmll.common.config import EstimateConfig
from abmll.experiments.costs.saved import tokens
from abmll.experiments.costs.shapes import Block, Linear, Shape


def forward_flops(shape: Shape, config: EstimateConfig) -> int:
    """All frozen linear layers, 2 M d_out d_in each, and attention, 2 x 2 M T q a block; no head, no adapters."""
    sizes = sum(linear.d_out * linear.d_in for block in shape.blocks for linear in block.linears.values())
    return 2 * tokens(config) * sizes + 4 * len(shape.blocks) * _square(shape, config)


def backward_flops(shape: Shape, config: EstimateConfig) -> int:
    """The gradients of the inputs of all frozen linear layers and of attention, as far as they are needed."""
    attention = sum(_attention_backward(shape, block, config) for block in shape.blocks)
    return _linear_backward(shape, config) + attention


def head_flops(shape: Shape, positions: int) -> int:
    """Logits of some positions, 2 V d each; the backward pass costs the same."""
    return 2 * positions * shape.vocab * shape.hidden


def lora_flops(shape: Shape, config: EstimateConfig, noise_rank: int = 0) -> int:
    """Adapters forward and backward: A, 2 M r d_in, and B, 2 M r d_out, forward and for their own gradients; then
    the gradients of B's input and, where it requires one, of A's.

    Noise of rank m widens B to r + m channels; its scale is one more row of A.
    """
    total = 0
    for block in shape.blocks:
        for linear in block.adapted:
            into = (config.r + (noise_rank > 0)) * linear.d_in * (2 + block.needs_input(linear.stage))
            total += into + 3 * (config.r + noise_rank) * linear.d_out
    return 2 * tokens(config) * total


def constant_lora_flops(shape: Shape, config: EstimateConfig) -> int:
    """A branch that does not learn: its forward pass, and the gradients of its inputs where they require one."""
    return sum(
        2 * tokens(config) * config.r * (linear.d_in + linear.d_out) * (1 + block.needs_input(linear.stage))
        for block in shape.blocks
        for linear in block.adapted
    )


def divergence_flops(adapted: list[Linear], config: EstimateConfig) -> int:
    """Two Gram matrices of 2 r vectors a layer, 2 (2 r)^2 (d_out + d_in), and twice that backward."""
    return sum(3 * 2 * (2 * config.r) ** 2 * (linear.d_out + linear.d_in) for linear in adapted)


def second_order_flops(shape: Shape, config: EstimateConfig, positions: int) -> int:
    """The gradient through a gradient step with eager attention: every product of its backward pass has two
    gradients, and so has every product of its forward pass.

    A frozen linear layer: once through its input gradient and once through its output, twice its backward pass; the
    head likewise. Attention: 2 x 4 + 2 x 2 products of 2 M T q; an adapter: 2 x 4 + 2 x 2 products of its size.
    """
    attention = 12 * 2 * _square(shape, config) * len(shape.read_back)
    adapters, head = lora_flops(shape, config), head_flops(shape, positions)
    return 2 * (_linear_backward(shape, config) + adapters + head) + attention


def _linear_backward(shape: Shape, config: EstimateConfig) -> int:
    """2 M d_out d_in for every frozen linear layer before which something is adapted."""
    return sum(
        2 * tokens(config) * linear.d_out * linear.d_in * block.needs_input(linear.stage)
        for block in shape.blocks
        for linear in block.linears.values()
    )


def _attention_backward(shape: Shape, block: Block, config: EstimateConfig) -> int:
    """Eagerly a product, 2 M T q, for each of v, the weights, q and k that require a gradient.

    In one kernel always five: it computes the weights once more.
    """
    query, key, value = (block.needs_output(name) for name in ("q_proj", "k_proj", "v_proj"))
    eager = query + key + value + (query or key)
    return 2 * _square(shape, config) * (eager if config.attention == "eager" else 5 * (query or key or value))


def _square(shape: Shape, config: EstimateConfig) -> int:
    """M T q: a product and no sum for every pair of positions and channel of the queries."""
    return tokens(config) * config.sequence_length * shape.width
