"""What an episode reads, and which tasks cannot be learned from."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import LearningConfig, PromptConfig
from abmll.common.errors import DataError
from abmll.language.activation_cache import ActivationCache
from abmll.language.batch import Batch
from abmll.language.encoded_store import kept
from abmll.tasks import Example, Task
from abmll.training.episodes import Episodes

CONFIG = LearningConfig(inner_steps=2, per_device_train_batch_size=3)


def make(model: AbmllModel, tasks: list[Task], draws_from: Any = "task", **settings: Any) -> Episodes:
    return Episodes(model.scorer, tasks, replace(CONFIG, **settings), draws_from)


def test_tasks_are_taken_by_name_whatever_their_order(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    one, other = make(tiny_model, toy_tasks), make(tiny_model, toy_tasks[::-1])
    assert one.sha256() == other.sha256()
    assert [one.name(episode) for episode in range(6)] == [other.name(episode) for episode in range(6)]
    assert {one.name(episode) for episode in range(3)} == {"toy0", "toy1", "toy2"}


def test_batches_are_the_drawn_examples_in_tokens(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    episodes = make(tiny_model, toy_tasks)
    drawn, batches = episodes.examples_of(4), list(episodes.batches(4))
    assert [len(batch.answers) for batch in batches] == [3, 3]
    for pairs, batch in zip(drawn, batches, strict=True):
        examples = [episodes.examples[task][index] for task, index in pairs]
        wanted = tiny_model.scorer.batch(tiny_model.scorer.encode(examples, episodes.name(4)))
        assert torch.equal(batch.input_ids, wanted.input_ids)
        assert torch.equal(batch.answers, wanted.answers)
    assert len({index for pairs in drawn for _, index in pairs}) == 6  # no example twice


@pytest.mark.parametrize("draws_from", ["task", "union"])
def test_preparing_makes_the_tokens_of_what_is_drawn_and_of_nothing_else(
    tiny_model: AbmllModel, toy_tasks: list[Task], draws_from: str
) -> None:
    episodes, fresh = (make(tiny_model, toy_tasks, draws_from, inner_steps=3) for _ in range(2))
    for count in (1, 5, 100):
        episodes.prepare(count)
        drawn = {pair for episode in range(count) for pairs in episodes.examples_of(episode) for pair in pairs}
        assert {*episodes.encoded} == drawn
        for task, index in drawn:
            example, name = episodes.examples[task][index], episodes.tasks[task].name
            assert episodes.encoded[task, index] == tiny_model.scorer.encoder.encode(example, name)
    assert len(episodes.encoded) == sum(len(task.train) for task in toy_tasks)  # a hundred episodes read everything
    for one, other in zip(episodes.batches(3), fresh.batches(3), strict=True):  # prepared or not
        assert torch.equal(one.input_ids, other.input_ids)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where tokens are kept, however few."""
    monkeypatch.setattr("abmll.training.episodes.kept", partial(kept, folder=tmp_path, min_examples=1))
    return tmp_path


def test_tokens_are_made_once_for_the_same_examples_and_settings(
    tiny_model: AbmllModel, toy_tasks: list[Task], stored: Path
) -> None:
    changed = replace(toy_tasks[0], examples=(Example("new", "new", ("yes", "no"), 0), *toy_tasks[0].examples))
    renamed = replace(toy_tasks[0], name="toy")
    others = [[one, *toy_tasks[1:]] for one in (changed, renamed)]
    first, again = (make(tiny_model, toy_tasks) for _ in range(2))
    first.prepare(100)
    [entry] = stored.iterdir()
    written = entry.stat().st_ino
    again.prepare(120)  # reads the same: everything
    assert dict(again.encoded) == dict(first.encoded)
    assert ([*stored.iterdir()], entry.stat().st_ino) == ([entry], written)
    for number, tasks in enumerate(others):
        other = make(tiny_model, tasks)
        other.prepare(100)
        assert len([*stored.iterdir()]) == 2 + number
        for (task, index), encoded in other.encoded.items():
            assert encoded == other.scorer.encoder.encode(other.examples[task][index], other.tasks[task].name)


def test_an_example_too_long_is_refused_with_its_file(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    long = Example("long", "x", ("a" * 3000, "b"), 0, "train")
    task = Task("toy9", tuple(replace(long, id=str(n), input=f"{n}") for n in range(9)), source="toy9.jsonl")
    with pytest.raises(DataError, match=r"^toy9.jsonl: task 'toy9', example '0': options and prompt frame leave no"):
        make(tiny_model, [*toy_tasks, task]).prepare(20)


def test_only_training_examples_are_drawn(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    for draws_from in ("task", "union"):
        episodes = make(tiny_model, toy_tasks, draws_from)
        drawn = {
            episodes.examples[t][i]
            for episode in range(40)
            for pairs in episodes.examples_of(episode)
            for t, i in pairs
        }
        assert drawn <= {example for task in toy_tasks for example in task.train}
        assert not drawn & {example for task in toy_tasks for example in task.test}


def test_a_query_batch_is_one_more_without_common_examples(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    drawn = Episodes(tiny_model.scorer, toy_tasks, CONFIG, "task", needs_query=True).examples_of(0)
    assert [len(pairs) for pairs in drawn] == [3, 3, 3]
    assert not {*drawn[2]} & {*drawn[0], *drawn[1]}
    assert drawn[:2] == make(tiny_model, toy_tasks).examples_of(0)


def test_noise_differs_between_steps_episodes_and_seeds(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    def first(episode: int, step: int, seed: int = 0) -> float:
        return float(torch.randn((), generator=make(tiny_model, toy_tasks, seed=seed).generator(episode, step)))

    assert first(1, 2) == first(1, 2)
    assert len({first(0, 0), first(0, 1), first(1, 0), first(0, 0, seed=1)}) == 4


def test_a_activation_cache_holds_each_example_once(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    cache = ActivationCache(10**8)
    episodes = Episodes(tiny_model.scorer, toy_tasks, CONFIG, "task", cache)
    episodes.prepare(2)
    for episode in (0, 0, 1):
        assert all(batch.lower is not None for batch in episodes.batches(episode))
    assert len(cache.kept) == len(episodes.encoded) == 12


@pytest.mark.parametrize("change", ["name", "input", "options", "answer", "fewer"])
def test_the_hash_sees_every_change_of_what_is_learned(
    tiny_model: AbmllModel, toy_tasks: list[Task], change: str
) -> None:
    def marked(example: Example) -> Example:
        return replace(example, split="train")

    rows = [marked(example) for example in toy_tasks[0].train]
    task = Task("toy0", tuple(rows))
    first = rows[0]
    changed = {
        "name": replace(task, name="toy9"),
        "input": replace(task, examples=(replace(first, input="other"), *rows[1:])),
        "options": replace(task, examples=(replace(first, options=("yes", "nay")), *rows[1:])),
        "answer": replace(task, examples=(replace(first, answer=1 - (first.answer or 0)), *rows[1:])),
        "fewer": replace(task, examples=tuple(rows[1:])),
    }[change]
    before, after = (make(tiny_model, [one, *toy_tasks[1:]]).sha256() for one in (task, changed))
    assert before != after
    unread = replace(task, family="f", source="elsewhere", examples=(replace(first, id="new"), *rows[1:]))
    assert make(tiny_model, [unread, *toy_tasks[1:]]).sha256() == before


def example(number: int, **changes: Any) -> Example:
    return replace(Example(str(number), f"word {number}", ("yes", "no"), 0, "train"), **changes)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "no training tasks; give at least one"),
        (
            [Task("small", tuple(example(n) for n in range(5)), source="small.jsonl")],
            "small.jsonl: 5 training examples, but an episode takes 2 batches of 3; lower inner_steps or per_device_",
        ),
        (
            [Task("t", (example(0, answer=None), *(example(n) for n in range(1, 9))))],
            "task 't': training example '0' has no answer to learn from",
        ),
        ([Task("t", tuple(example(n) for n in range(9)))] * 2, "2 training tasks are called 't'; give each a name"),
    ],
)
def test_unusable_tasks_are_refused(tiny_model: AbmllModel, tasks: list[Task], words: str) -> None:
    with pytest.raises(DataError) as caught:
        make(tiny_model, tasks)
    assert str(caught.value).startswith(words)


def test_small_tasks_do_in_a_union_but_not_none_at_all(tiny_model: AbmllModel) -> None:
    episodes = make(tiny_model, [Task("small", (example(0), example(1)))], "union")
    assert len(episodes.examples_of(0)) == 2
    with pytest.raises(DataError, match="the training tasks have no training examples"):
        make(tiny_model, [Task("tests", (example(0, split="test"),))], "union")


def test_demonstrations_are_other_examples_of_the_task_the_same_for_a_whole_episode(
    tiny_model: AbmllModel, toy_tasks: list[Task]
) -> None:
    episodes = Episodes(tiny_model.scorer, toy_tasks, CONFIG, "task", shown=2)
    seen = set()
    for episode in range(6):
        task = episodes.tasks[episodes.examples_of(episode)[0][0][0]]
        asked = {task.train[index].input for pairs in episodes.examples_of(episode) for _, index in pairs}
        [shown] = {_shown(tiny_model, batch) for batch in episodes.batches(episode)}
        assert len(shown) == 2
        answers = {example.input: example.options[example.answer or 0] for example in task.train}
        for text in shown:
            name, _, rest = text.partition(": ")
            question, answer = rest.split("\nAnswer: ")
            assert name == task.name
            assert question not in asked
            assert answers[question] == answer
        seen.add(shown)
    assert len(seen) > 3
    assert episodes.left_out == 0


def _shown(model: AbmllModel, batch: Batch) -> tuple[str, ...]:
    """What stands before a packed batch's first question."""
    text = model.scorer.encoder.tokenizer.decode(batch.input_ids[0])
    assert isinstance(text, str)
    return tuple(text.split("\n\n")[:-1])


def test_demonstrations_that_do_not_fit_are_counted(tiny_llama: Path, toy_tasks: list[Task]) -> None:
    model = AbmllModel.from_base(str(tiny_llama), prompt=PromptConfig(instruction=False, max_length=90))
    episodes = Episodes(model.scorer, toy_tasks, CONFIG, "task", shown=5)
    [first, *_] = episodes.batches(0)
    assert episodes.left_out > 0
    assert 1 <= len(_shown(model, first)) < 5
