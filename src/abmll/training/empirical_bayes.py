"""theta's calibration: what the training tasks say of the inverse temperature and the biases of a task to come."""

from collections.abc import Sequence
from dataclasses import replace

from abmll.common.config import EvaluateConfig
from abmll.common.progress import progress
from abmll.language.activation_cache import ActivationCache
from abmll.model.meta_learner import AbmllModel
from abmll.model.prequential import evidence, labels_of
from abmll.posterior.calibration import CalibrationPrior, Evidence, learn_prior, log_probs
from abmll.tasks import Example, Task
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
) -> CalibrationPrior:
    """Adapt to training tasks as to unseen ones, and ask each of them as many held-out training examples.

    Args:
        num_tasks: at most so many tasks, drawn by the seed.
        num_examples: of each task to adapt to, and as many others to ask; half each where a task has fewer.
        how: how a task is adapted to and predicted.
    """
    how = how or EvaluateConfig()
    how = replace(how, num_samples=min(how.num_samples, SAMPLES), use_calibration=False)
    chosen = [tasks[index] for index in sorted(permutation(len(tasks), seed, "readout tasks")[:num_tasks])]
    found = []
    with progress(len(chosen), "learning the calibration", "task", quiet=quiet) as bar:
        for task in chosen:
            order = permutation(len(task.train), seed, "readout", task.name)
            size = min(num_examples, len(order) // 2)
            support, asked = ([task.train[index] for index in part] for part in (order[:size], order[size : 2 * size]))
            if size:
                found.append(_answers(model, task.name, support, asked, how, seed, cache))
            bar.update()
    return learn_prior(found)


def _answers(
    model: AbmllModel,
    name: str,
    support: Sequence[Example],
    asked: Sequence[Example],
    how: EvaluateConfig,
    seed: int,
    cache: ActivationCache | None,
) -> Evidence:
    """What a task's held-out examples are answered, once it is learned."""
    posterior = model.adapt(support, task_name=name, steps=how.steps, batch_size=how.batch_size, seed=seed, cache=cache)
    prediction = posterior.predict(asked, how, seed=seed, cache=cache)
    labels = labels_of([*support, *asked])  # a bias is that of an option, which both must have
    return evidence(asked, [(range(len(asked)), log_probs(prediction.probs))], labels)
