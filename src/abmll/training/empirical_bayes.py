"""theta's calibration: what the training tasks say of the inverse temperature and the biases of a task to come."""

from collections.abc import Sequence
from dataclasses import replace

from abmll.common.config import EvaluateConfig
from abmll.common.processes import ALONE, Processes
from abmll.common.progress import progress
from abmll.language.activation_cache import ActivationCache
from abmll.model.meta_learner import AbmllModel
from abmll.model.prequential import evidence, labels_of
from abmll.posterior.calibration import CalibrationPrior, Evidence, learn_prior, log_probs
from abmll.tasks import Task
from abmll.tasks.order import permutation

SAMPLES = 4  # of the weights at most: the prior depends little on their number


def learn_calibration_prior(
    model: AbmllModel,
    tasks: Sequence[Task],
    *,
    num_tasks: int,
    num_examples: int,
    how: EvaluateConfig | None = None,
    seed: int = 0,
    cache: ActivationCache | None = None,
    quiet: bool = True,
    processes: Processes = ALONE,
) -> CalibrationPrior:
    """Adapt to training tasks as to unseen ones, and predict held-out training examples of each.

    Args:
        num_tasks: at most so many tasks, drawn by the seed.
        num_examples: of each task to adapt to, and as many others to predict; half each where a task has fewer.
        how: how a task is adapted to and predicted.
        processes: share the tasks out.
    """
    how = how or EvaluateConfig()
    how = replace(how, num_samples=min(how.num_samples, SAMPLES), use_calibration=False)
    chosen = [tasks[index] for index in sorted(permutation(len(tasks), seed, "readout tasks")[:num_tasks])]
    chosen = [task for task in chosen if min(num_examples, len(task.train) // 2)]
    own = []
    with processes.agreed():
        numbers = processes.own(len(chosen))
        for number in progress(numbers, "learning the calibration", "task", quiet=quiet):
            task = chosen[number]
            order = permutation(len(task.train), seed, "readout", task.name)
            size = min(num_examples, len(order) // 2)
            support, held_out = ([task.train[i] for i in part] for part in (order[:size], order[size : 2 * size]))
            adapted = model.adapt(
                support, task_name=task.name, steps=how.steps, batch_size=how.batch_size, seed=seed, cache=cache
            )
            predicted = log_probs(adapted.predict(held_out, how, seed=seed, cache=cache).probs)
            labels = labels_of([*support, *held_out])  # a bias is that of an option, which both must have
            own.append(evidence(held_out, [(range(size), predicted)], labels).tensors())
    return learn_prior([Evidence.of(one) for one in processes.joined_tensors(own, len(chosen))])
