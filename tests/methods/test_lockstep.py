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
from abmll.methods import Support, lockstep, make_rule
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
    for count in (None, 2):
        found, support = learned(scorer, theta, examples, count, **settings)
        assert_same(found, wanted, 1e-11 if in_double else 1e-5)
        near = 1e-9 if in_double else 1e-4
        for one, other in zip(support.losses, alone.losses, strict=True):
            for mine, theirs in zip(one[:5], other[:5], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=near, atol=near)
            assert one.size == other.size == 2
            torch.testing.assert_close(one.options, other.options, rtol=near, atol=near)
            torch.testing.assert_close(dict(one.grad_norms), dict(other.grad_norms), rtol=near, atol=near)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many learners each step has that several take."""
    seen: list[int] = []
    step = Lockstep.step

    def spy(self: Lockstep, batches: Any, generators: Any) -> Any:
        seen.append(len(batches))
        return step(self, batches, generators)

    monkeypatch.setattr(Lockstep, "step", spy)
    return seen


@pytest.mark.parametrize(
    ("count", "room", "wanted"),
    [(None, 100, [5] * 4), (2, 100, [2] * 8), (1, 100, []), (None, 6, [3] * 4 + [2] * 4)],
)
def test_as_many_side_by_side_as_are_wanted_or_have_room(
    count: int | None,
    room: int,
    wanted: list[int],
    make_scorer: MakeScorer,
    make_theta: MakeTheta,
    draw_examples: Draw,
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = make_scorer()
    [example, *_] = draw_examples(1)
    monkeypatch.setattr(lockstep, "POSITIONS_CPU", room * len(example))
    learned(scorer, make_theta(scorer), [example] * 4, count, method="abmll-mixture")
    assert steps == wanted


@pytest.mark.parametrize("adapter", [{"space": "output"}, {"sigma_rank": 2}, {"space": "factor"}])
def test_others_learn_one_after_the_other(
    adapter: dict[str, Any], make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, steps: list[int]
) -> None:
    scorer = make_scorer(**adapter)
    members, _ = learned(scorer, make_theta(scorer), draw_examples(4), None, method="abmll-mixture", ensemble_size=2)
    assert len(members) == 2
    assert not steps


def test_rows_that_are_padded_or_computed_anew_are_not_shared(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, steps: list[int]
) -> None:
    scorer = make_scorer()
    theta, examples = make_theta(scorer), draw_examples(4)
    scorer.gradient_checkpointing = True
    learned(scorer, theta, examples, None, method="ensemble")
    scorer.gradient_checkpointing = False
    remove_packing(scorer.base.model)
    scorer.packed = scorer.lower_blocks.packed = False
    learned(scorer, theta, examples, None, method="ensemble")
    assert not steps


def test_a_loss_that_is_no_number_is_refused(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorer = make_scorer()
    theta = make_theta(scorer)
    theta.mean_tensors()[0].fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"^step 1: the loss term 'nll' is nan; lower the learning rates$"):
        learned(scorer, theta, draw_examples(4), None, method="ensemble")
