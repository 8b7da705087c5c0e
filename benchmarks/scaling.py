"""Cells on growth: how an inner step's time follows rank, sequence length and number of adapted layers."""

from collections.abc import Callable
from dataclasses import replace

import torch

from abmll.tasks.order import sample_seed
from benchmarks.bench import Bench
from benchmarks.contenders import Ours, Setting, batches_of
from benchmarks.pairs import Rounds
from benchmarks.rows import Row, absolute
from benchmarks.trends import exponents
from benchmarks.workload import cut_to

RANKS = (4, 16, 64)
LENGTHS = (64, 128, 256, 512)
LAYERS = (4, 8, 16)


def rank(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step against r."""
    made = {r: Ours(bench, replace(setting, r=r)) for r in RANKS}
    return [_row("rank r", bench.rounds({str(r): ours.step for r, ours in made.items()}), setting.label(bench))]


def layers(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step, nothing cached, against the number of adapted layers from the top down."""
    depth = bench.base().model.config.get_text_config().num_hidden_layers
    counts = [count for count in LAYERS if count < depth] + [depth]
    made = {count: Ours(bench, replace(setting, layers=f"top-{count}"), activation_cache_gb=0) for count in counts}
    rounds = bench.rounds({str(count): ours.step for count, ours in made.items()})
    return [_row("adapted layers", rounds, setting.label(bench))]


def length(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step on one sequence against its number of tokens: real prompts, repeated or cut to length."""
    ours = Ours(bench, setting)
    rounds = bench.rounds({str(tokens): _step_of_length(ours, tokens) for tokens in LENGTHS})
    return [_row("sequence length", rounds, setting.label(bench))]


def _step_of_length(ours: Ours, tokens: int) -> Callable[[int], object]:
    scorer = ours.model.scorer

    def step(number: int) -> object:
        example = cut_to(batches_of(ours, number)[0][0], tokens)
        generator = torch.Generator(scorer.device).manual_seed(sample_seed(0, "length", number))
        return ours.rule.inner_step(ours.state, scorer.batch([example]), generator, 1.0)

    return step


def _row(what: str, rounds: Rounds, label: str) -> Row:
    """The fitted exponent, with the seconds at every size in the note."""
    note = ", ".join(f"{size}: {rounds.median(size):.3g} s" for size in rounds.seconds)
    spread = exponents({float(size): seconds for size, seconds in rounds.seconds.items()})
    return absolute(f"growth with {what} ({label})", spread, "exponent", note)
