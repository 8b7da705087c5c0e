"""A head that a server keeps: what it has learned put back, answers of features that are read, examples removed."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll import AbmllModel, Prediction
from abmll.common.config import LearningConfig, PromptConfig
from abmll.common.errors import CheckpointError, ConfigError, DataError
from abmll.language.features import Features
from abmll.language.meter import counted
from abmll.model.cross_validation import cross_validate
from abmll.model.head_examples import key_of
from abmll.model.multi_label import MultiLabelHead
from abmll.model.task_head import TaskHead
from abmll.posterior import head
from abmll.tasks import Example

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
LABELS = ("yes", "no", "maybe")
Learn = Callable[[AbmllModel, Sequence[Example]], TaskHead]


pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture
def model(tiny_llama: Path) -> AbmllModel:
    return AbmllModel.from_base(str(tiny_llama), prompt=SHORT, r=2, target_modules=["q_proj"])


def examples(size: int, seed: int = 0, options: Sequence[str] = LABELS) -> list[Example]:
    rng = random.Random(seed)
    return [
        Example(str(n), f"{seed} {n} {rng.choice('abc') * 5}", tuple(options), rng.randrange(2)) for n in range(size)
    ]


def open_questions(size: int, seed: int = 0) -> list[Example]:
    return [
        Example(str(n), f"{seed} {n}?", tuple(f"{n} {place}" for place in range(2 + n % 3)), n % 2) for n in range(size)
    ]


def learn(model: AbmllModel, rows: Sequence[Example]) -> TaskHead:
    learned = model.adapt(rows, task_name="t", seed=3).head
    assert learned is not None
    return learned


def several(model: AbmllModel, rows: Sequence[Example]) -> MultiLabelHead:
    """A head of examples with several labels."""
    chosen = [LABELS[: n % 3] for n in range(len(rows))]
    learned = model.adapt_multi_label(rows, chosen, task_name="t").head
    assert isinstance(learned, MultiLabelHead)
    return learned


def read(model: AbmllModel, rows: Sequence[Example]) -> Features:
    return model.reader().read(model.scorer.encode(rows, "t"))


def predict(model: AbmllModel, learned: TaskHead, rows: Sequence[Example]) -> Prediction:
    return learned.predict(rows, model.scorer.encode(rows, "t"))


def assert_same(one: Prediction, other: Prediction) -> None:
    """To the bit."""
    assert torch.equal(one.probs, other.probs)
    assert torch.equal(one.entropy, other.entropy)
    assert torch.equal(one.expected_entropy, other.expected_entropy)


def never(*_: object, **__: object) -> None:
    raise AssertionError("it was learned again")


@pytest.mark.parametrize("kind", [learn, several])
def test_what_is_put_back_answers_to_the_bit(model: AbmllModel, monkeypatch: pytest.MonkeyPatch, kind: Learn) -> None:
    """Questions about the labels; of a head of one label each also about other options, and everything else it does."""
    rows, asked = examples(9), examples(4, seed=1)
    learned = kind(model, rows)
    assert learned.fitted() == {}
    wanted = predict(model, learned, asked)
    others = None if kind is several else predict(model, learned, open_questions(3, seed=2))
    fresh = kind(model, rows)
    with monkeypatch.context() as patch:
        patch.setattr(head, "find_mode", never)
        restored = fresh.with_fitted(learned.fitted(), "p")
        assert_same(predict(model, restored, asked), wanted)
        if others is not None:
            assert_same(predict(model, restored, open_questions(3, seed=2)), others)
            assert torch.equal(cross_validate(restored, rows), cross_validate(learned, rows))
        assert restored.fitted().keys() == learned.fitted().keys()
    assert fresh.fitted() == {}
    assert fresh.with_fitted({}, "p").fitted() == {}
    if others is not None:
        more = examples(2, seed=3)
        encoded = model.scorer.encode(more, "t")
        assert_same(
            predict(model, restored.updated(more, encoded), asked),
            predict(model, learned.updated(more, encoded), asked),
        )


@pytest.mark.parametrize("kind", [learn, several])
def test_what_another_head_has_learned_is_refused(model: AbmllModel, kind: Learn) -> None:
    learned = kind(model, examples(6))
    predict(model, learned, examples(1, seed=1))
    fitted = learned.fitted()
    others = [kind(model, examples(6, seed=4)), replace(learned, seed=8)]
    for other in others:
        with pytest.raises(CheckpointError, match=r"kept: this .* \(it is of another head\); leave it out"):
            other.with_fitted(fitted, "kept")
    name = next(one for one in fitted if one.endswith("dual"))
    for odd, line in (({name: fitted[name].float()}, "dual has another shape"), ({"odd.dual": fitted[name]}, "odd")):
        with pytest.raises(CheckpointError, match=line):
            learned.with_fitted(fitted | odd, "kept")


def test_of_a_linear_probe_nothing_is_kept(model: AbmllModel) -> None:
    model.learning = LearningConfig(method="linear-probe")
    learned = learn(model, examples(6))
    wanted = predict(model, learned, examples(2, seed=1))
    assert learned.fitted() == {}
    assert_same(predict(model, learned.with_fitted({}, "p"), examples(2, seed=1)), wanted)
    tensors = {"digest": learned.digest(), "labels.dual": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="learned anew each time"):
        learned.with_fitted(tensors, "p")


def test_features_that_are_read_do_as_well_as_texts(model: AbmllModel) -> None:
    """One pass for two tasks; none is made for what is done with them."""
    one, two, asked = examples(6), open_questions(5), examples(3, seed=1)
    wanted = [predict(model, learn(model, rows), asked) for rows in (one, two)]
    whole = predict(model, learn(model, [*one, *asked]), asked)
    together = read(model, [*one, *two, *asked])
    parts = [Features(*(part[rows] for part in together)) for rows in (slice(6), slice(6, 11), slice(11, 14))]
    parts[0] = Features(parts[0].hidden, parts[0].scores[:, :3])
    parts[2] = Features(parts[2].hidden, parts[2].scores[:, :3])
    with counted(model.scorer) as meter:
        heads = [
            TaskHead.of_features(model.reader(), "head", model.head_prior, rows, part, 3)
            for rows, part in zip((one, two), parts, strict=False)
        ]
        for found, right in zip(heads, wanted, strict=True):
            assert_same(found.answer(asked, parts[2]), right)
        assert_same(heads[0].updated_with(asked, parts[2]).answer(asked, parts[2]), whole)
    assert meter.tokens == 0


@pytest.mark.parametrize("questions", [examples, open_questions])
def test_what_is_removed_was_never_learned(model: AbmllModel, questions: Callable[..., list[Example]]) -> None:
    rows, asked = questions(8), questions(3, seed=1)
    left = learn(model, rows).without([key_of(rows[n]) for n in (2, 5)])
    at_once = learn(model, [row for n, row in enumerate(rows) if n not in (2, 5)])
    assert left.keys == at_once.keys
    assert_same(predict(model, left, asked), predict(model, at_once, asked))


def test_what_cannot_be_removed(model: AbmllModel) -> None:
    learned = learn(model, examples(3))
    assert learned.without([]).keys == learned.keys
    with pytest.raises(DataError, match="no example of this task has the key 'odd'"):
        learned.without(["odd"])
    with pytest.raises(DataError, match="leave one to learn from"):
        learned.without(learned.keys)


def test_a_head_of_several_labels_works_with_features_too(model: AbmllModel) -> None:
    rows, asked = examples(3), examples(2, seed=1)
    learned, chosen = several(model, rows), [LABELS[: n % 3] for n in range(3)]
    own = MultiLabelHead.of_sets(model.reader(), "head", model.head_prior, rows, read(model, rows), chosen)
    assert_same(own.answer(asked, read(model, asked)), predict(model, learned, asked))
    with pytest.raises(ConfigError, match="several labels; learn all of them again"):
        own.updated_with(rows[:1], read(model, rows[:1]))
    fewer = own.without([key_of(rows[0])])
    assert_same(
        fewer.answer(asked, read(model, asked)),
        MultiLabelHead.of_sets(
            model.reader(), "head", model.head_prior, rows[1:], read(model, rows[1:]), chosen[1:]
        ).answer(asked, read(model, asked)),
    )


def test_heads_may_be_learned_and_asked_side_by_side(model: AbmllModel) -> None:
    """And threads that start later have as many threads of torch as before."""
    asked, before = examples(2, seed=1), torch.get_num_threads()
    features = read(model, asked)
    tasks = [examples(4, seed=10 + n) for n in range(3)]
    wanted = [learn(model, rows).answer(asked, features) for rows in tasks]
    heads = [learn(model, rows) for rows in tasks]
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda one: one.answer(asked, features), heads))
        with ThreadPoolExecutor(1) as later:
            assert (torch.get_num_threads(), later.submit(torch.get_num_threads).result()) == (2, 2)
    finally:
        torch.set_num_threads(before)
    for one, right in zip(found, wanted, strict=True):
        assert_same(one, right)
