"""Layers that read the same tensor are found by looking, and their noise stays what each of them draws alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from abmll.common.config import LearningConfig
from abmll.language.readers import Readers
from abmll.methods import Loss, make_rule
from abmll.model.meta_learner import AbmllModel
from tests.conftest import SHORT, toy_task


class Block(nn.Module):
    """Two layers read its input, one reads a copy, one what comes of the first, and one a part of the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("part", "last", "copy", "two", "one")})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layers["one"](x)
        self.layers["copy"](x.clone())
        self.layers["two"](x)
        self.layers["part"](x[:, :2])
        return self.layers["last"](first)


def test_groups_and_order_of_the_first_whole_pass() -> None:
    block, readers = Block(), Readers()
    layers: dict[str, Any] = dict(block.layers)
    assert readers.groups(layers) == [(name,) for name in layers]
    with readers.watching(layers):
        block(torch.ones(1, 3, 4))
        block.layers["two"](torch.ones(1, 9, 4))
    assert readers.groups(layers) == [("one", "two"), ("copy",), ("part",), ("last",)]
    assert readers.together == ("one", "two", "copy", "last")
    assert readers.groups(["two", "new"]) == [("two",), ("new",)]
    block(torch.ones(1, 3, 4))  # nothing is watched any more
    assert readers.groups(layers)[0] == ("one", "two")


@pytest.mark.parametrize("space", ["weight", "output"])
def test_noise_is_that_of_layers_on_their_own(tiny_llama: Path, space: Any) -> None:
    """The very numbers: they differ from those of every layer's own draw, in its turn, by rounding alone."""

    def step(known: bool) -> Loss:
        settings: dict[str, Any] = {"r": 2, "target_modules": ["all-linear"], "space": space}
        model = AbmllModel.from_base(str(tiny_llama), dtype="fp32", prompt=SHORT, **settings)
        readers = model.scorer.wiring.readers
        assert [len(group) for group in readers.seen] == [3, 1, 2, 1] * 2
        if not known:
            model.scorer.wiring.readers = Readers()
        task = toy_task("a")
        batch = model.scorer.batch(model.scorer.encode(task.train[:3], "a"))
        rule = make_rule(model.scorer, LearningConfig(), 1)
        state = rule.init(model.theta)
        return rule.inner_step(state, batch, torch.Generator().manual_seed(1), 1.0)

    grouped, apart = step(True), step(False)
    torch.testing.assert_close(grouped.total, apart.total)
    torch.testing.assert_close(dict(grouped.grad_norms), dict(apart.grad_norms), rtol=1e-4, atol=1e-7)
