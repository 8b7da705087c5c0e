"""BLoB against a loop by hand: samples of A as plain LoRA factors, torch.distributions' KL, torch's AdamW."""

from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from abmll.common.config import ContinuedConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule

MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[..., Adapter]
Draw = Callable[..., list[Encoded]]
Adapt = Callable[..., Adapter]
CONFIG = ContinuedConfig(
    method="blob",
    noise="shared",
    learning_rate=2e-2,
    scale_learning_rate=5e-2,
    weight_decay=0.1,
    blob_kl_weight=3e-2,
    blob_prior_std=0.3,
    blob_init_log_sigma=-2.0,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(scorer: OptionScorer, theta: Adapter, batches: list[list[Encoded]]) -> Adapter:
    """q(A) and B after a step for each batch; the likelihood at an adapter that has the sample of A as its A."""
    phi = theta.clone()
    for stack in phi.stacks.values():
        stack.scale_A.fill_(CONFIG.blob_init_log_sigma)
    means, scales = phi.mean_tensors(), [stack.scale_A for stack in phi.stacks.values()]
    for tensor in (*means, *scales):
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(
        [{"params": means, "lr": CONFIG.learning_rate}, {"params": scales, "lr": CONFIG.scale_learning_rate}],
        weight_decay=CONFIG.weight_decay,
    )
    for seed, examples in enumerate(batches):
        noise, sample = generator(seed), {}
        for shape, stack in phi.stacks.items():
            normal = torch.randn(stack.mean_A.shape, generator=noise)
            sample[shape] = stack._replace(mean_A=stack.mean_A + stack.scale_A.exp() * normal)
        batch = scorer.batch(examples)
        scores = scorer.scores(batch, Adapter(sample, phi.layers)).options
        loss = F.cross_entropy(scores, batch.answers, reduction="sum")
        for stack in phi.stacks.values():
            prior = Normal(torch.zeros_like(stack.mean_A), CONFIG.blob_prior_std)
            loss = loss + CONFIG.blob_kl_weight * kl_divergence(Normal(stack.mean_A, stack.scale_A.exp()), prior).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return phi.requires_grad_(False)


def test_a_fit_is_the_loop_by_hand(
    adapt: Adapt, make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorer = make_scorer(space="factor-a")
    theta = make_theta(scorer)
    batches = [draw_examples(3, seed=seed) for seed in range(3)]
    rule = make_rule(scorer, CONFIG, 1)
    phi = adapt(rule, theta, [(scorer.batch(examples), generator(seed)) for seed, examples in enumerate(batches)])
    expected = by_hand(scorer, theta, batches)
    before = dict(theta.named_tensors())
    for (name, tensor), (_, wanted) in zip(phi.named_tensors(), expected.named_tensors(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-3, atol=1e-4, msg=name)
        assert not tensor.numel() or not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("noise", ["shared", "local"])
def test_the_loss_weighs_its_divergence(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, noise: str
) -> None:
    scorer = make_scorer(space="factor-a")
    config = ContinuedConfig(method="blob", noise=noise, blob_kl_weight=0.5)  # pyright: ignore[reportArgumentType]
    rule = make_rule(scorer, config, 1)
    state, batch = rule.init(make_theta(scorer)), scorer.batch(draw_examples(3))
    loss = rule.inner_loss(state, batch, generator(0))
    torch.testing.assert_close(loss.total, loss.nll + 0.5 * loss.kl)
    expected = [
        kl_divergence(Normal(stack.mean_A, stack.scale_A.exp()), Normal(torch.tensor(0.0), torch.tensor(0.2))).sum()
        for stack in state.phi.stacks.values()
    ]
    torch.testing.assert_close(loss.kl, torch.stack(expected).sum(), rtol=1e-5, atol=0)
    assert not torch.equal(loss.nll, rule.inner_loss(state, batch, generator(1)).nll)


def test_without_noise_and_divergence_it_is_plain_lora(
    adapt: Adapt, make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    """exp(-40) is no noise at all."""
    scorer = make_scorer(space="factor-a")
    theta, batch = make_theta(scorer), scorer.batch(draw_examples(3))
    settings = {"blob_init_log_sigma": -40.0, "blob_kl_weight": 0.0, "noise": "local"}
    fits = [
        adapt(make_rule(scorer, ContinuedConfig(method=method, **settings), 1), theta, [(batch, generator(0))] * 2)
        for method in ("blob", "structured-lora")
    ]
    for one, other in zip(fits[0].mean_tensors(), fits[1].mean_tensors(), strict=True):
        torch.testing.assert_close(one, other)
