"""Adapters as containers: one stack a shape in memory, named layers on disk, and strict loading."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from abmll.common.errors import CheckpointError
from abmll.language.adapter import Adapter
from abmll.posterior import Space, WeightSpace
from abmll.posterior.output import OutputSpace

SHAPES = {"a.q_proj": (8, 6), "a.v_proj": (4, 6), "b.q_proj": (8, 6), "b.v_proj": (4, 6), "b.up_proj": (8, 6)}


def filled(seed: int = 0, r: int = 3, space: Space | None = None) -> Adapter:
    """An adapter with random numbers in every tensor."""
    adapter = Adapter.create(SHAPES, r, space or WeightSpace(2.0), seed)
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in adapter.named_tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return adapter


def equal(one: Adapter, other: Adapter) -> bool:
    pairs = zip(one.named_tensors(), other.named_tensors(), strict=True)
    return all(name == theirs and torch.equal(a, b) for (name, a), (theirs, b) in pairs)


def test_layers_of_one_shape_share_a_stack() -> None:
    adapter = Adapter.create(SHAPES, 3, WeightSpace(2.0), seed=0)
    assert adapter.layers == {"8x6": ("a.q_proj", "b.q_proj", "b.up_proj"), "4x6": ("a.v_proj", "b.v_proj")}
    assert [tuple(tensor.shape) for tensor in adapter.stacks["8x6"]] == [(3, 3, 6), (3, 8, 3), (3, 1, 6), (3, 8, 1)]
    assert [name for name, _ in adapter.named_tensors()] == [
        f"{shape}.{field}" for shape in ("8x6", "4x6") for field in ("mean_A", "mean_B", "scale_A", "scale_B")
    ]
    assert all(tensor.dtype == torch.float32 for _, tensor in adapter.named_tensors())
    by_hand = sum((d_out + d_in) * (3 + 1) for d_out, d_in in SHAPES.values())
    assert sum(tensor.numel() for _, tensor in adapter.named_tensors()) == by_hand
    assert len(adapter.mean_tensors()) == len(adapter.scale_tensors()) == 4


def test_a_fresh_adapter_follows_from_its_seed_and_has_mean_zero() -> None:
    first, again, other = (Adapter.create(SHAPES, 3, WeightSpace(2.0), seed) for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)
    for layer in first.by_layer().values():
        assert torch.count_nonzero(layer.mean_B @ layer.mean_A) == 0
        assert torch.count_nonzero(layer.mean_A) > 0


def test_layers_are_views_into_the_stacks_and_gradients_reach_them() -> None:
    adapter = filled().requires_grad_()
    layers = adapter.by_layer()
    assert set(layers) == set(SHAPES)
    assert torch.equal(layers["b.up_proj"].mean_B, adapter.stacks["8x6"].mean_B[2])
    layers["b.v_proj"].scale_A.sum().backward()
    gradient = adapter.stacks["4x6"].scale_A.grad
    assert gradient is not None
    assert gradient[0].eq(0).all()
    assert gradient[1].eq(1).all()


def test_a_clone_has_its_own_memory_and_no_gradient() -> None:
    adapter = filled().requires_grad_()
    clone = adapter.clone()
    assert equal(adapter, clone)
    assert not any(tensor.requires_grad for _, tensor in clone.named_tensors())
    with torch.no_grad():
        for _, tensor in clone.named_tensors():
            tensor.zero_()
    assert equal(adapter, filled())


def test_copying_values_keeps_the_memory() -> None:
    adapter = filled(0).requires_grad_()
    before = [tensor.data_ptr() for _, tensor in adapter.named_tensors()]
    adapter.copy_(filled(1))
    assert equal(adapter, filled(1))
    assert [tensor.data_ptr() for _, tensor in adapter.named_tensors()] == before
    assert all(tensor.requires_grad for _, tensor in adapter.named_tensors())


@pytest.mark.parametrize("space", [WeightSpace(2.0), WeightSpace(2.0, sigma_rank=2), OutputSpace(2.0)])
def test_on_disk_every_layer_has_its_own_tensors_and_comes_back_bit_for_bit(space: Space, tmp_path: Path) -> None:
    adapter = filled(0, space=space)
    save_file(adapter.state_dict(), tmp_path / "phi.safetensors")
    state = load_file(tmp_path / "phi.safetensors")
    fields = ("mean_A", "mean_B", "scale_A", "scale_B")
    assert set(state) == {f"{name}.{field}" for name in SHAPES for field in fields}
    assert torch.equal(state["b.q_proj.mean_B"], adapter.stacks["8x6"].mean_B[1])
    # Numbers and their names: nothing else is stored.
    size = (tmp_path / "phi.safetensors").stat().st_size
    count = sum(tensor.numel() for _, tensor in adapter.named_tensors())
    assert 4 * count < size < 4 * count + 200 * len(state)
    other = filled(1, space=space)
    other.load_state_dict(state, "phi.safetensors")
    assert equal(other, adapter)


def test_loading_keeps_the_memory_and_works_while_gradients_are_on() -> None:
    adapter = filled(1).requires_grad_()
    before = [tensor.data_ptr() for _, tensor in adapter.named_tensors()]
    adapter.load_state_dict(filled(0).state_dict(), "file")
    assert [tensor.data_ptr() for _, tensor in adapter.named_tensors()] == before
    assert equal(adapter, filled(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    state = {name: tensor.clone() for name, tensor in filled(1).state_dict().items()}
    state["b.v_proj.scale_B"][2, 0] = bad
    refused(state, r"^file: b\.v_proj\.scale_B holds values that are not finite numbers; the file is damaged$")


def test_a_missing_tensor_is_refused() -> None:
    state = filled(1).state_dict()
    del state["a.q_proj.mean_A"]
    refused(state, r"^file: lacks tensor a\.q_proj\.mean_A; it belongs to another model or adapter setting$")


def test_an_unknown_tensor_is_refused() -> None:
    state = filled(1).state_dict() | {"c.q_proj.mean_A": torch.zeros(1)}
    refused(state, r"^file: has the unknown tensor c\.q_proj\.mean_A; it belongs to another model or adapter setting$")


def test_another_rank_is_refused() -> None:
    message = r"^file: a\.q_proj\.mean_A has shape \(2, 6\), this adapter needs \(3, 6\); it was saved with another"
    refused(filled(1, r=2).state_dict(), message)


def refused(state: dict[str, Tensor], message: str) -> None:
    """Loading ``state`` raises with ``message`` and changes nothing."""
    adapter = filled(0)
    with pytest.raises(CheckpointError, match=message):
        adapter.load_state_dict(state, "file")
    assert equal(adapter, filled(0))


def test_moving_to_where_it_is_already_keeps_the_values() -> None:
    moved = filled().to(torch.device("cpu"))
    assert equal(moved, filled())
    assert moved.layers == filled().layers
