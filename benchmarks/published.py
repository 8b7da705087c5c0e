"""B2, the published algorithm (arXiv 2508.14285 and the settings behind its numbers), for comparison only.

Every adapted layer has four low-rank branches on its input x: mean and log variance of phi, mean and log variance of
theta. The layer's output is W0 x plus a sample of N(mu_phi(x), sigma_phi^2(x)). The divergence is one sample's
log q - log p, summed over layers, tokens (padding too) and channels, from the activations that the layers keep. A task
episode copies theta into phi, takes K AdamW steps on phi, and runs one more forward pass for an AdamW step on theta.
Logits are computed for the whole vocabulary at every position.

Where the descriptions leave a choice, the cheaper reading is taken: while one of the two adapters learns the other
takes no gradient, and AdamW is the fused one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from abmll.language.encoding import Encoded
from abmll.language.targets import find_targets
from benchmarks.workload import IGNORED, padded


@dataclass(frozen=True)
class PublishedSettings:
    """The published values; ``log_variance`` is the start of log sigma^2, which the branches add to."""

    r: int = 8
    alpha: float = 16.0
    log_variance: float = -20.0
    beta: float = 1e-8
    gamma: float = 1e-8
    gamma_shape: float = 1.0
    gamma_rate: float = 0.01
    inner_rate: float = 1e-5
    outer_rate: float = 5e-5


class LowRank(nn.Module):
    """(..., d_in) -> (..., d_out): (alpha / r) B A x, with LoRA's start."""

    def __init__(self, like: nn.Linear, settings: PublishedSettings) -> None:
        super().__init__()
        place = {"device": like.weight.device, "dtype": like.weight.dtype}
        self.A = nn.Parameter(torch.empty(settings.r, like.in_features, **place))
        self.B = nn.Parameter(torch.zeros(like.out_features, settings.r, **place))
        self.scaling = settings.alpha / settings.r
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scaling * F.linear(F.linear(x, self.A), self.B)


class Gaussian(nn.Module):
    """Mean and log variance of a layer's output, each a low-rank map of its input."""

    def __init__(self, like: nn.Linear, settings: PublishedSettings) -> None:
        super().__init__()
        self.mean = LowRank(like, settings)
        self.variance = LowRank(like, settings)
        self.log_variance = settings.log_variance

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.variance(x) + self.log_variance


class FourBranches(nn.Module):
    """A frozen linear layer with phi and theta beside it; keeps the activations of its last forward pass."""

    def __init__(self, base: nn.Linear, settings: PublishedSettings) -> None:
        super().__init__()
        self.base = base
        self.phi = Gaussian(base, settings)
        self.theta = Gaussian(base, settings)
        self.noise = True
        self.kept: tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.phi(x)
        sample = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance) if self.noise else mean
        self.kept = sample, (mean, log_variance), self.theta(x)
        return self.base(x) + sample

    def divergence(self) -> Tensor:
        """log q(sample) - log p(sample) of the last pass, summed over tokens and channels."""
        assert self.kept is not None
        sample, phi, theta = self.kept
        return (normal_log_density(sample, *phi) - normal_log_density(sample, *theta)).sum()

    def negative_log_prior(self, settings: PublishedSettings) -> Tensor:
        """-log N(mu_theta; 0, 1) - log Gamma(1 / sigma_theta^2; a0, b0) of the last pass, summed likewise."""
        assert self.kept is not None
        _, _, (mean, log_variance) = self.kept
        gaussian = normal_log_density(mean, torch.zeros_like(mean), torch.zeros_like(mean))
        shape, rate = settings.gamma_shape, settings.gamma_rate
        constant = shape * math.log(rate) - math.lgamma(shape)
        gamma = constant - (shape - 1.0) * log_variance - rate * torch.exp(-log_variance)
        return -(gaussian + gamma).sum()


def normal_log_density(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(value; mean, exp(log_variance)), elementwise."""
    squares = (value - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squares + log_variance + math.log(2.0 * math.pi))


class Published:
    """The algorithm on ``model``, which it changes; ``num_tasks`` is the number of training tasks M."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        modules: tuple[str, ...],
        layers: str | None = None,
        num_tasks: int = 1,
        settings: PublishedSettings | None = None,
    ) -> None:
        self.settings = settings or PublishedSettings()
        self.num_tasks = num_tasks
        self.model = model.requires_grad_(False)
        self.pad_id = model.config.get_text_config().pad_token_id or 0
        self.branches: list[FourBranches] = []
        for target in find_targets(model, modules, layers):
            base = model.get_submodule(target.name)
            assert isinstance(base, nn.Linear)
            self.branches.append(FourBranches(base, self.settings))
            model.set_submodule(target.name, self.branches[-1])
        self.phi = [parameter for branch in self.branches for parameter in branch.phi.parameters()]
        self.theta = [parameter for branch in self.branches for parameter in branch.theta.parameters()]
        self.inner = torch.optim.AdamW(self.phi, lr=self.settings.inner_rate, fused=True)
        self.outer = torch.optim.AdamW(self.theta, lr=self.settings.outer_rate, fused=True)

    def episode(self, batches: Sequence[Sequence[Encoded]]) -> None:
        """phi <- theta, a step on phi for each batch, then a step on theta on the last of them."""
        self.begin_episode()
        for batch in batches:
            self.inner_step(batch)
        self.outer_step(batches[-1])

    def begin_episode(self) -> None:
        """phi <- theta; the moments of phi's AdamW persist."""
        with torch.no_grad():
            for phi, theta in zip(self.phi, self.theta, strict=True):
                phi.copy_(theta)

    def inner_step(self, examples: Sequence[Encoded]) -> Tensor:
        """One AdamW step on phi; returns the loss NLL + beta KL."""
        self._only(self.phi)
        return self._step(self._evidence(examples), self.inner)

    def outer_step(self, examples: Sequence[Encoded]) -> Tensor:
        """One AdamW step on theta; returns the loss NLL + beta KL + (gamma / M) (-log p(theta))."""
        self._only(self.theta)
        loss = self._evidence(examples)
        prior = torch.stack([branch.negative_log_prior(self.settings) for branch in self.branches]).sum()
        return self._step(loss + self.settings.gamma / self.num_tasks * prior, self.outer)

    def _evidence(self, examples: Sequence[Encoded]) -> Tensor:
        """NLL of the answers' tokens plus beta KL, of one sampled forward pass."""
        batch = padded(examples, self.pad_id, self.model.device)
        logits = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        flat = logits[:, :-1].float().flatten(0, 1)
        nll = F.cross_entropy(flat, batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
        return nll + self.settings.beta * self.divergence()

    def divergence(self) -> Tensor:
        """The one-sample divergence of the last forward pass, over all layers."""
        return torch.stack([branch.divergence() for branch in self.branches]).sum()

    def _only(self, learning: list[nn.Parameter]) -> None:
        """Gradients for the adapter that learns, none for the other."""
        for parameter in (*self.phi, *self.theta):
            parameter.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for branch in self.branches:
            branch.kept = None
        return loss.detach()
