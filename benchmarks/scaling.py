"""Cells on growth with a language model: an inner step's rank, sequence length and adapted layers; a prediction's
options and members."""

from collections.abc import Callable
from dataclasses import replace

import torch

from abmll.common.config import PredictConfig, PromptConfig
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import predict
from abmll.tasks import Example
from abmll.tasks.order import sample_seed
from benchmarks.bench import Bench
from benchmarks.contenders import Ours, Setting, batches_of
from benchmarks.rows import Row
from benchmarks.trends import timed
from benchmarks.workload import cut_to

RANKS = (4, 16, 64)
LENGTHS = (64, 128, 256, 512)
LAYERS = (4, 8, 16)
LETTERED, OPTIONS = (2, 6, 13, 26), (2, 20, 60, 200)
MEMBERS = (1, 2, 5, 10)


def rank(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step against r."""
    made = {r: Ours(bench, replace(setting, r=r)) for r in RANKS}
    return [
        timed(f"rank r ({setting.label(bench)})", bench.rounds({str(r): ours.step for r, ours in made.items()}), 1.0)
    ]


def layers(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step, nothing cached, against the number of adapted layers from the top down."""
    depth = bench.base().model.config.get_text_config().num_hidden_layers
    counts = [count for count in LAYERS if count < depth] + [depth]
    made = {count: Ours(bench, replace(setting, layers=f"top-{count}"), activation_cache_gb=0) for count in counts}
    rounds = bench.rounds({str(count): ours.step for count, ours in made.items()})
    return [timed(f"adapted layers ({setting.label(bench)})", rounds, 1.0)]


def length(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step on one sequence against its number of tokens: real prompts, repeated or cut to length."""
    ours = Ours(bench, setting)
    rounds = bench.rounds({str(tokens): _step_of_length(ours, tokens) for tokens in LENGTHS})
    return [timed(f"sequence length ({setting.label(bench)})", rounds, 1.0)]


def _step_of_length(ours: Ours, tokens: int) -> Callable[[int], object]:
    scorer = ours.model.scorer

    def step(number: int) -> object:
        example = cut_to(batches_of(ours, number)[0][0], tokens)
        generator = torch.Generator(scorer.device).manual_seed(sample_seed(0, "length", number))
        return ours.rule.inner_step(ours.state, scorer.batch([example]), generator, 1.0)

    return step


def options(bench: Bench, setting: Setting) -> list[Row]:
    """A question's scores against its number of options: each read behind the question, or named by a letter."""
    rows = []
    for lettered, sizes in ((False, OPTIONS), (True, LETTERED)):
        prompt = PromptConfig(answer="letter" if lettered else "text")
        model = AbmllModel(bench.base(), setting.adapter(), prompt)
        asked = {count: _question(count) for count in (sizes[:2] if bench.quick else sizes)}
        rounds = bench.rounds(
            {str(count): lambda number, one=one, model=model: _answer(model, one) for count, one in asked.items()}
        )
        rows.append(timed(f"options, {'lettered' if lettered else 'read one by one'} ({bench.dtype})", rounds, 1.0))
    return rows


def members(bench: Bench, setting: Setting) -> list[Row]:
    """An answer at the means of so many adapters, as of an ensemble or a mixture."""
    model = AbmllModel(bench.base(), setting.adapter(), bench.workload.prompt)
    asked = model.scorer.encode([_question(2)], "numbers")
    how = PredictConfig(num_samples=0)
    rounds = bench.rounds(
        {
            str(count): lambda number, count=count: predict(model.scorer, [model.theta] * count, asked, how)
            for count in (MEMBERS[:2] if bench.quick else MEMBERS)
        }
    )
    return [timed(f"members ({setting.label(bench)})", rounds, 1.0)]


def _question(options: int) -> Example:
    return Example("0", "Which of these numbers is it?", tuple(f"the number {one}" for one in range(options)), 0)


def _answer(model: AbmllModel, example: Example) -> object:
    with torch.no_grad():
        return model.scorer.scores(model.scorer.batch(model.scorer.encode([example], "numbers")), None)
