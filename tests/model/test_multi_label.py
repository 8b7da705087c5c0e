"""Tasks whose examples may have several labels: each label's head, saved, asked, refused."""

import random
from pathlib import Path

import pytest
import torch

from abmll import AbmllModel, Example, TaskPosterior
from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.model.head_examples import key_of
from abmll.model.multi_label import MultiLabelHead
from abmll.model.task_head import TaskHead
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.posterior.tempering import TemperedHead

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
LABELS = ("urgent", "billing", "bug")


pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture
def model(tiny_llama: Path) -> AbmllModel:
    return AbmllModel.from_base(str(tiny_llama), prompt=SHORT, r=2, target_modules=["q_proj"])


def task(size: int = 10) -> tuple[list[Example], list[tuple[str, ...]]]:
    rng = random.Random(5)
    rows = [Example(str(n), f"{n} {rng.choice('abc') * 5}", LABELS, None) for n in range(size)]
    return rows, [tuple(label for label in LABELS if rng.random() < 0.5) for _ in rows]


def test_each_label_is_a_yes_or_no_head_of_its_own(model: AbmllModel) -> None:
    rows, chosen = task()
    posterior = model.adapt_multi_label(rows, chosen, task_name="t")
    prediction = posterior.predict(rows[:4])
    learned = posterior.head
    assert isinstance(learned, MultiLabelHead)
    assert learned.labels == ("billing", "bug", "urgent")
    for column, label in enumerate(LABELS):
        place = learned.labels.index(label)
        scores = torch.stack([learned.features.scores.mean(1), learned.features.scores[:, place]], 1)
        by_key = {key: n for n, key in enumerate(learned.keys)}
        answers = torch.zeros(len(rows), dtype=torch.long)
        for row, own in zip(rows, chosen, strict=True):
            answers[by_key[key_of(row)]] = int(label in own)
        alone = TemperedHead(HeadPrior(), Known(learned.features.hidden, scores, True), answers)
        asked = [by_key[key_of(row)] for row in rows[:4]]
        drawn = alone.probs(Known(learned.features.hidden[asked], scores[asked], True))
        torch.testing.assert_close(prediction.probs[:, column], alone.temper(drawn.mean(0))[:, 1])
    assert (prediction.entropy >= prediction.expected_entropy).all()


def test_it_is_saved_and_read_with_the_same_bits(model: AbmllModel, tmp_path: Path) -> None:
    rows, chosen = task()
    posterior = model.adapt_multi_label(rows, chosen, task_name="t")
    posterior.save_pretrained(tmp_path / "p")
    again = TaskPosterior.from_pretrained(tmp_path / "p")
    assert isinstance(again.head, MultiLabelHead)
    assert torch.equal(again.predict(rows).probs, posterior.predict(rows).probs)


def test_the_order_of_rows_and_options_changes_nothing(model: AbmllModel) -> None:
    rows, chosen = task()
    one = model.adapt_multi_label(rows, chosen, task_name="t").predict(rows).probs
    turned = [Example(row.id, row.input, row.options[::-1], None) for row in rows]
    two = model.adapt_multi_label(turned[::-1], chosen[::-1], task_name="t").predict(turned).probs
    assert torch.equal(one, two.flip(1))


def test_a_label_that_no_example_has_gets_a_small_probability(model: AbmllModel) -> None:
    rows, _ = task()
    posterior = model.adapt_multi_label(rows, [("bug",)] * 5 + [("billing", "bug")] * 5, task_name="t")
    assert posterior.predict(rows).probs[:, LABELS.index("urgent")].max() < 0.35


def test_suggest_works_and_update_is_refused(model: AbmllModel) -> None:
    rows, chosen = task()
    posterior = model.adapt_multi_label(rows, chosen, task_name="t")
    assert sorted(posterior.suggest(rows[:3])) == [0, 1, 2]
    labelled = [Example("x", "text", LABELS, 0)]
    with pytest.raises(ConfigError, match="may have several labels; learn all of them again"):
        posterior.update(labelled)


def test_what_cannot_be_is_refused(model: AbmllModel) -> None:
    rows, chosen = task()
    with pytest.raises(DataError, match="example '0': has the label 'odd', which is none of its options"):
        model.adapt_multi_label(rows, [("odd",), *chosen[1:]], task_name="t")
    with pytest.raises(DataError, match="no examples"):
        model.adapt_multi_label([], [], task_name="t")
    posterior = model.adapt_multi_label(rows, chosen, task_name="t")
    with pytest.raises(DataError, match="its options are not the labels, billing, bug, urgent"):
        posterior.predict([Example("x", "text", ("a", "b"), None)])


def test_a_single_label_task_is_no_multi_label_head(model: AbmllModel, tmp_path: Path) -> None:
    rows = [Example(row.id, row.input, row.options, n % 3) for n, row in enumerate(task()[0])]
    model.adapt(rows, task_name="t").save_pretrained(tmp_path / "p")
    assert type(TaskPosterior.from_pretrained(tmp_path / "p").head) is TaskHead
