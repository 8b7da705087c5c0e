"""ABMLL's episodes against a dense re-implementation: every d_out x d_in matrix written out, plain torch AdamW.

The noise is drawn from generators of the same seeds in the same order, so that the two agree step by step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence
from transformers import AutoModelForCausalLM

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule

K, NUM_TASKS, INIT = 2, 4, -3.0
LEARNING = LearningConfig(
    inner_steps=K,
    learning_rate=1e-2,
    scale_learning_rate=3e-2,
    outer_learning_rate=2e-2,
    outer_scale_learning_rate=5e-2,
    weight_decay=0.1,
    beta=2e-3,
    gamma=0.3,
    prior_std=0.3,
    gamma_shape=1.5,
    gamma_rate=0.02,
    noise_rank=0,  # drawn as the oracle draws it, number by number
)
Layers = dict[str, dict[str, Tensor]]  # layer -> factor -> matrix
Compare = Callable[..., tuple[dict[str, float], dict[str, float]]]


def layers_of(adapter: Adapter) -> Layers:
    """Copies of an adapter's tensors, one dictionary per layer, that may learn."""
    layers: Layers = {}
    for name, tensor in adapter.state_dict().items():
        layer, factor = name.rsplit(".", 1)
        layers.setdefault(layer, {})[factor] = tensor.clone().requires_grad_()
    return layers


class DenseAbmll:
    """The method by the book, on its own copy of the language model."""

    def __init__(self, folder: Path, theta: Adapter, config: LearningConfig, space: str, scaling: float) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).requires_grad_(False)
        self.config, self.space, self.scaling = config, space, scaling
        self.theta, self.phi = layers_of(theta), layers_of(theta)
        self.inner = self.adamw(self.phi, config.learning_rate, config.scale_learning_rate)
        self.outer = self.adamw(self.theta, config.outer_learning_rate, config.outer_scale_learning_rate)

    def adamw(self, layers: Layers, mean_rate: float, scale_rate: float) -> torch.optim.AdamW:
        groups = [
            {"params": [layer[f"{kind}_{side}"] for layer in layers.values() for side in "AB"], "lr": rate}
            for kind, rate in (("mean", mean_rate), ("scale", scale_rate))
        ]
        return torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)

    def episode(self, batches: Sequence[Sequence[Encoded]], seeds: Sequence[int]) -> None:
        with torch.no_grad():
            for name, layer in self.phi.items():
                for factor, tensor in layer.items():
                    tensor.copy_(self.theta[name][factor])
        for examples, seed in zip(batches[:K], seeds, strict=False):
            nll, kl, _ = self.terms(examples, seed)
            self.step(nll + self.config.beta * kl, self.inner, self.phi)
        nll, kl, prior = self.terms(batches[-1], seeds[K])
        loss = nll + self.config.beta * kl + self.config.gamma / NUM_TASKS * prior
        self.step(loss, self.outer, self.theta)

    def step(self, loss: Tensor, optimizer: torch.optim.AdamW, layers: Layers) -> None:
        tensors = [tensor for layer in layers.values() for tensor in layer.values()]
        gradients = torch.autograd.grad(loss, tensors)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(tensors, self.config.max_grad_norm)
        optimizer.step()

    def terms(self, examples: Sequence[Encoded], seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """NLL, KL and -log p(theta) of one forward pass."""
        width = max(len(example.prompt) for example in examples)
        ids = torch.tensor([[*example.prompt, *[0] * (width - len(example.prompt))] for example in examples])
        mask = torch.arange(width) < torch.tensor([[len(example.prompt)] for example in examples])
        kl: list[Tensor] = []
        prior: list[Tensor] = []
        with self.hooked(torch.Generator().manual_seed(seed), mask, kl, prior):
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        nll = torch.zeros(())
        for row, example in zip(logits, examples, strict=True):
            log_probs = row[len(example.prompt) - 1].log_softmax(-1)
            options = log_probs[[option[0] for option in example.options]]
            assert example.answer is not None
            chosen = options if self.config.loss == "tokens" else options.log_softmax(-1)
            nll = nll - chosen[example.answer]
        return nll, torch.stack(kl).sum(), torch.stack(prior).sum()

    @contextmanager
    def hooked(self, generator: torch.Generator, mask: Tensor, kl: list[Tensor], prior: list[Tensor]) -> Iterator[None]:
        compute = self.weights if self.space == "weight" else self.outputs
        handles = [
            self.model.get_submodule(name).register_forward_hook(partial(compute, name, generator, mask, kl, prior))
            for name in self.phi
        ]
        yield
        for handle in handles:
            handle.remove()

    def weights(
        self,
        name: str,
        generator: torch.Generator,
        mask: Tensor,
        kl: list[Tensor],
        prior: list[Tensor],
        module: torch.nn.Module,
        inputs: tuple[Tensor],
        output: Tensor,
    ) -> Tensor:
        """Weight space: W ~ N(W0 + s B A, (exp(b) exp(a))^2), drawn per example, or its output drawn per token."""

        def gaussian(layer: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return self.scaling * layer["mean_B"] @ layer["mean_A"], layer["scale_B"].exp() @ layer["scale_A"].exp()

        (mean, sigma), (mean0, sigma0) = gaussian(self.phi[name]), gaussian(self.theta[name])
        self.collect(mean, sigma, mean0, sigma0, kl, prior)
        (x,) = inputs
        if self.config.noise == "shared":  # one matrix an example, drawn input by output
            drawn = torch.randn(len(x), *sigma.mT.shape, generator=generator)
            return output + x @ mean.mT + x @ (sigma.mT * drawn)
        std = (x.square() @ sigma.square().mT).clamp_min(1e-30).sqrt()  # padding is embedded as zero
        return output + x @ mean.mT + std * torch.randn(std.shape, generator=generator)

    def outputs(
        self,
        name: str,
        generator: torch.Generator,
        mask: Tensor,
        kl: list[Tensor],
        prior: list[Tensor],
        module: torch.nn.Module,
        inputs: tuple[Tensor],
        output: Tensor,
    ) -> Tensor:
        """Output space: y ~ N(W0 x + s B A x, exp(s B' A' x + 2 INIT)), every token and channel."""
        (x,) = inputs

        def gaussian(layer: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            log_variance = self.scaling * x @ (layer["scale_B"] @ layer["scale_A"]).mT + 2 * INIT
            return self.scaling * x @ (layer["mean_B"] @ layer["mean_A"]).mT, (0.5 * log_variance).exp()

        (mean, sigma), (mean0, sigma0) = gaussian(self.phi[name]), gaussian(self.theta[name])
        self.collect(mean[mask], sigma[mask], mean0[mask], sigma0[mask], kl, prior)
        drawn_tokens = 1 if self.config.noise == "shared" else x.shape[1]
        return output + mean + sigma * torch.randn(len(x), drawn_tokens, sigma.shape[-1], generator=generator)

    def collect(
        self, mean: Tensor, sigma: Tensor, mean0: Tensor, sigma0: Tensor, kl: list[Tensor], prior: list[Tensor]
    ) -> None:
        """The two divergences of the paper, in double precision because the textbook formulas cancel."""
        mean, sigma, mean0, sigma0 = mean.double(), sigma.double(), mean0.double(), sigma0.double()
        config = self.config
        kl.append(kl_divergence(Normal(mean, sigma), Normal(mean0, sigma0)).sum())
        means = Normal(torch.zeros_like(mean0), config.prior_std).log_prob(mean0).sum()
        shape, rate = (torch.tensor(number).double() for number in (config.gamma_shape, config.gamma_rate))
        prior.append(-means - Gamma(shape, rate).log_prob(sigma0**-2).sum())


@torch.no_grad()
def distance(ours: Adapter, dense: Layers, start: Layers) -> dict[str, float]:
    """For each kind of factor, how far the two results are apart, relative to how far the oracle has gone."""
    apart: dict[str, float] = dict.fromkeys(("mean_A", "mean_B", "scale_A", "scale_B"), 0.0)
    gone: dict[str, float] = dict.fromkeys(apart, 0.0)
    for layer, factors in layers_of(ours).items():
        for factor, tensor in factors.items():
            apart[factor] += float((tensor - dense[layer][factor]).square().sum())
            gone[factor] += float((start[layer][factor] - dense[layer][factor]).square().sum())
    return {factor: (apart[factor] / gone[factor]) ** 0.5 for factor in apart}


@pytest.fixture
def compare(
    tiny_llama: Path,
    make_scorer: Callable[..., OptionScorer],
    make_theta: Callable[[OptionScorer], Adapter],
    draw_examples: Callable[..., list[Encoded]],
) -> Compare:
    """Two episodes of both implementations; how far phi and theta are apart afterwards.

    ``oracle`` changes settings of the oracle alone, ``num_tasks`` the rule's M.
    """

    def run(
        space: str, settings: dict[str, Any], oracle: dict[str, Any] | None = None, num_tasks: int = NUM_TASKS
    ) -> tuple[dict[str, float], dict[str, float]]:
        config = LearningConfig(**{**vars(LEARNING), **settings})
        scorer = make_scorer(space=space, init_log_sigma=INIT)
        scorer.packed = False  # the oracle draws its noise for padded examples
        theta = make_theta(scorer)
        start = layers_of(theta)
        rule = make_rule(scorer, config, num_tasks)
        state = rule.init(theta)
        dense_config = LearningConfig(**{**vars(config), **(oracle or {})})
        dense = DenseAbmll(tiny_llama, theta, dense_config, space, scorer.space.scaling)
        # Below d_in tokens the shared sample is drawn in another, equally distributed, way.
        shortest = 50 if config.noise == "shared" else 4
        for episode in range(2):
            batches = [draw_examples(4, seed=10 * episode + k, shortest=shortest) for k in range(K)]
            seeds = [100 * episode + k for k in range(K + 1)]
            rule.begin_episode(state, done=0.0)
            for k in range(K):
                rule.inner_step(state, scorer.batch(batches[k]), torch.Generator().manual_seed(seeds[k]), rate=1.0)
            generator = torch.Generator().manual_seed(seeds[K])
            rule.outer_step(state, scorer.batch(batches[-1]), generator, rate=1.0)
            dense.episode(batches, seeds)
        return distance(state.phi, dense.phi, start), distance(state.theta, dense.theta, start)

    return run


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "weight": ("weight", {}),
    "weight, clipped": ("weight", {"max_grad_norm": 0.5}),
    "weight, tokens": ("weight", {"loss": "tokens"}),
    "weight, shared noise": ("weight", {"noise": "shared"}),
    "output": ("output", {}),
    "output, shared noise": ("output", {"noise": "shared"}),
}


@pytest.mark.parametrize("case", CASES)
def test_episodes_equal_the_dense_oracle(compare: Compare, case: str) -> None:
    phi, theta = compare(*CASES[case])
    assert max(phi.values()) < 1e-4, phi
    assert max(theta.values()) < 1e-4, theta


CHANGES: dict[str, Any] = {
    "learning_rate": 1.1e-2,
    "scale_learning_rate": 3.3e-2,
    "outer_learning_rate": 2.2e-2,
    "outer_scale_learning_rate": 5.5e-2,
    "weight_decay": 0.0,
    "beta": 2.4e-3,
    "gamma": 0.5,
    "prior_std": 0.25,
    "gamma_shape": 2.5,
    "gamma_rate": 0.002,
    "loss": "tokens",
    "max_grad_norm": 0.5,
}


@pytest.mark.parametrize("setting", CHANGES)
def test_the_oracle_sees_a_change_of_any_setting(compare: Compare, setting: str) -> None:
    """Where the two agree, every one of these settings has been read, and as the equations have it."""
    phi, theta = compare("weight", {}, {setting: CHANGES[setting]})
    assert max(*phi.values(), *theta.values()) > 1e-3


def test_the_number_of_tasks_shares_out_the_prior(compare: Compare) -> None:
    """gamma / M: twice the tasks and twice gamma are the same; twice the tasks alone are not."""
    _, theta = compare("weight", {"gamma": 2 * LEARNING.gamma}, {"gamma": LEARNING.gamma}, 2 * NUM_TASKS)
    assert max(theta.values()) < 1e-4
    _, theta = compare("weight", {}, num_tasks=2 * NUM_TASKS)
    assert max(theta.values()) > 1e-3
