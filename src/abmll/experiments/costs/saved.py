"""Bytes that autograd keeps of a forward pass until the backward pass has read them.

Notation: N examples of T tokens, M = N T; d channels of the residual stream, q = heads x head size channels of the
queries, f channels of the MLP, V entries of the vocabulary; w bytes a number of the frozen model (4 in fp32, 2 in
bf16). The counts follow transformers' Llama block (norm, q k v, rotation, attention, o, norm, gate up, down) operation
by operation, down to the lowest adapted layer, below which nothing requires a gradient. A tensor that several
operations keep is counted once. A frozen linear layer keeps nothing, since its input gradient needs the weight alone;
nor do residual additions; rotation keeps the angles, which all blocks share.
"""

from collections.abc import Callable
from dataclasses import replace

from abmll.common.config import EstimateConfig, LearningConfig
from abmll.experiments.costs.shapes import GATE_UP, OUT, Block, Shape, adapted

FP32 = 4
WIDTHS = {"bf16": 2, "fp32": 4}
NOISE_RANK = LearningConfig.noise_rank  # m, random directions of ABMLL's training noise

AdapterBytes = Callable[[Block, EstimateConfig], int]  # what the adapters of one block keep


def tokens(config: EstimateConfig) -> int:
    """M = N T."""
    return config.per_device_train_batch_size * config.sequence_length


def width(config: EstimateConfig) -> int:
    """w, bytes of a number of the frozen model."""
    return WIDTHS[config.dtype]


def decoder_bytes(shape: Shape, config: EstimateConfig, adapters: AdapterBytes) -> int:
    """All blocks, the final norm, and what the blocks share: cosine and sine of the angles, 2 M h w."""
    shared = 2 * tokens(config) * shape.width // shape.heads * width(config)
    blocks = sum(block_bytes(shape, block, config) + adapters(block, config) for block in shape.read_back)
    return blocks + norm_bytes(shape, config) + shared


def scored_decoder_bytes(shape: Shape, config: EstimateConfig, adapters: AdapterBytes) -> int:
    """``decoder_bytes`` where the last block's MLP computes the scored positions alone."""
    mlp = {name: linear for name, linear in shape.read_back[-1].items() if linear.stage >= GATE_UP}
    few = replace(config, sequence_length=config.option_tokens)
    wide, narrow = (mlp_bytes(shape, mlp, one) + adapters(mlp, one) for one in (config, few))
    return decoder_bytes(shape, config, adapters) - wide + narrow


def checkpoint_bytes(shape: Shape, config: EstimateConfig) -> int:
    """With gradient checkpointing: the input of every block, M d w, and the final norm."""
    return len(shape.read_back) * tokens(config) * shape.hidden * width(config) + norm_bytes(shape, config)


def block_bytes(shape: Shape, block: Block, config: EstimateConfig) -> int:
    """One block without its adapters: two norms, attention, MLP, each as far as a gradient runs through it."""
    norms = block["q_proj"].needs_input + block["gate_proj"].needs_input
    return norms * norm_bytes(shape, config) + attention_bytes(shape, block, config) + mlp_bytes(shape, block, config)


def norm_bytes(shape: Shape, config: EstimateConfig) -> int:
    """Root mean square norm, always in fp32: its input and the reciprocal root, M (d + 1) x 4 bytes."""
    return tokens(config) * (shape.hidden + 1) * FP32


def attention_bytes(shape: Shape, block: Block, config: EstimateConfig) -> int:
    """Softmax(q k^T) v, with k and v repeated to the number of query heads.

    In one kernel: q, k, v and the output, 4 M q w, the log of the softmax's denominator, M heads x 4, and the mask of
    N examples in the model's dtype, M T w (a copy a block).
    Eagerly: q, k and v, and the weights, N heads T^2: the softmax in fp32 and, for a bf16 model, its copy in bf16.
    In the lowest adapted block q is kept for k's gradient, k for q's, v for the weights', the weights for v's.
    """
    query, key, value = (block[name].needs_output for name in ("q_proj", "k_proj", "v_proj"))
    heads = tokens(config) * shape.width * width(config)
    if config.attention == "sdpa":
        mask = tokens(config) * config.sequence_length * width(config)
        return (4 * heads + tokens(config) * shape.heads * FP32 + mask) * (query or key or value)
    weights = tokens(config) * shape.heads * config.sequence_length
    copy = width(config) * value if config.dtype != "fp32" else 0
    return heads * (query + key + (query or key)) + weights * (FP32 * (query or key or value) + copy)


def mlp_bytes(shape: Shape, block: Block, config: EstimateConfig) -> int:
    """silu(gate) * up: gate's output for silu, silu's for up's gradient, up's for silu's, 3 M f w in all."""
    gate, up = block["gate_proj"].needs_output, block["up_proj"].needs_output
    return tokens(config) * shape.intermediate * width(config) * (2 * gate + up)


def lora_bytes(block: Block, config: EstimateConfig) -> int:
    """PEFT's adapters, mean only: each A keeps its input, d_in, and each B its own, r.

    In bf16, under the Trainer's autocast, every layer makes a bf16 copy of its own, and one of its factors.
    """
    bf16 = config.dtype == "bf16"
    inputs = sum(linear.d_in for linear in adapted(block)) if bf16 else _shared_inputs(block, config)
    copies = sum(config.r * (linear.d_out + linear.d_in) for linear in adapted(block)) * bf16
    return width(config) * (tokens(config) * (config.r * len(adapted(block)) + inputs) + copies)


def abmll_bytes(block: Block, config: EstimateConfig) -> int:
    """ABMLL's adapters: MAML's and the noise, of which a layer keeps the scale, one number a token, m random
    directions, and m channels more at the input of one product with [s B, noise]."""
    noise = (2 * NOISE_RANK + 1) * len(adapted(block))
    return maml_bytes(block, config) + tokens(config) * FP32 * noise


def maml_bytes(block: Block, config: EstimateConfig) -> int:
    """MAML's adapters, in fp32 whatever the model: each A keeps its input, d_in, and each B its own, r.

    The inputs are in fp32: one tensor a stage, and for a bf16 model a copy a layer.
    """
    stages = {linear.stage: linear.d_in for linear in adapted(block)}
    inputs = stages.values() if config.dtype == "fp32" else [linear.d_in for linear in adapted(block)]
    return tokens(config) * FP32 * (config.r * len(adapted(block)) + sum(inputs))


def published_bytes(block: Block, config: EstimateConfig) -> int:
    """The published algorithm's adapters, in the model's dtype: four branches on one input, and the KL's terms.

    Each A keeps the common input, the two B that learn their r channels. Of the output's size, d_out, there are
    thirteen tensors: the five activations that the divergence is taken over (two means, two log variances, the
    sample), the normal numbers and phi's standard deviation, and for each of the two log densities a distance, its
    square and a reciprocal variance.
    """
    inner = sum(2 * config.r + 13 * linear.d_out for linear in adapted(block))
    return tokens(config) * width(config) * (inner + _shared_inputs(block, config))


def _shared_inputs(block: Block, config: EstimateConfig) -> int:
    """Channels of the adapters' inputs, one tensor a stage, but for o's, which the attention kernel keeps itself."""
    stages = {linear.stage: linear.d_in for linear in adapted(block)}
    return sum(d_in for stage, d_in in stages.items() if not (stage == OUT and config.attention == "sdpa"))


def graph_bytes(shape: Shape, config: EstimateConfig) -> int:
    """What a differentiable backward pass keeps beyond its forward pass, for the gradient of the gradient.

    A block: three tensors a norm, 2 x 3 M d x 4; gradients and derivatives of silu(gate) * up, 6 M f w; the gradients
    of the attention's output, M q w, of its weights before and after the softmax, M heads T (4 + w); of every
    adapted layer's output and inner channels, M (d_out + r) x 4. Then the softmax of the scored positions.
    """
    block = 6 * shape.hidden * FP32 + (6 * shape.intermediate + shape.width) * width(config)
    block += shape.heads * config.sequence_length * (FP32 + width(config))
    adapters = sum((linear.d_out + config.r) * FP32 for linear in shape.adapted)
    return tokens(config) * (len(shape.read_back) * block + adapters) + scored_bytes(shape, config)


def factor_bytes(shape: Shape, config: EstimateConfig) -> int:
    """What ABMLL keeps whatever the number of tokens: sampled factors, and the closed-form divergence's.

    [s B, noise] and the normal numbers in it, (r + 2 m) d_out x 4, and for the divergence [B - B', B'] and
    [A; A - A'] after their scaling, 2 r (d_out + d_in) x 4, and six tensors of the size of sigma's factors.
    """
    sampled = sum((config.r + 2 * NOISE_RANK) * linear.d_out for linear in shape.adapted)
    divergence = sum((2 * config.r + 6) * (linear.d_out + linear.d_in) for linear in shape.adapted)
    return (sampled + divergence) * FP32


def full_logits_bytes(shape: Shape, config: EstimateConfig) -> int:
    """Logits of every token in a cross entropy, where its backward pass is widest: 3 M V x 4 bytes.

    The log softmax that was kept, the gradient that reaches it, and the one that leaves it.
    """
    return 3 * tokens(config) * shape.vocab * FP32


def scored_bytes(shape: Shape, config: EstimateConfig) -> int:
    """Logits of the H scored positions, kept in fp32: H V x 4.

    Where the backward pass is widest there are four times as many: the logits, their gradient through the chosen
    entries, and through logsumexp the softmax and its product.
    """
    return config.per_device_train_batch_size * config.option_tokens * shape.vocab * FP32
