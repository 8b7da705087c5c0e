"""Dropout as a distribution: its moments by going through all masks, its samples by their frequency."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch

from abmll.common.errors import ConfigError
from abmll.posterior import Factors, Noise, Prior
from abmll.posterior.bernoulli import DropoutSpace

RATE, SCALING, D_IN = 0.3, 1.7, 4
SPACE = DropoutSpace(SCALING, RATE)


@pytest.fixture
def factors(generator: torch.Generator) -> Factors:
    fresh = SPACE.init(1, 3, D_IN, 2, generator)
    return Factors(*(torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in fresh))


def outputs(factors: Factors, x: torch.Tensor) -> dict[tuple[bool, ...], torch.Tensor]:
    """Every mask's output (T, d_out) for tokens x (T, d_in)."""
    weights = SCALING * factors.mean_B[0] @ factors.mean_A[0]
    masks = product((False, True), repeat=D_IN)
    return {mask: (x * torch.tensor(mask) / (1 - RATE)) @ weights.T for mask in masks}


def chance(mask: tuple[bool, ...]) -> float:
    return RATE ** mask.count(False) * (1 - RATE) ** mask.count(True)


@pytest.mark.parametrize(("kind", "tokens"), [("shared", 2), ("local", 1)])
def test_samples_are_masks_with_their_chances(factors: Factors, kind: Any, tokens: int) -> None:
    """A shared mask is the same for both tokens: their output is one of the sixteen."""
    x = torch.arange(1.0, 1 + tokens * D_IN, dtype=torch.float64).view(tokens, D_IN)
    known, generator = outputs(factors, x), torch.Generator().manual_seed(0)
    seen: Counter[tuple[bool, ...]] = Counter()
    for _ in range(2000):
        drawn = SPACE.layers(factors, Noise(kind, generator))[0](x[None])[0]
        [mask] = [mask for mask, output in known.items() if torch.allclose(output, drawn)]
        seen[mask] += 1
    for mask in known:
        assert seen[mask] / 2000 == pytest.approx(chance(mask), abs=0.03)


def test_local_masks_differ_from_token_to_token(factors: Factors) -> None:
    x = torch.ones(1, 20, D_IN, dtype=torch.float64)
    drawn = SPACE.layers(factors, Noise("local", torch.Generator().manual_seed(0)))[0](x)[0]
    assert len({tuple(row.tolist()) for row in drawn}) > 5


def test_mean_and_covariance_are_those_over_all_masks(factors: Factors, generator: torch.Generator) -> None:
    x = torch.randn(2, D_IN, generator=generator, dtype=torch.float64)
    gradients = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)  # two functions of two tokens' outputs
    mean = SPACE.layers(factors, None)[0](x)
    known = outputs(factors, x)
    torch.testing.assert_close(torch.stack([chance(mask) * known[mask] for mask in known]).sum(0), mean)
    leads = {mask: torch.einsum("dti,ti->d", gradients, output - mean) for mask, output in known.items()}
    expected = torch.stack([chance(mask) * lead.outer(lead) for mask, lead in leads.items()]).sum(0)
    found = SPACE.linear_covariance(factors.unbind()[0], x[None], gradients[None])[0]
    torch.testing.assert_close(found, expected)


def test_no_dropout_is_the_mean(factors: Factors) -> None:
    x = torch.ones(1, 2, D_IN, dtype=torch.float64)
    space = DropoutSpace(SCALING, 0.0)
    for kind in ("shared", "local"):
        drawn = space.layers(factors, Noise(kind, torch.Generator().manual_seed(0)))[0](x)
        torch.testing.assert_close(drawn, space.layers(factors, None)[0](x))


def test_what_it_has_not_is_refused(factors: Factors) -> None:
    with pytest.raises(ConfigError, match="no divergence between factors; use the space 'weight'"):
        SPACE.kl(factors, factors)
    with pytest.raises(ConfigError, match="no prior on factors; use the space 'weight'"):
        SPACE.negative_log_prior(factors, Prior(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"dropout_rate is 1\.0: give a number of 0 or more and below 1"):
        DropoutSpace(SCALING, 1.0)
