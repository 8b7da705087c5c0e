"""Learners side by side, against each of them alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.common.config import ContinuedConfig
from abmll.common.errors import TrainingError
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.packing import remove_packing
from abmll.language.scorer import OptionScorer
from abmll.methods import Rule, Support, make_rule
from abmll.methods.lockstep import Lockstep

MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[..., Adapter]
Draw = Callable[..., list[Encoded]]


def learned(
    scorer: OptionScorer, theta: Adapter, examples: list[Encoded], count: int | None, **settings: Any
) -> tuple[tuple[Adapter, ...], Support]:
    """What the rule learns with so many members at once, of examples of which two are a batch."""
    config = ContinuedConfig(learning_rate=0.02, scale_learning_rate=0.01, members_at_once=count, **settings)
    support = Support(scorer, examples, steps=4, batch_size=2, seed=7)
    return make_rule(scorer, config, 1).adapt(theta, support), support


def assert_same(found: tuple[Adapter, ...], wanted: tuple[Adapter, ...], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        for (_, mine), (_, theirs) in zip(one.named_tensors(), other.named_tensors(), strict=True):
            assert not mine.requires_grad
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"noise": "shared"},
    {"max_grad_norm": 0.5},
    {"loss": "tokens"},
    {"method": "ensemble"},
    {"method": "ensemble", "max_grad_norm": 0.5},
]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Callable[[OptionScorer, Adapter], Adapter]:
    """double(scorer, theta): the model, and theta, in double precision, where an error of method cannot hide."""

    def made(scorer: OptionScorer, theta: Adapter) -> Adapter:
        scorer.base.model.double()
        for shape, factors in theta.stacks.items():
            theta.stacks[shape] = type(factors)(*(tensor.double() for tensor in factors))
        monkeypatch.setattr(scorer, "new_adapter", lambda seed: theta.clone())
        return theta

    return made


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())) or "default")
@pytest.mark.parametrize("in_double", [False, True])
def test_each_learns_what_it_learns_alone(
    settings: dict[str, Any],
    in_double: bool,
    make_scorer: MakeScorer,
    make_theta: MakeTheta,
    draw_examples: Draw,
    double: Callable[[OptionScorer, Adapter], Adapter],
) -> None:
    """From prompts of unlike length; some batches share the first tokens of their prompts, others do not."""
    settings = {"method": "abmll-mixture", **settings}
    scorer = make_scorer()
    theta = double(scorer, make_theta(scorer)) if in_double else make_theta(scorer)
    examples = draw_examples(5)
    examples[:3] = [replace(one, prompt=(7, 8, 9, *one.prompt)) for one in examples[:3]]
    wanted, alone = learned(scorer, theta, examples, 1, **settings)
    assert not torch.equal(wanted[0].mean_tensors()[0], wanted[1].mean_tensors()[0])
    for count in (None, 5) if scorer.device.type != "cpu" else (5, 2):
        found, support = learned(scorer, theta, examples, count, **settings)
        assert_same(found, wanted, 1e-11 if in_double else 1e-5)
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if in_double else {"rtol": 1e-4, "atol": 1e-4}
        for one, other in zip(support.losses, alone.losses, strict=True):
            for mine, theirs in zip(one[:5], other[:5], strict=True):
                torch.testing.assert_close(mine, theirs, **tolerance)
            assert one.size == other.size == 2
            torch.testing.assert_close(one.options, other.options, **tolerance)
            torch.testing.assert_close(dict(one.grad_norms), dict(other.grad_norms), **tolerance)
