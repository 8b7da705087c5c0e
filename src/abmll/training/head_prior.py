"""theta's part of the head, meta-learned: episodes of support and query from training tasks, on features read once."""

from collections.abc import Sequence

from abmll.common.progress import progress
from abmll.language.activation_cache import ActivationCache
from abmll.model.meta_learner import AbmllModel
from abmll.model.prequential import answer_columns, labels_of
from abmll.model.task_head import aligned
from abmll.posterior.head_learning import STEPS, Episode, learn_prior
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.tasks import Task
from abmll.tasks.order import permutation


def learn_head_prior(
    model: AbmllModel,
    tasks: Sequence[Task],
    *,
    num_tasks: int,
    num_examples: int,
    seed: int = 0,
    cache: ActivationCache | None = None,
    quiet: bool = True,
) -> HeadPrior:
    """The prior under which the head, having learned some training examples of a task, best predicts others.

    Args:
        num_tasks: at most so many tasks, drawn by the seed.
        num_examples: of each task to learn, and as many others to predict; half each where a task has fewer.
    """
    chosen = [tasks[index] for index in sorted(permutation(len(tasks), seed, "head tasks")[:num_tasks])]
    episodes = head_episodes(model, chosen, num_examples, seed, cache, quiet)
    with progress(STEPS, "learning the head's prior", "step", quiet=quiet) as bar:
        return learn_prior(episodes, model.head_prior, bar.update)


def head_episodes(
    model: AbmllModel,
    tasks: Sequence[Task],
    num_examples: int,
    seed: int,
    cache: ActivationCache | None = None,
    quiet: bool = True,
) -> list[Episode]:
    """An episode of each task: so many training examples to learn, and as many others to predict."""
    reader, episodes = model.reader(cache), []
    for task in progress(tasks, "reading the training tasks", "task", quiet=quiet):
        order = permutation(len(task.train), seed, "head", task.name)
        size = min(num_examples, len(order) // 2)
        if size:
            examples = [task.train[index] for index in order[: 2 * size]]
            labels = sorted(labels_of(examples))
            features = aligned(reader.read(model.scorer.encode(examples, task.name)), examples, labels)
            answers = answer_columns(examples, labels)
            support, query = (
                Known(features.hidden[own], features.scores[own], bool(labels))
                for own in (slice(0, size), slice(size, 2 * size))
            )
            episodes.append(Episode(support, answers[:size], query, answers[size:]))
    return episodes
