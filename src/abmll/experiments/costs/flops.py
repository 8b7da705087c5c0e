"""Operations of a step's matrix products: 2 d_out d_in for every token and linear layer (a product and a sum each).

Notation as in ``saved``. As usual, everything that is not a matrix product is left out (norms, rotation, softmax,
activation functions, noise), and attention counts its whole T x T square. The base is frozen: a backward pass computes
the gradients of inputs, never of weights, and only above the lowest adapted layer.
"""

from abmll.common.config import EstimateConfig
from abmll.experiments.costs.saved import tokens
from abmll.experiments.costs.shapes import Block, Shape


def base_flops(shape: Shape, config: EstimateConfig, positions: int) -> int:
    """The frozen model forward and backward, with logits of so many positions, 2 V d each way."""
    attention = sum(_attention_backward(shape, block, config) for block in shape.blocks)
    head = 2 * 2 * positions * shape.vocab * shape.hidden
    return forward_flops(shape, config) + _linear_backward(shape, config) + attention + head


def forward_flops(shape: Shape, config: EstimateConfig) -> int:
    """All frozen linear layers, 2 M d_out d_in each, and attention, 2 x 2 M T q a block; no head, no adapters."""
    sizes = sum(linear.d_out * linear.d_in for linear in shape.linears)
    return 2 * tokens(config) * sizes + 4 * len(shape.blocks) * _square(shape, config)


def adapter_flops(shape: Shape, config: EstimateConfig, noise_rank: int = 0, learns: bool = True) -> int:
    """Adapters forward and backward: A, 2 M r d_in, and B, 2 M r d_out, forward and for their own gradients where they
    learn; then the gradients of B's input and of A's, where these require one.

    Noise of rank m widens B to r + m channels; its scale is one more row of A.
    """
    total = 0
    for linear in shape.adapted:
        total += (1 + learns + linear.needs_input) * (config.r + (noise_rank > 0)) * linear.d_in
        total += (1 + learns + (learns or linear.needs_input)) * (config.r + noise_rank) * linear.d_out
    return 2 * tokens(config) * total


def divergence_flops(shape: Shape, config: EstimateConfig) -> int:
    """Two Gram matrices of 2 r vectors a layer, 2 (2 r)^2 (d_out + d_in), and twice that backward."""
    return sum(3 * 2 * (2 * config.r) ** 2 * (linear.d_out + linear.d_in) for linear in shape.adapted)


def second_order_flops(shape: Shape, config: EstimateConfig, positions: int) -> int:
    """The gradient through a gradient step with eager attention: every product of its backward pass has two
    gradients, and so has every product of its forward pass.

    A frozen linear layer: once through its input gradient and once through its output, twice its backward pass; the
    head likewise. Attention: 2 x 4 + 2 x 2 products of 2 M T q; an adapter: 2 x 4 + 2 x 2 products of its size.
    """
    attention = 12 * 2 * _square(shape, config) * len(shape.read_back)
    head = 2 * positions * shape.vocab * shape.hidden
    return 2 * (_linear_backward(shape, config) + adapter_flops(shape, config) + head) + attention


def _linear_backward(shape: Shape, config: EstimateConfig) -> int:
    """2 M d_out d_in for every frozen linear layer before which something is adapted."""
    return 2 * tokens(config) * sum(linear.d_out * linear.d_in for linear in shape.linears if linear.needs_input)


def _attention_backward(shape: Shape, block: Block, config: EstimateConfig) -> int:
    """Eagerly a product, 2 M T q, for each of v, the weights, q and k that require a gradient.

    In one kernel always five: it computes the weights once more.
    """
    query, key, value = (block[name].needs_output for name in ("q_proj", "k_proj", "v_proj"))
    eager = query + key + value + (query or key)
    return 2 * _square(shape, config) * (eager if config.attention == "eager" else 5 * (query or key or value))


def _square(shape: Shape, config: EstimateConfig) -> int:
    """M T q: a product and no sum for every pair of positions and channel of the queries."""
    return tokens(config) * config.sequence_length * shape.width
