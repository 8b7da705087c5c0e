"""What an episode reads: the drawn examples in tokens, its demonstrations, its noise."""

from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import PromptConfig
from abmll.language.activation_cache import ActivationCache
from abmll.language.batch import Batch
from abmll.tasks import Example, Task
from abmll.training.episodes import Episodes
from abmll.training.sampler import EpisodeSampler


def make(model: AbmllModel, tasks: list[Task], draws_from: Any = "task", seed: int = 0, **settings: Any) -> Episodes:
    sizes = [len(task.train) for task in tasks]
    return Episodes(model.scorer, tasks, EpisodeSampler(seed, sizes, 3, 2, draws_from=draws_from), **settings)


@pytest.mark.parametrize("draws_from", ["task", "union"])
def test_batches_are_the_drawn_examples_in_tokens(
    tiny_model: AbmllModel, toy_tasks: list[Task], draws_from: str
) -> None:
    episodes, encode = make(tiny_model, toy_tasks, draws_from), tiny_model.scorer.encoder.encode
    drawn, batches = episodes.sampler.batches(4), list(episodes.batches(4))
    assert [len(batch.answers) for batch in batches] == [3, 3]
    assert len({pair for pairs in drawn for pair in pairs}) == 6  # no example twice
    for pairs, batch in zip(drawn, batches, strict=True):
        wanted = tiny_model.scorer.batch([encode(toy_tasks[t].train[i], toy_tasks[t].name) for t, i in pairs])
        assert torch.equal(batch.input_ids, wanted.input_ids)
        assert torch.equal(batch.answers, wanted.answers)
    assert episodes.name(4) == ("union" if draws_from == "union" else toy_tasks[drawn[0][0][0]].name)


def test_noise_differs_between_steps_episodes_and_seeds(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    def first(episode: int, step: int, seed: int = 0) -> float:
        return float(torch.randn((), generator=make(tiny_model, toy_tasks, seed=seed).generator(episode, step)))

    assert first(1, 2) == first(1, 2)
    assert len({first(0, 0), first(0, 1), first(1, 0), first(0, 0, seed=1)}) == 4


def test_an_activation_cache_holds_each_example_once(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    cache = ActivationCache(10**8)
    episodes = make(tiny_model, toy_tasks, cache=cache)
    for episode in (0, 0, 1):
        assert all(batch.lower is not None for batch in episodes.batches(episode))
    assert len(cache.kept) == sum(map(len, episodes.sampler.drawn(2))) == 12


def test_demonstrations_are_other_examples_of_the_task_the_same_for_a_whole_episode(
    tiny_model: AbmllModel, toy_tasks: list[Task]
) -> None:
    episodes = make(tiny_model, toy_tasks, shown=2)
    seen = set()
    for episode in range(6):
        task = episodes.tasks[episodes.sampler.batches(episode)[0][0][0]]
        asked = {task.train[index].input for pairs in episodes.sampler.batches(episode) for _, index in pairs}
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
    episodes = make(model, toy_tasks, shown=5)
    [first, *_] = episodes.batches(0)
    assert episodes.left_out > 0
    assert 1 <= len(_shown(model, first)) < 5


def test_where_all_examples_are_asked_fewer_are_shown(tiny_model: AbmllModel) -> None:
    for size, shown in ((6, 0), (7, 1)):
        task = Task("t", tuple(Example(str(n), f"word {n}", ("yes", "no"), 0, "train") for n in range(size)))
        [first, *_] = make(tiny_model, [task], shown=2).batches(0)
        assert len(_shown(tiny_model, first)) == shown
