"""Random factors, and what they mean as dense Gaussians: the oracle of every closed form in this folder."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from abmll.posterior import Factors, Noise, Space

MakeFactors = Callable[..., Factors]
DenseNormal = Callable[..., Normal]
Delta = Callable[..., Tensor]
Quadrature = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_factors(generator: torch.Generator) -> MakeFactors:
    """make_factors(L, d_out, d_in, r, k, dtype=float64): means of order 1, log sigma around -1."""

    def make(
        num_layers: int = 2, d_out: int = 5, d_in: int = 7, r: int = 3, k: int = 1, dtype: torch.dtype = torch.float64
    ) -> Factors:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        return Factors(
            normal(num_layers, r, d_in),
            normal(num_layers, d_out, r),
            0.3 * normal(num_layers, k, d_in) - 0.5,
            0.3 * normal(num_layers, d_out, k) - 0.5,
        )

    return make


@pytest.fixture
def delta() -> Delta:
    """delta(space, layer, x, noise): what one layer adds to its output."""

    def update(space: Space, layer: Factors, x: Tensor, noise: Noise | None) -> Tensor:
        return space.layers(Factors(*(tensor[None] for tensor in layer)), noise)[0](x)

    return update


@pytest.fixture
def dense_normal() -> DenseNormal:
    """dense_normal(factors, scaling, floor=0): the elementwise Gaussian over the weights, in float64."""

    def dense(factors: Factors, scaling: float, floor: float = 0.0) -> Normal:
        mean_A, mean_B, scale_A, scale_B = (tensor.double() for tensor in factors)
        log_sigma = scale_B[..., :, :, None] + scale_A[..., None, :, :]
        return Normal(scaling * mean_B @ mean_A, log_sigma.exp().sum(dim=-2) + floor)

    return dense


@pytest.fixture
def quadrature() -> Quadrature:
    """quadrature(directions, points): Gauss and Hermite's rule for scores that are standard normals along D directions.

    Directions are (N, C) each, (D, N, C). Returns scores (G, N, C) and the logarithms of their weights (G,).
    """

    def grid(directions: Tensor, points: int) -> tuple[Tensor, Tensor]:
        nodes, weights = (torch.from_numpy(one) for one in np.polynomial.hermite_e.hermegauss(points))
        logs = weights.log() - 0.5 * math.log(2 * math.pi)
        places = torch.cartesian_prod(*[nodes] * len(directions)).view(-1, len(directions))
        total = torch.cartesian_prod(*[logs] * len(directions)).view(-1, len(directions)).sum(-1)
        return torch.einsum("gd,dnc->gnc", places, directions), total

    return grid
