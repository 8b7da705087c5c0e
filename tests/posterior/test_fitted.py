"""What a head has learned, taken out and put back: the same numbers to the bit, and no damage goes unseen."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from abmll.posterior import head, tempering
from abmll.posterior.fitted import spread
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.posterior.tempering import TemperedHead, log_likelihood, mixed, powered, weights

pytestmark = pytest.mark.usefixtures("few_chains")


def task(size: int = 12, options: int = 3, is_labelled: bool = True, is_ordered: bool = False) -> tuple[Known, Tensor]:
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(size, options, 3, generator=generator, dtype=torch.float64)
    known = Known(torch.randn(size, 2, 8, generator=generator), scores, is_labelled, is_ordered)
    return known, torch.arange(size) % options


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it was learned again")


@pytest.mark.parametrize(
    ("size", "is_labelled", "is_ordered"),
    [(12, True, False), (12, True, True), (12, False, False), (1, True, False), (3, True, False)],
)
def test_what_is_put_back_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, size: int, is_labelled: bool, is_ordered: bool
) -> None:
    known, answers = task(size, 3, is_labelled, is_ordered)
    learned = TemperedHead(HeadPrior(), known, answers, 5)
    asked, _ = task(4, 3, is_labelled, is_ordered)
    wanted = learned.temper(learned.probs(asked).mean(0))
    with monkeypatch.context() as patch:
        patch.setattr(head, "find_mode", refuse)
        found = TemperedHead.restored(HeadPrior(), known, answers, 5, learned.fitted())
        assert torch.equal(found.probs(asked), learned.probs(asked))
        assert torch.equal(found.temper(found.probs(asked).mean(0)), wanted)
        assert found.log_evidence == learned.log_evidence
        assert found.is_tempered == learned.is_tempered == (size > 1)
        assert found.fitted().keys() == learned.fitted().keys()
    if found.is_tempered:
        assert torch.equal(found.cross_validated(), learned.cross_validated())
        assert torch.equal(found.cross_validated(2), learned.cross_validated(2))


DAMAGE: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("dual", lambda one: one.float(), "dual has another shape or type: (64, 12, 3), torch.float32"),
    ("dual", lambda one: one[:, :-1], "dual has another shape"),
    ("dual", lambda one: one * torch.nan, "dual is not finite"),
    ("weights", lambda one: one[:-1], "weights has 63 rows"),
    ("weights", lambda one: one[:0], "weights has 0 rows"),
    ("hypotheses", lambda one: one[:-1], "hypotheses has another shape"),
    ("hypotheses", lambda one: one * 2, "hypotheses are no probabilities"),
    ("hypotheses", lambda one: one.flip(0) - one, "hypotheses are no probabilities"),
    ("log_evidence", lambda one: one[None], "log_evidence has another shape"),
    ("held_out", lambda one: one.T, "held_out has another shape"),
    ("held_out", lambda one: one - 1, "held_out are no probabilities"),
]


@pytest.fixture(scope="module")
def fitted() -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHAINS", 16)
        patch.setattr(head, "FEWEST_CHAINS", 16)
        return TemperedHead(HeadPrior(), *task()).fitted()


@pytest.mark.parametrize(("name", "damage", "line"), DAMAGE)
def test_what_is_damaged_is_refused(
    fitted: dict[str, Tensor], name: str, damage: Callable[[Tensor], Tensor], line: str
) -> None:
    for damaged, wanted in (({name: damage(fitted[name])}, line), (None, f"lacks {name}")):
        tensors = fitted | damaged if damaged else {other: one for other, one in fitted.items() if other != name}
        with pytest.raises(ValueError, match=re.escape(wanted)):
            TemperedHead.restored(HeadPrior(), *task(), 0, tensors)


def test_what_is_not_tempered_has_nothing_held_out() -> None:
    known, answers = task(is_labelled=False)
    old = HeadPrior(weight_mean=(1.0, 0.3), weight_std=(0.5, 0.3), open=(0.0,) * 3)  # as of version 0.2
    assert tempering.HELD_OUT not in TemperedHead(old, known, answers).fitted()
    assert tempering.HELD_OUT in TemperedHead(HeadPrior(), known, answers).fitted()


def test_chains_are_spread_in_proportion() -> None:
    used, index = spread(torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64), 8)
    assert used.tolist() == [0, 2, 3]
    assert index.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("size", "options"), [(1, 2), (5, 3), (33, 7), (20, 40)])
def test_all_temperatures_at_once_are_each_by_itself_to_the_bit(size: int, options: int) -> None:
    generator = torch.Generator().manual_seed(options)
    probs = torch.softmax(3 * torch.randn(size, options, generator=generator, dtype=torch.float64), -1)
    probs[0, 0], answers = 0.0, torch.arange(size) % (options - 1) + 1
    each = [powered(probs, a) for a in tempering.INVERSE]
    logs = torch.stack([one.gather(1, answers[:, None])[:, 0].log() for one in each], 1)
    assert torch.equal(log_likelihood(probs, answers), logs)
    by = weights(logs)
    assert torch.equal(mixed(probs, by), torch.stack([w * one for w, one in zip(by, each, strict=True)]).sum(0))
