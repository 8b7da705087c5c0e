"""KL of the weight space against torch.distributions on the dense Gaussians, and its numerics near equality."""

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from abmll.posterior import Factors, Prior, WeightSpace
from abmll.posterior.any_rank import tiled_kl
from abmll.posterior.rank_one import rank_one_kl
from abmll.posterior.tiles import row_tiles

SCALING = 2.0
FORMS = [(1, 0.0), (1, 0.2), (3, 0.0), (3, 0.2)]


def dense_gradients(dense_normal, phi: Factors, theta: Factors, floor: float) -> tuple[Tensor, ...]:
    leaves = [tensor.double().requires_grad_() for tensor in (*phi, *theta)]
    normals = (dense_normal(Factors(*part), SCALING, floor) for part in (leaves[:4], leaves[4:]))
    return torch.autograd.grad(kl_divergence(*normals).sum(), leaves)


def own_gradients(phi: Factors, theta: Factors, floor: float, k: int) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in (*phi, *theta)]
    space = WeightSpace(SCALING, k, floor)
    return torch.autograd.grad(space.kl(Factors(*leaves[:4]), Factors(*leaves[4:])), leaves)


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize(("d_out", "d_in"), [(5, 7), (1, 4), (6, 1)])
def test_kl_equals_torch_distributions(make_factors, dense_normal, k, floor, d_out, d_in):
    phi, theta = (make_factors(d_out=d_out, d_in=d_in, k=k) for _ in range(2))
    expected = kl_divergence(dense_normal(phi, SCALING, floor), dense_normal(theta, SCALING, floor)).sum()
    torch.testing.assert_close(WeightSpace(SCALING, k, floor).kl(phi, theta), expected, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize(("k", "floor"), FORMS)
def test_gradients_of_all_eight_factors_equal_dense_autograd(make_factors, dense_normal, k, floor):
    phi, theta = make_factors(k=k), make_factors(k=k)
    expected = dense_gradients(dense_normal, phi, theta, floor)
    for mine, oracle in zip(own_gradients(phi, theta, floor, k), expected, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-9, atol=1e-9)


def test_finite_differences(make_factors):
    leaves = [t.requires_grad_() for _ in range(2) for t in make_factors(num_layers=1, d_out=2, d_in=3, r=1)]

    def closed(*tensors: Tensor) -> Tensor:
        return rank_one_kl(Factors(*tensors[:4]), Factors(*tensors[4:]), SCALING)

    def tiled(*tensors: Tensor) -> Tensor:
        return tiled_kl(Factors(*tensors[:4]), Factors(*tensors[4:]), SCALING, 0.1)

    assert torch.autograd.gradcheck(closed, leaves)
    assert torch.autograd.gradgradcheck(closed, leaves)
    assert torch.autograd.gradcheck(tiled, leaves)


@pytest.mark.parametrize("learned", ["phi", "theta", "phi scale", "theta mean", ""])
def test_what_no_gradient_is_asked_of_changes_no_other(make_factors, learned):
    factors = {"phi": make_factors(k=2), "theta": make_factors(k=2)}
    oracle = {role: part.clone_detached().requires_grad_() for role, part in factors.items()}
    expected = tiled_kl(oracle["phi"], oracle["theta"], SCALING, 0.1)
    expected.backward()
    for role, part in factors.items():
        for name, tensor in zip(part._fields, part, strict=True):
            tensor.requires_grad_(bool(learned) and f"{role} {name}".startswith(learned))
    value = tiled_kl(factors["phi"], factors["theta"], SCALING, 0.1)
    assert value.item() == expected.item()
    assert value.requires_grad == bool(learned)
    if learned:
        value.backward()
    for role, part in factors.items():
        for tensor, twin in zip(part, oracle[role], strict=True):
            assert (tensor.grad is not None) == tensor.requires_grad
            assert tensor.grad is None or torch.equal(tensor.grad, twin.grad)


def test_an_accelerator_is_never_waited_for(make_factors):
    """Tensors without values: whoever asks for one is refused."""
    factors = [tensor.to("meta").requires_grad_() for _ in range(2) for tensor in make_factors(k=2)]
    phi, theta = Factors(*factors[:4]), Factors(*factors[4:])
    space = WeightSpace(SCALING, 2, 0.1)
    (space.kl(phi, theta) + space.negative_log_prior(theta, Prior(1.0, 2.0, 0.5))).backward()
    space.log_sigma_mean(theta)
    assert all(tensor.grad is not None for tensor in factors)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        phi.mean_A.sum().item()


def test_tiled_form_refuses_a_second_derivative(make_factors):
    phi, theta = make_factors(k=2).requires_grad_(), make_factors(k=2)
    loss = phi.scale_A.square().sum() + tiled_kl(phi, theta, SCALING, 0.0)
    with pytest.raises(NotImplementedError, match="differentiable only once"):
        torch.autograd.grad(loss, phi.scale_A, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiled_form_equals_closed_form_where_both_apply(make_factors, dtype):
    phi, theta = make_factors(dtype=dtype), make_factors(dtype=dtype)
    torch.testing.assert_close(tiled_kl(phi, theta, SCALING, 0.0), rank_one_kl(phi, theta, SCALING))


@pytest.mark.parametrize(("k", "floor"), FORMS)
def test_kl_of_equals_is_exactly_zero_and_so_is_its_gradient(make_factors, k, floor):
    theta = make_factors(k=k, dtype=torch.float32)
    space = WeightSpace(SCALING, k, floor)
    assert space.kl(theta.clone_detached(), theta).item() == 0.0
    assert all(gradient.abs().max() == 0.0 for gradient in own_gradients(theta, theta, floor, k))


def accurate_dense_kl(tensors: list[Tensor], floor: float) -> Tensor:
    """The dense KL in float64 through delta = sigma / sigma' - 1, good to 1e-10 at perturbations of 1e-6."""
    phi, theta = Factors(*tensors[:4]), Factors(*tensors[4:])
    components = (theta.scale_B[..., :, :, None] + theta.scale_A[..., None, :, :]).exp()
    shift_B, shift_A = phi.scale_B - theta.scale_B, phi.scale_A - theta.scale_A
    sigma = components.sum(dim=-2) + floor
    growth = (components * torch.expm1(shift_B[..., :, :, None] + shift_A[..., None, :, :])).sum(dim=-2) / sigma
    distance = SCALING * (phi.mean_B @ phi.mean_A - theta.mean_B @ theta.mean_A) / sigma
    return 0.5 * (growth.square() + 2 * (growth - torch.log1p(growth)) + distance.square()).sum()


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("only_scale", [True, False])
@pytest.mark.parametrize("distance", [1e-6, 1e-3, 0.03, 0.1, 0.3])
def test_single_precision_survives_near_equality(generator, k, floor, only_scale, distance):
    """phi = theta + 1e-6: the naive formula in float32 has no correct digit here. Further apart others might do so."""
    theta = WeightSpace(SCALING, k, floor).init(2, 48, 64, 8, generator)
    theta.mean_B.normal_(std=0.05, generator=generator)
    phi = theta.clone_detached()
    for tensor in phi[2:] if only_scale else phi:
        tensor.add_(distance * torch.randn(tensor.shape, generator=generator))
    leaves = [tensor.double().requires_grad_() for tensor in (*phi, *theta)]
    oracle = accurate_dense_kl(leaves, floor)
    expected = torch.autograd.grad(oracle, leaves)
    value = WeightSpace(SCALING, k, floor).kl(phi, theta).double()
    torch.testing.assert_close(value, oracle.detach(), rtol=2e-5, atol=0.0)
    for mine, gradient in zip(own_gradients(phi, theta, floor, k), expected, strict=True):
        assert (mine - gradient).norm() <= 2e-5 * gradient.norm()


@pytest.mark.parametrize("k", [1, 3])
def test_moving_a_constant_between_the_factors_of_sigma_changes_nothing(make_factors, k):
    phi, theta = make_factors(k=k, dtype=torch.float32), make_factors(k=k, dtype=torch.float32)
    space = WeightSpace(SCALING, k)
    moved = phi._replace(scale_A=phi.scale_A - 4.0, scale_B=phi.scale_B + 4.0)
    torch.testing.assert_close(space.kl(moved, theta), space.kl(phi, theta), rtol=1e-5, atol=0.0)
    moved_theta = theta._replace(scale_A=theta.scale_A - 4.0, scale_B=theta.scale_B + 4.0)
    assert space.kl(moved_theta, theta) < 1e-9


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shift", [-25.0, 8.0])
def test_sigmas_many_orders_apart(make_factors, dense_normal, k, shift):
    phi, theta = make_factors(k=k, dtype=torch.float32), make_factors(k=k, dtype=torch.float32)
    phi = phi._replace(scale_B=phi.scale_B + shift)
    expected = kl_divergence(dense_normal(phi, SCALING), dense_normal(theta, SCALING)).sum()
    torch.testing.assert_close(WeightSpace(SCALING, k).kl(phi, theta).double(), expected, rtol=1e-5, atol=0.0)
    gradients = dense_gradients(dense_normal, phi, theta, 0.0)
    for mine, oracle in zip(own_gradients(phi, theta, 0.0, k), gradients, strict=True):
        assert (mine - oracle).norm() <= 1e-5 * oracle.norm()


def test_row_tiles_cover_every_row_once_and_stay_small():
    tiles = row_tiles(num_layers=4, d_out=1000, d_in=3000, device=torch.device("cpu"))
    assert [row for tile in tiles for row in range(tile.start, tile.stop)] == list(range(1000))
    assert max(tile.stop - tile.start for tile in tiles) * 4 * 3000 <= 2**18
    assert row_tiles(1, 3, 2**20, torch.device("cpu")) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize(("num_layers", "d_out", "rows"), [(1, 300, {256, 44}), (2, 300, {256, 44}), (5, 100, {100})])
def test_several_ragged_tiles(make_factors, dense_normal, num_layers, d_out, rows):
    """Of the rows of a layer; of the layers, two and two and one."""
    phi, theta = (make_factors(num_layers=num_layers, d_out=d_out, d_in=1024, k=2, r=2) for _ in range(2))
    assert {tile.stop - tile.start for tile in row_tiles(1, d_out, 1024, torch.device("cpu"))} == rows
    expected = dense_gradients(dense_normal, phi, theta, 0.0)
    for mine, oracle in zip(own_gradients(phi, theta, 0.0, 2), expected, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-8, atol=1e-8)
