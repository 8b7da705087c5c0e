"""Posteriors that are heads: saved, updated, asked about other options, and what they suggest to label next."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel, Prediction, TaskPosterior
from abmll.common.config import LearningConfig, PromptConfig
from abmll.common.errors import CheckpointError, ConfigError, DataError
from abmll.language.meter import counted
from abmll.model.task_head import TaskHead
from abmll.posterior.head import HeadPosterior
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.posterior.tempering import TemperedHead
from abmll.tasks import Example, Task

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
OPTIONS = ("yes", "no", "maybe")


pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture
def model(tiny_llama: Path) -> AbmllModel:
    """As a user has it: the bare model, which learns with a head."""
    return AbmllModel.from_base(
        str(tiny_llama), prompt=SHORT, r=2, layers_to_transform="1", target_modules=["q_proj", "v_proj"]
    )


def examples(size: int = 12, seed: int = 0, options: Sequence[str] = OPTIONS) -> list[Example]:
    rng = random.Random(seed)
    return [
        Example(str(number), f"{seed} {number} {rng.choice('abcdef') * 6}", tuple(options), rng.randrange(len(options)))
        for number in range(size)
    ]


def open_questions(size: int = 8, seed: int = 0) -> list[Example]:
    """Two to four options, other ones in every question."""
    rng = random.Random(seed)
    return [
        Example(str(n), f"{seed} {n}?", tuple(f"{n} {place}" for place in range(2 + n % 3)), rng.randrange(2))
        for n in range(size)
    ]


ASKED = examples(5, seed=1)


def assert_same(one: Prediction, other: Prediction) -> None:
    """To the bit."""
    assert torch.equal(one.probs, other.probs)
    assert torch.equal(one.expected_entropy, other.expected_entropy)


def test_it_is_the_classifier_on_the_model_s_features(model: AbmllModel) -> None:
    """Step by step: encode, read, put columns into the order of the sorted labels, learn, average, temper."""
    support, order = examples(), [2, 1, 0]  # maybe, no, yes
    found = model.adapt(support, task_name="t", seed=3)
    rows = sorted(support, key=lambda one: head_of(found).keys.index(key_of(model, one)))
    read = model.reader().read(model.scorer.encode(rows, "t"))
    answers = torch.tensor([order.index(one.answer) for one in rows if one.answer is not None])
    known = Known(read.hidden, read.scores[:, order], True)
    asked = model.reader().read(model.scorer.encode(ASKED, "t"))
    posterior = TemperedHead(HeadPrior(), known, answers, 3)
    probs = posterior.temper(posterior.probs(Known(asked.hidden, asked.scores[:, order], True)).mean(0))
    torch.testing.assert_close(found.predict(ASKED).probs, probs[:, order])


def head_of(posterior: TaskPosterior) -> TaskHead:
    assert posterior.head is not None
    return posterior.head


def key_of(model: AbmllModel, example: Example) -> str:
    """The key under which a head keeps an example."""
    [key] = head_of(model.adapt([example])).keys
    return key


@pytest.mark.parametrize("questions", [examples, open_questions])
def test_what_is_saved_answers_to_the_bit(model: AbmllModel, tmp_path: Path, questions: Any) -> None:
    posterior, asked = model.adapt(questions(), seed=5), questions(5, seed=1)
    posterior.save_pretrained(tmp_path / "head")
    loaded = TaskPosterior.from_pretrained(tmp_path / "head", scorer=model.scorer)
    assert_same(loaded.predict(asked), posterior.predict(asked))
    assert loaded.settings["adapt_examples"] == len(questions())
    more = questions(3, seed=2)
    assert_same(loaded.update(more).predict(asked), posterior.update(more).predict(asked))


def test_a_head_on_the_bare_model_is_small_and_has_no_adapter(model: AbmllModel, tmp_path: Path) -> None:
    folder = tmp_path / "head"
    posterior = model.adapt(examples(20))
    posterior.save_pretrained(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 100_000
    assert not [path for path in folder.rglob("*") if "phi" in path.name]
    assert posterior.members == (None,)
    with pytest.raises(ConfigError, match="it has no adapter"):
        _ = posterior.phi


def test_a_head_on_theta_saves_theta(model: AbmllModel, tmp_path: Path) -> None:
    theta = model.scorer.new_adapter(1)
    for tensor in theta.mean_tensors():
        torch.nn.init.normal_(tensor, std=0.5, generator=torch.Generator().manual_seed(1))
    bare = model.adapt(examples()).predict(ASKED)
    model.learned(theta, LearningConfig(method="abmll"), 3)
    posterior = model.adapt(examples(), how="head")
    assert posterior.settings["method"] == "abmll-head"
    assert not torch.allclose(posterior.predict(ASKED).probs, bare.probs)
    posterior.save_pretrained(tmp_path / "head")
    loaded = TaskPosterior.from_pretrained(tmp_path / "head", scorer=model.scorer)
    assert_same(loaded.predict(ASKED), posterior.predict(ASKED))


PARTS = [
    (examples, [12]),
    (examples, [5, 7]),
    (examples, [1] * 12),
    (open_questions, [5, 7]),
    (open_questions, [2] + [1] * 10),
]


@pytest.mark.parametrize(("questions", "sizes"), PARTS)
def test_learning_bit_by_bit_in_any_order_is_learning_at_once(
    model: AbmllModel, sizes: list[int], questions: Any
) -> None:
    support, asked = questions(12), questions(4, seed=1)
    at_once = model.adapt(support, seed=2)
    shuffled = random.Random(4).sample(support, 12)
    first, *others = [shuffled[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
    posterior = model.adapt(first, seed=2)
    for part in others:
        posterior = posterior.update(part)
    assert_same(posterior.predict(asked), at_once.predict(asked))
    assert posterior.settings["adapt_examples"] == 12


LEVELS = ("no", "maybe", "yes")  # from the lowest to the highest, which is no order of the alphabet


def test_labels_keep_the_order_that_they_have(model: AbmllModel, tmp_path: Path) -> None:
    support = examples(20)
    posterior = model.adapt(support, label_order=("never", *LEVELS))
    found = head_of(posterior)
    assert (found.labels, found.is_ordered) == (LEVELS, True)
    wanted = HeadPosterior(HeadPrior(), Known(*found.features, True, True), found.answers)
    assert isinstance(found.posterior, HeadPosterior)
    assert found.posterior.log_evidence == wanted.log_evidence
    plain = model.adapt(support)
    assert found.posterior.log_evidence != plain_evidence(plain)
    assert not torch.allclose(posterior.predict(ASKED).probs, plain.predict(ASKED).probs, atol=1e-4)
    posterior.save_pretrained(tmp_path / "head")
    loaded = TaskPosterior.from_pretrained(tmp_path / "head", scorer=model.scorer)
    assert_same(loaded.predict(ASKED), posterior.predict(ASKED))
    more = examples(3, seed=2)
    at_once = model.adapt([*support, *more], label_order=LEVELS)
    assert_same(loaded.update(more).predict(ASKED), at_once.predict(ASKED))


def plain_evidence(posterior: TaskPosterior) -> float:
    found = head_of(posterior)
    return HeadPosterior(HeadPrior(), Known(*found.features, True), found.answers).log_evidence


def test_with_an_order_answers_stand_at_their_labels(model: AbmllModel) -> None:
    """Twenty examples of one answer: it is likely, wherever it stands among a question's options."""
    support = [replace(one, answer=OPTIONS.index("maybe")) for one in examples(20)]
    posterior = model.adapt(support, label_order=LEVELS)
    for question in (ASKED[0], turned(ASKED[0]), replace(ASKED[0], options=("no", "maybe"), answer=None)):
        probs = posterior.predict([question]).probs[0]
        assert int(probs.argmax()) == question.options.index("maybe")


def test_a_head_that_was_saved_before_there_were_orders_has_none(model: AbmllModel) -> None:
    found = head_of(model.adapt(examples(4)))
    document = {key: value for key, value in found.document().items() if key != "ordered"}
    assert not TaskHead.of(model.scorer, None, document, found.tensors(), Path("p")).is_ordered


NO_ORDERS: list[tuple[list[Example], Sequence[str], str]] = [
    (examples(4), ("no", "yes"), "label_order lacks 'maybe'; name every label of the examples once"),
    (examples(4), (), "label_order lacks 'yes'"),
    (examples(4), ("no", "maybe", "yes", "no"), "label_order has a label twice"),
    (open_questions(4), LEVELS, "label_order: the examples have different options"),
]


@pytest.mark.parametrize(("support", "order", "words"), NO_ORDERS)
def test_what_is_no_order_of_the_labels_is_refused(
    model: AbmllModel, support: list[Example], order: Sequence[str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        model.adapt(support, label_order=order)


def test_gradients_know_no_order(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    tiny_model.learned(tiny_model.scorer.new_adapter(0), LearningConfig(method="abmll"), 1)
    support = toy_tasks[0].train[:4]
    with pytest.raises(ConfigError, match="label_order: only a head learns that labels have an order"):
        tiny_model.adapt(support, label_order=support[0].options)
    assert head_of(tiny_model.adapt(support, how="head", label_order=support[0].options)).is_ordered


def test_an_update_reads_the_new_examples_alone(model: AbmllModel) -> None:
    posterior = model.adapt(examples())
    with counted(model.scorer) as cost:
        posterior.update(examples(3, seed=2))
    assert 0 < cost.tokens <= sum(len(one) for one in model.scorer.encode(examples(3, seed=2), "task"))
    assert len(head_of(posterior).keys) == 12  # and leaves the posterior as it was


def test_an_example_that_comes_again_counts_again(model: AbmllModel) -> None:
    support = examples()
    twice = model.adapt(support).update(support[:4])
    assert_same(twice.predict(ASKED), model.adapt([*support, *support[:4]]).predict(ASKED))
    assert not torch.equal(twice.predict(ASKED).probs, model.adapt(support).predict(ASKED).probs)


def turned(example: Example) -> Example:
    """The same example with its options the other way round."""
    answer = None if example.answer is None else len(example.options) - 1 - example.answer
    return replace(example, options=example.options[::-1], answer=answer)


def test_the_order_of_the_options_changes_nothing(model: AbmllModel) -> None:
    support = examples()
    posterior = model.adapt(support)
    probs = posterior.predict(ASKED).probs
    mixed = [turned(one) if number % 2 else one for number, one in enumerate(support)]
    torch.testing.assert_close(model.adapt(mixed).predict(ASKED).probs, probs, rtol=1e-4, atol=1e-5)
    asked = [turned(one) for one in ASKED]
    torch.testing.assert_close(posterior.predict(asked).probs, probs.flip(-1), rtol=1e-4, atol=1e-5)


def test_the_order_of_a_file_changes_nothing_where_a_question_comes_twice(tiny_llama: Path) -> None:
    """Once with each order of its options, which a prompt that lists them shows, so that its features differ."""
    prompt = PromptConfig(instruction=False, list_options=True, answer="text")
    model = AbmllModel.from_base(str(tiny_llama), prompt=prompt, r=2, layers_to_transform="1")
    twice = [one for example in examples(5) for one in (example, turned(example))]
    swapped = [one for pair in zip(twice[1::2], twice[::2], strict=True) for one in pair]
    first, second = head_of(model.adapt(twice)), head_of(model.adapt(swapped))
    assert not torch.equal(first.features.hidden[0], first.features.hidden[1])
    assert torch.equal(first.digest(), second.digest())


def test_of_some_of_the_labels_one_is_right(model: AbmllModel) -> None:
    """The probabilities are those of the same samples, given that it is one of these labels."""
    posterior, chosen = model.adapt(examples()), [0, 2]
    some = [replace(one, options=("yes", "maybe"), answer=None) for one in ASKED]
    by_label = aligned_draws(posterior, ASKED, OPTIONS)[..., chosen]
    wanted = head_of(posterior).posterior.temper((by_label / by_label.sum(-1, keepdim=True)).mean(0))
    found = posterior.predict([*ASKED, *some]).probs[len(ASKED) :]
    # Scores are less their mean over the options at hand, which a softmax does not see.
    torch.testing.assert_close(found[:, :2], wanted, rtol=1e-4, atol=1e-5)
    assert torch.count_nonzero(found[:, 2:]) == 0


def aligned_draws(posterior: TaskPosterior, asked: Sequence[Example], options: Sequence[str]) -> Tensor:
    """(P, N, C): each sample's probabilities of the options."""
    head = head_of(posterior)
    read = head.reader.read(posterior.scorer.encode(asked, posterior.task_name))
    order = [options.index(label) for label in head.labels]
    draws = head.posterior.probs(Known(read.hidden, read.scores[:, order], True))
    return draws[..., [head.labels.index(option) for option in options]]


def test_options_that_are_no_labels_are_answered_by_what_the_scores_say(model: AbmllModel) -> None:
    posterior = model.adapt(examples())
    others = open_questions(4)
    found = posterior.predict([*ASKED, *others])
    read = model.reader().read(model.scorer.encode(others, "task"))
    classifier = TemperedHead(HeadPrior(), Known(*head_of(posterior).features, False), head_of(posterior).answers)
    wanted = classifier.temper(classifier.probs(Known(*read, False)).mean(0))
    torch.testing.assert_close(found.probs[len(ASKED) :, : wanted.shape[1]], wanted)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(len(found.probs)).double())
    torch.testing.assert_close(found.probs[: len(ASKED), :3], posterior.predict(ASKED).probs)


def test_open_questions_may_have_other_numbers_of_options_than_the_examples(model: AbmllModel) -> None:
    two = [one for one in open_questions(9) if len(one.options) == 2]
    four = [one for one in open_questions(9, seed=1) if len(one.options) == 4]
    for support, asked in ((two, four), (four, two)):
        probs = model.adapt(support).predict(asked).probs
        torch.testing.assert_close(probs.sum(-1), torch.ones(len(asked)).double())


def test_answers_do_not_depend_on_what_else_is_asked(model: AbmllModel) -> None:
    posterior = model.adapt(examples())
    together = posterior.predict([*open_questions(3), *ASKED]).probs[3:, :3]
    for row, example in zip(together, ASKED, strict=True):
        torch.testing.assert_close(posterior.predict([example]).probs[0], row, rtol=1e-4, atol=1e-5)


def test_questions_are_answered_in_portions(model: AbmllModel, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = model.adapt(examples())
    whole = posterior.predict(ASKED).probs
    monkeypatch.setattr("abmll.model.task_head.QUESTIONS_AT_ONCE", 2)
    torch.testing.assert_close(posterior.predict(ASKED).probs, whole)


REFUSED: list[tuple[list[Example], str]] = [
    ([], "task 'task': no examples to learn from"),
    ([replace(examples(1)[0], answer=None)], "task 'task', example '0': has no answer to learn from"),
    (examples(2, options=("yes", "no")), "other options than those learned, which are maybe, no, yes; adapt again"),
    (open_questions(2), "other options than those learned"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_what_cannot_be_learned_in_addition_is_refused(model: AbmllModel, more: list[Example], words: str) -> None:
    with pytest.raises(DataError, match=words):
        model.adapt(examples()).update(more)


def test_without_a_head_there_is_nothing_to_update_or_suggest(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    theta = tiny_model.scorer.new_adapter(0)
    tiny_model.learned(theta, LearningConfig(method="abmll"), 1)
    posterior = tiny_model.adapt(toy_tasks[0].train[:4], steps=1)
    for act, name in ((posterior.update, "update"), (posterior.suggest, "suggest")):
        with pytest.raises(ConfigError, match=f"{name}: this posterior has no head; learn the task with how='head'"):
            act(toy_tasks[0].train[:2])


def test_nothing_is_suggested_of_nothing(model: AbmllModel) -> None:
    with pytest.raises(DataError, match="no examples to predict"):
        model.adapt(examples()).suggest([])


def test_what_is_unlike_all_examples_is_suggested_first(model: AbmllModel) -> None:
    """The pool has a copy of an example that was learned many times over, and a question like none of them."""
    known = Example("0", "aaaaaaaaaaaa", OPTIONS, 0)
    model.head_prior = HeadPrior(taus=(4.0,), labelled=((0.0,), (-20.0,), (-20.0,)), bias_std=0.1)
    also = Example("1", "aaaaaaaaaabb", OPTIONS, 1)
    posterior = model.adapt([known] * 10 + [also] * 10)
    strange = Example("2", "99 88 77 ?!", OPTIONS, None)
    assert posterior.suggest([replace(known, answer=None), strange, replace(also, answer=None)])[0] == 1


def test_suggestions_fall_in_mutual_information_and_keep_the_order_of_equals(model: AbmllModel) -> None:
    posterior, pool = model.adapt(examples()), [*ASKED, ASKED[0]]
    order = posterior.suggest([replace(one, answer=None) for one in pool])
    information = posterior.predict(pool).mutual_information
    assert sorted(order) == list(range(6))
    assert bool((information[order].diff() <= 0).all())
    assert order.index(5) == order.index(0) + 1


def test_the_expected_entropy_has_the_samples_share(model: AbmllModel) -> None:
    posterior = model.adapt(examples())
    found = posterior.predict(ASKED)
    draws = aligned_draws(posterior, ASKED, OPTIONS)
    of_samples = torch.distributions.Categorical(draws).entropy().mean(0)
    of_mean = torch.distributions.Categorical(draws.mean(0)).entropy()
    torch.testing.assert_close(found.expected_entropy / found.entropy, of_samples / of_mean)
    assert not torch.allclose(found.entropy, of_mean)
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(found.probs).entropy())


DAMAGES: list[tuple[str, Any]] = [
    ("labels", 3),
    ("labels", ["yes", "no"]),
    ("keys", ["a"]),
    ("seed", "x"),
    ("ordered", "no"),
    ("prior", {"bias_std": 1.0, "width": 2.0}),
    ("prior", {"bias_std": -1.0}),
    ("prior", [1.0]),
    ("prior", None),
]


@pytest.mark.parametrize(("name", "value"), DAMAGES)
def test_what_is_no_head_is_refused(model: AbmllModel, name: str, value: Any) -> None:
    head = head_of(model.adapt(examples(4)))
    assert head.document() == TaskHead.of(model.scorer, None, head.document(), head.tensors(), Path("p")).document()
    with pytest.raises(CheckpointError, match=r"^p: its head cannot be used .*; adapt to the task again$"):
        TaskHead.of(model.scorer, None, head.document() | {name: value}, head.tensors(), Path("p"))


@pytest.mark.parametrize("name", ["hidden", "scores", "answers"])
def test_a_head_without_its_tensors_is_refused(model: AbmllModel, name: str) -> None:
    head = head_of(model.adapt(examples(4)))
    tensors = {key: tensor for key, tensor in head.tensors().items() if key != name}
    for damaged in (tensors, tensors | {name: head.tensors()[name][1:]}):
        with pytest.raises(CheckpointError, match=r"^p: its head cannot be used"):
            TaskHead.of(model.scorer, None, head.document(), damaged, Path("p"))


def test_answers_that_no_example_has_are_refused(model: AbmllModel) -> None:
    """Those of several labels, and an option that is not there."""
    head = head_of(model.adapt(open_questions(4)))
    several, absent = head.answers[:, None].repeat(1, 4).clamp(max=1), head.answers.clone()
    absent[head.features.scores[..., 2:, 0].isneginf().any(-1)] = 3
    for answers in (several, absent):
        with pytest.raises(CheckpointError, match=r"^p: its head cannot be used"):
            TaskHead.of(model.scorer, None, head.document(), head.tensors() | {"answers": answers}, Path("p"))


def test_examples_are_read_once_for_all_heads_of_a_theta(model: AbmllModel) -> None:
    model.learning = LearningConfig()  # a model of ABMLL, whose heads are models of their own
    first = model.adapt(examples(), how="head")
    with counted(model.scorer) as cost:
        again = model.adapt(examples(), how="head")
    assert cost.forward_passes == 0
    assert_same(first.predict(ASKED), again.predict(ASKED))


def test_a_head_without_labels_is_fitted_once(model: AbmllModel) -> None:
    found = head_of(model.adapt(open_questions()))
    assert found.posterior is found.of_options
