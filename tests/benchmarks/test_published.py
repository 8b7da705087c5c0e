"""B2 follows the published description: four branches, a one-sample divergence over activations, who learns when."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributions import Gamma, Normal

from abmll.language.base import Base
from abmll.language.encoding import Encoded
from benchmarks.published import Published, PublishedSettings
from benchmarks.workload import padded

# PEFT asks transformers for a name that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QV = ("q_proj", "v_proj")
# Variances near 1 and weights near 1, so that every term shows.
LOUD = PublishedSettings(r=2, alpha=4.0, log_variance=-1.0, beta=0.3, gamma=0.2, gamma_shape=2.0, gamma_rate=0.5)


@pytest.fixture
def published(make_base: Callable[..., Base]) -> Published:
    """The algorithm on the tiny model, all its factors random."""
    return randomized(Published(make_base().model, modules=QV, num_tasks=3, settings=LOUD))


def randomized(one: Published) -> Published:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*one.phi, *one.theta):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return one


def passed(one: Published, examples: list[Encoded]) -> torch.Tensor:
    """Logits of one forward pass, after which every layer keeps its activations."""
    batch = padded(examples, one.pad_id, one.model.device)
    return one.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


@torch.no_grad()
def test_divergence_is_one_samples_log_ratio_over_all_activations(
    published: Published, examples: list[Encoded]
) -> None:
    passed(published, examples)
    expected, shapes = torch.zeros(()), set()
    for branch in published.branches:
        assert branch.kept is not None
        sample, phi, theta = branch.kept
        shapes.add(tuple(sample.shape[:2]))
        for sign, (mean, log_variance) in ((1, phi), (-1, theta)):
            expected += sign * Normal(mean, log_variance.exp().sqrt()).log_prob(sample).sum()
    assert shapes == {(3, 11)}  # padding too: the sequences have 11, 7 and 7 tokens
    torch.testing.assert_close(published.divergence(), expected, rtol=1e-4, atol=1e-2)


@torch.no_grad()
def test_prior_is_a_gaussian_on_means_and_a_gamma_on_precisions(published: Published, examples: list[Encoded]) -> None:
    passed(published, examples)
    branch = published.branches[-1]
    assert branch.kept is not None
    mean, log_variance = branch.kept[2]
    expected = -Normal(0.0, 1.0).log_prob(mean).sum()
    expected -= Gamma(torch.tensor(2.0), torch.tensor(0.5)).log_prob(torch.exp(-log_variance)).sum()
    torch.testing.assert_close(branch.negative_log_prior(LOUD), expected)


@torch.no_grad()
def test_branches_are_low_rank_maps_of_the_layers_input(published: Published) -> None:
    branch = published.branches[0]
    torch.manual_seed(0)
    x = torch.randn(2, 5, branch.base.in_features)
    mean, log_variance = branch.phi(x)
    torch.testing.assert_close(mean, 2.0 * x @ branch.phi.mean.A.T @ branch.phi.mean.B.T)
    torch.testing.assert_close(log_variance, 2.0 * x @ branch.phi.variance.A.T @ branch.phi.variance.B.T - 1.0)
    many = x.expand(4000, *x.shape)
    samples = branch(many) - branch.base(many)
    standard_errors = (samples.mean(0) - mean) * torch.exp(-0.5 * log_variance) * 4000**0.5
    assert float(standard_errors.abs().max()) < 5
    torch.testing.assert_close(samples.var(0).log(), log_variance, rtol=0, atol=0.2)


@torch.no_grad()
def test_without_noise_it_is_pefts_lora(
    published: Published, make_base: Callable[..., Base], examples: list[Encoded]
) -> None:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(QV))
    plain = get_peft_model(make_base().model, config)
    for branch in published.branches:
        branch.noise = False
    mine = iter(published.branches)
    for name, module in plain.named_modules():
        if name.endswith(QV):
            mean = next(mine).phi.mean
            module.lora_A["default"].weight.copy_(mean.A)
            module.lora_B["default"].weight.copy_(mean.B)
    batch = padded(examples, published.pad_id, published.model.device)
    expected = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(passed(published, examples)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_loss_is_answers_cross_entropy_plus_weighted_divergence(published: Published, examples: list[Encoded]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        log_probs = torch.log_softmax(passed(published, examples), -1)
        divergence = published.divergence()
    nll = torch.zeros(())
    for row, example in zip(log_probs, examples, strict=True):
        assert example.answer is not None
        for place, token in enumerate(example.options[example.answer], start=len(example.prompt) - 1):
            nll -= row[place, token]
    torch.manual_seed(0)
    torch.testing.assert_close(published.inner_step(examples), nll + 0.3 * divergence, rtol=1e-4, atol=1e-3)


def test_episode_copies_theta_and_inner_steps_move_phi_alone(published: Published, examples: list[Encoded]) -> None:
    theta = [tensor.detach().clone() for tensor in published.theta]
    published.begin_episode()
    assert all(map(torch.equal, published.phi, published.theta))
    published.inner_step(examples)
    assert all(map(torch.equal, published.theta, theta))
    assert not any(map(torch.equal, published.phi, theta))


def test_outer_step_moves_theta_alone_by_divergence_and_prior(published: Published, examples: list[Encoded]) -> None:
    """Its gradient is that of beta KL + (gamma / M) (-log p(theta)), by another way of writing it."""
    phi = [tensor.detach().clone() for tensor in published.phi]
    before = [tensor.detach().clone() for tensor in published.theta]
    torch.manual_seed(0)
    published._only(published.theta)
    passed(published, examples)
    loss = torch.zeros(())
    for branch in published.branches:
        assert branch.kept is not None
        sample, _, (mean, log_variance) = branch.kept
        loss = loss - 0.3 * Normal(mean, log_variance.exp().sqrt()).log_prob(sample).sum()
        loss = loss + 0.2 / 3 * branch.negative_log_prior(LOUD)
    gradients = torch.autograd.grad(loss, published.theta)
    torch.manual_seed(0)
    published.outer_step(examples)
    assert all(map(torch.equal, published.phi, phi))
    for tensor, start, gradient in zip(published.theta, before, gradients, strict=True):
        # AdamW's first step is lr sign(gradient), after a decay of lr * 0.01.
        start = start * (1 - LOUD.outer_rate * 0.01)
        torch.testing.assert_close(tensor.detach(), start - LOUD.outer_rate * gradient.sign(), rtol=0, atol=1e-7)


def test_episode_is_six_gradient_steps(published: Published, examples: list[Encoded]) -> None:
    published.episode([examples] * 5)
    assert {int(state["step"]) for state in published.inner.state.values()} == {5}
    assert {int(state["step"]) for state in published.outer.state.values()} == {1}
