"""Pruning: exactly the smallest part of every token's output, in the adapted layers, and nothing stays behind."""

import pytest
import torch

from abmll import AbmllModel
from abmll.common.errors import ConfigError
from abmll.experiments.pruning import prune_smallest, pruned
from abmll.tasks import Task


@pytest.mark.parametrize(("share", "zeros"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.99, 9)])
def test_the_smallest_magnitudes_go(share: float, zeros: int) -> None:
    output = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    result = prune_smallest(output, share)
    kept = output.abs() >= output.abs().sort(-1).values[..., zeros : zeros + 1]
    assert torch.equal(result, output * kept)
    assert int((result == 0).sum()) == zeros * 12


def test_equal_magnitudes_lose_no_more_than_the_share() -> None:
    assert int((prune_smallest(torch.ones(5, 10), 0.3) == 0).sum()) == 15


def test_inside_the_adapted_layers_are_pruned_and_outside_nothing_is(
    tiny_model: AbmllModel, toy_tasks: list[Task]
) -> None:
    scorer = tiny_model.scorer
    batch = scorer.batch(scorer.encode(toy_tasks[0].examples[:3], "toy"))
    seen: list[torch.Tensor] = []
    layer = next(iter(scorer.adapted.values()))
    before = scorer.scores(batch, tiny_model.theta).options
    with pruned(scorer, 0.5):

        def see(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            seen.append(output)

        handle = layer.register_forward_hook(see)
        inside = scorer.scores(batch, tiny_model.theta).options
        handle.remove()
    assert seen
    assert bool(((seen[0] == 0).sum(-1) == seen[0].shape[-1] // 2).all())
    assert not torch.allclose(inside, before)
    assert torch.equal(scorer.scores(batch, tiny_model.theta).options, before)
    with pruned(scorer, 0.0):
        assert torch.equal(scorer.scores(batch, tiny_model.theta).options, before)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_shares_that_cannot_be(tiny_model: AbmllModel, share: float) -> None:
    with pytest.raises(ConfigError, match="prune is"), pruned(tiny_model.scorer, share):
        pass
