"""Cells on the machine: its ceilings, and how far above the floor of its own arithmetic a step lies.

The floor counts what cannot be left out: the frozen forward pass over the tokens that are read (a prefix that a batch
shares once; of the last block only keys and values, and the rest at the scored positions), the gradient with respect to
the inputs of every layer above the lowest adapter, the adapter's own products, and the head at the scored positions; or
reading the weights once each way, where that takes longer. It is divided by the measured speed of a large matrix
product (of a large copy for the weights).
"""

from collections.abc import Sequence

import torch

from abmll.language.encoding import Encoded
from abmll.language.targets import find_targets
from benchmarks.bench import Bench
from benchmarks.contenders import ALL, Ours, Setting, batches_of
from benchmarks.pairs import Spread
from benchmarks.rows import Row, absolute, compared

SIDE, SIDE_BF16, SIDE_GPU = 2048, 1024, 8192  # a GPU would wait for its host between smaller products
COPIED = 256 * 2**20  # bytes
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


def ceilings(bench: Bench) -> list[Row]:
    """A large matrix product in fp32 and in bf16, and a large copy (bytes read and written, a second)."""
    rows = []
    for name, dtype, on_cpu in (("fp32", torch.float32, SIDE), ("bf16", torch.bfloat16, SIDE_BF16)):
        long = side(bench, on_cpu)
        rows.append(absolute(f"matrix product, {long} cubed, {name}", matmul_speed(bench, dtype, long), "GFLOP/s"))
    return [*rows, absolute("copy of 256 MiB", copy_speed(bench), "GB/s")]


def floor(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step in weight space / its floor."""
    ours = Ours(bench, setting)
    rounds = bench.rounds({"step": ours.step})
    dtype = torch.bfloat16 if (setting.dtype or bench.dtype) == "bf16" else torch.float32
    speed = matmul_speed(bench, dtype, side(bench)).median * 1e9
    copied = copy_speed(bench).median * 1e9
    first = len(rounds.seconds["step"])
    floors = []
    for number in range(1, 1 + first):
        flops, moved = step_cost(ours, batches_of(ours, number)[0])
        floors.append(max(flops / speed, moved / copied))
    spread = Spread.of([step / least for step, least in zip(rounds.seconds["step"], floors, strict=True)])
    name = f"inner step, weight space / its floor ({setting.label(bench)})"
    return [compared(name, spread, rounds.median("step"), Spread.of(floors).median, "s")]


def step_cost(ours: Ours, examples: Sequence[Encoded]) -> tuple[float, float]:
    """(floating-point operations, bytes of weights moved) that a full-depth inner step cannot do without."""
    model = ours.model.scorer.base.model
    config = model.config.get_text_config()
    linear = find_targets(model, ALL, None)
    tokens = ours.model.scorer.batch(examples).input_ids.numel()
    # The lowest block's inputs need no gradient: its projections of them are not gone back through.
    back = [target for target in linear if not (target.block == 0 and target.name.endswith(QUERY_KEY_VALUE))]
    products = sum(t.d_out * t.d_in for t in linear) + sum(t.d_out * t.d_in for t in back)
    scored, last = scored_positions(examples), config.num_hidden_layers - 1
    # What of the last block is read at the scored positions only, forward and back.
    narrow = [t for t in linear if t.block == last and not t.name.endswith(("k_proj", "v_proj"))]
    unread = (tokens - scored) * 2 * sum(t.d_out * t.d_in for t in narrow)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = sum(len(one) * (len(one) + 1) // 2 for one in examples)
    attention = 3 * 2 * pairs * width * config.num_hidden_layers  # scores and values; forward, and twice back
    shapes = ours.model.scorer.shapes.values()
    adapter = 3 * tokens * ours.model.scorer.adapter_config.r * sum(d_out + d_in for d_out, d_in in shapes)
    head = 2 * scored * config.vocab_size * config.hidden_size
    operations = 2.0 * (tokens * products - unread + attention + adapter + head)
    itemsize = model.dtype.itemsize
    moved = itemsize * (products + 2 * config.vocab_size * config.hidden_size)
    return operations, float(moved)


def scored_positions(examples: Sequence[Encoded]) -> int:
    """Hidden states that predict a scored token: the prompt's last, and all but the last of each option's."""
    return sum(1 + sum(len(option) - 1 for option in one.options) for one in examples)


def side(bench: Bench, on_cpu: int = SIDE) -> int:
    """Of the square matrices whose product says how fast the device can be."""
    return SIDE_GPU if bench.on_gpu else on_cpu


def matmul_speed(bench: Bench, dtype: torch.dtype, side: int) -> Spread:
    """GFLOP/s of a product of two square matrices."""
    left = torch.randn(side, side, device=bench.device).to(dtype)
    right = torch.randn(side, side, device=bench.device).to(dtype)
    seconds = bench.rounds({"matmul": lambda number: left @ right}).seconds["matmul"]
    return Spread.of([2 * side**3 / one / 1e9 for one in seconds])


def copy_speed(bench: Bench) -> Spread:
    """GB/s of a copy, each byte counted twice: read and written."""
    source = torch.ones(COPIED // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.rounds({"copy": lambda number: target.copy_(source)}).seconds["copy"]
    return Spread.of([2 * COPIED / one / 1e9 for one in seconds])
