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
from abmll.model.cross_validation import cross_validate
from abmll.model.head_examples import key_of
from abmll.posterior.head import FEWEST_CHAINS, HeadPosterior
from abmll.posterior.tempering import TemperedHead, picked
from abmll.tasks import Example

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
LABELS = ("no", "yes")


pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture
def model(tiny_llama: Path) -> AbmllModel:
    return AbmllModel.from_base(str(tiny_llama), prompt=SHORT, r=2, target_modules=["q_proj"])


def examples(size: int = 12) -> list[Example]:
    rng = random.Random(3)
    return [Example(str(n), f"{n} {rng.choice('abc') * 5}", LABELS, rng.randrange(2)) for n in range(size)]


def test_each_fold_is_answered_by_a_head_of_the_others(model: AbmllModel) -> None:
    rows = examples()
    learned = model.adapt(rows, task_name="t").head
    assert learned is not None
    fitted = learned.posterior
    assert isinstance(fitted, TemperedHead)
    fold_of = [int(fitted.fold_of[learned.keys.index(key_of(row))]) for row in rows]
    assert sorted(map(fold_of.count, range(5))) == [2, 2, 2, 3, 3]
    for fold in range(5):
        others = [row for row, own in zip(rows, fold_of, strict=True) if own != fold]
        asked = [row for row, own in zip(rows, fold_of, strict=True) if own == fold]
        by_hand = model.adapt(others, task_name="t").head
        assert by_hand is not None
        places = [learned.keys.index(key_of(row)) for row in asked]
        drawn = HeadPosterior(
            by_hand.prior, by_hand.known(True), by_hand.answers, considered=fitted.likely, chains=FEWEST_CHAINS
        ).probs(picked(learned.known(True), torch.tensor(places)))
        torch.testing.assert_close(fitted.held_out[places], drawn.mean(0), rtol=0, atol=1e-9)


def test_no_text_is_read_again(model: AbmllModel) -> None:
    posterior = model.adapt(examples(), task_name="t")
    assert posterior.head is not None
    with counted(model.scorer) as meter:
        cross_validate(posterior.head, examples(), 5)
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
