"""Cross-validation of a head: equal to learning the folds by hand, nothing of a row in its own answer."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError
from abmll.language.meter import counted
from abmll.model.cross_validation import _dealt, cross_validate
from abmll.model.task_head import key_of
from abmll.posterior import head
from abmll.tasks import Example

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
LABELS = ("no", "yes")


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHAINS", 16)


@pytest.fixture
def model(tiny_llama: Path) -> AbmllModel:
    return AbmllModel.from_base(str(tiny_llama), prompt=SHORT, r=2, target_modules=["q_proj"])


def examples(size: int = 12) -> list[Example]:
    rng = random.Random(3)
    return [Example(str(n), f"{n} {rng.choice('abc') * 5}", LABELS, rng.randrange(2)) for n in range(size)]


def test_each_fold_is_answered_by_a_head_of_the_others(model: AbmllModel) -> None:
    rows = examples()
    posterior = model.adapt(rows, task_name="t")
    assert posterior.head is not None
    probs = cross_validate(posterior.head, rows, 3)
    place = {key: n for n, key in enumerate(posterior.head.keys)}
    folds = _dealt(posterior.head.keys, posterior.head.answers, 3)
    fold_of = [folds[place[key_of(row)]] for row in rows]
    for fold in range(3):
        others = [row for row, own in zip(rows, fold_of, strict=True) if own != fold]
        asked = [n for n, own in enumerate(fold_of) if own == fold]
        by_hand = model.adapt(others, task_name="t").predict([rows[n] for n in asked]).probs
        torch.testing.assert_close(probs[asked], by_hand, rtol=0, atol=1e-9)


def test_no_text_is_read_again(model: AbmllModel) -> None:
    posterior = model.adapt(examples(), task_name="t")
    assert posterior.head is not None
    with counted(model.scorer) as meter:
        cross_validate(posterior.head, examples(), 4)
    assert meter.tokens == 0


def test_the_order_of_the_rows_changes_nothing(model: AbmllModel) -> None:
    rows = examples()
    shuffled = random.Random(1).sample(rows, len(rows))
    one, two = model.adapt(rows, task_name="t").head, model.adapt(shuffled, task_name="t").head
    assert one is not None
    assert two is not None
    by_id = dict(zip((row.id for row in shuffled), cross_validate(two, shuffled), strict=True))
    torch.testing.assert_close(cross_validate(one, rows), torch.stack([by_id[row.id] for row in rows]), rtol=0, atol=0)


def test_labels_are_spread_over_folds_and_twins_stay_together() -> None:
    keys = [f"{n:02}" for n in range(20)] + ["00", "00"]
    answers = torch.tensor([0] * 10 + [1] * 10 + [1, 0])
    folds = _dealt(keys, answers, 5)
    assert [folds[:10].count(fold) for fold in range(5)] == [2] * 5
    assert [folds[10:20].count(fold) for fold in range(5)] == [2] * 5
    assert folds[20] == folds[21] == folds[0]


def test_a_row_does_not_decide_its_own_answer(model: AbmllModel) -> None:
    """Its label may be turned round: what it is told stays the same, as long as the folds do."""
    rows = examples()
    learned = model.adapt(rows, task_name="t").head
    assert learned is not None
    before = cross_validate(learned, rows, 12)
    answers = learned.answers.clone()
    answers[4] = 1 - answers[4]
    folds = _dealt(learned.keys, learned.answers, 12)
    assert len(set(folds)) == 12  # one row a fold, whatever its label
    after = cross_validate(replace(learned, answers=answers), rows, 12)
    turned = next(n for n, row in enumerate(rows) if key_of(row) == learned.keys[4])
    torch.testing.assert_close(after[turned], before[turned], rtol=0, atol=1e-12)
    assert not torch.equal(after, before)


def test_what_cannot_be_cross_validated(model: AbmllModel) -> None:
    learned = model.adapt(examples(), task_name="t").head
    assert learned is not None
    with pytest.raises(ConfigError, match="fold is 1; at least 2"):
        cross_validate(learned, examples(), 1)
    apart = [replace(row, options=(*LABELS, str(n))) for n, row in enumerate(examples())]
    learned = model.adapt(apart, task_name="t").head
    assert learned is not None
    with pytest.raises(ConfigError, match="different options"):
        cross_validate(learned, apart, 3)
