"""MC dropout: the likelihood under a mask made by hand, and plain LoRA where nothing is dropped."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule

MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[..., Adapter]
Draw = Callable[..., list[Encoded]]
Adapt = Callable[..., Adapter]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_fit_is_the_loop_by_hand(
    adapt: Adapt, make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    """One mask over each layer's inputs a step, which is the same as columns of A dropped."""
    scorer = make_scorer(space="dropout", dropout_rate=0.25)
    theta, config = make_theta(scorer), LearningConfig(method="mc-dropout", noise="shared", learning_rate=2e-2)
    batches = [scorer.batch(draw_examples(3, seed=seed)) for seed in range(3)]
    phi = adapt(make_rule(scorer, config, 1), theta, [(batch, generator(k)) for k, batch in enumerate(batches)])

    expected = theta.clone()
    for tensor in expected.mean_tensors():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(expected.mean_tensors(), lr=2e-2, weight_decay=0.0)
    for seed, batch in enumerate(batches):
        noise, dropped = generator(seed), {}
        for shape, stack in expected.stacks.items():
            layers, _, d_in = stack.mean_A.shape
            kept = torch.rand(layers, 1, d_in, generator=noise) >= 0.25
            dropped[shape] = stack._replace(mean_A=stack.mean_A * kept / 0.75)
        scores = scorer.scores(batch, Adapter(dropped, expected.layers)).options
        optimizer.zero_grad()
        F.cross_entropy(scores, batch.answers, reduction="sum").backward()
        optimizer.step()
    for one, other in zip(phi.mean_tensors(), expected.mean_tensors(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-3, atol=1e-4)


def test_a_rate_of_zero_is_plain_lora(
    adapt: Adapt, make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorers = {rate: make_scorer(space="dropout", dropout_rate=rate) for rate in (0.0, 0.5)}
    distances = {}
    for rate, scorer in scorers.items():
        theta, batch = make_theta(scorer), scorer.batch(draw_examples(3))
        fits = [
            adapt(make_rule(scorer, LearningConfig(method=method), 1), theta, [(batch, generator())] * 2)
            for method in ("mc-dropout", "structured-lora")
        ]
        pairs = zip(fits[0].mean_tensors(), fits[1].mean_tensors(), strict=True)
        distances[rate] = max(float((one - other).abs().max()) for one, other in pairs)
    assert distances[0.0] < 1e-5 < 1e-4 < distances[0.5]
