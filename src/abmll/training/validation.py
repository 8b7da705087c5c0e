"""Validation tasks: how well theta does on tasks that it does not learn from, while it is being learned.

Every evaluation adapts to the same examples and asks the same questions. Its noise comes from generators of its own, so
training computes the same bits with and without it.
"""

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import torch

from abmll.common.config import EvaluateConfig, LearningConfig, TrainConfig
from abmll.common.documents import Document
from abmll.common.errors import ConfigError, DataError, TrainingError
from abmll.common.processes import ALONE, Processes
from abmll.common.settings import flatten, pick
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.model.meta_learner import AbmllModel
from abmll.tasks import Example, Task
from abmll.tasks.evaluation_examples import choose_examples
from abmll.training.early_stopping import best_row


def needs_tasks(config: TrainConfig) -> list[str]:
    """The settings that are given and mean nothing without validation tasks."""
    return [
        name for name in ("eval_steps", "load_best_model_at_end", "early_stopping_patience") if getattr(config, name)
    ]


class Validation:
    """The validation tasks of a run (none: nothing is ever due), and ``rows``, what was found out so far.

    Raises ``ConfigError`` for settings that need validation tasks where there are none, ``DataError`` for tasks of one
    name, or one without labelled training or test examples.
    """

    def __init__(self, tasks: Sequence[Task], config: TrainConfig) -> None:
        if not tasks and (names := needs_tasks(config)):
            raise ConfigError(f"{names[0]}: no validation tasks to evaluate on; name them with --eval-tasks")
        for task in tasks:
            if task.is_written:
                raise ConfigError(
                    f"eval_tasks: the answers of '{task.name}' are written, and only chosen ones are evaluated while "
                    "training; leave them out, and run abmll evaluate afterwards"
                )
        self.config = config
        self.how = EvaluateConfig(
            steps=config.eval_adapt_steps,
            adapt_examples=config.eval_examples,
            test_examples=config.eval_test_examples,
            use_calibration=False,  # theta learns what to expect of it at the end
        )
        ordered = sorted(tasks, key=lambda task: task.name)
        self.chosen = {task.name: choose_examples(task, self.how, config.seed) for task in ordered}
        if len(self.chosen) < len(tasks):
            raise DataError("validation tasks of the same name; give each a name of its own")
        self.every = config.eval_steps or config.save_steps
        self.rows: list[Document] = []

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of all that an evaluation depends on but theta; None without tasks."""
        if not self.chosen:
            return None
        content = {
            name: [[(one.input, one.options, one.answer) for one in part] for part in parts]
            for name, parts in self.chosen.items()
        }
        return hashlib.sha256(json.dumps([content, flatten(self.how)]).encode()).hexdigest()

    def check(self, model: AbmllModel) -> None:
        """Encode every example once. Raises ``DataError`` for one that is too long to be used."""
        for name, parts in self.chosen.items():
            for part in parts:
                model.scorer.encode(part, name)

    def is_due(self, episode: int) -> bool:
        """Whether theta is evaluated after so many episodes."""
        return bool(self.chosen) and (episode % self.every == 0 or episode == self.config.max_steps)

    def evaluate(
        self,
        model: AbmllModel,
        theta: Adapter,
        num_tasks: int,
        episode: int,
        cache: ActivationCache | None,
        processes: Processes = ALONE,
    ) -> Document:
        """Adapt ``theta`` to every task, answer its questions, and add what comes out to ``rows``.

        Returns:
            ``episode``; ``nll`` in nats and ``accuracy``, means over the questions of all tasks; how many these are.

        The ``processes`` share the tasks out. Raises ``TrainingError`` where a loss of an adaptation is not finite.
        """
        learner = copy.copy(model)  # the scorer is shared, theta and settings are its own
        learner.learned(theta, pick(LearningConfig, flatten(self.config)), num_tasks)
        how: dict[str, Any] = {"seed": self.config.seed, "cache": cache}
        tasks, own = list(self.chosen.items()), []
        with processes.agreed():
            for number in processes.own(len(tasks)):
                name, (support, questions) = tasks[number]
                try:
                    posterior = learner.adapt(
                        support, task_name=name, steps=self.how.steps, batch_size=self.how.batch_size, **how
                    )
                except TrainingError as error:
                    raise TrainingError(f"evaluation after episode {episode}: {error}") from error
                own.append(_outcomes(posterior.predict(questions, self.how, **how).probs, questions))
        found = processes.joined_tensors(own, len(tasks))
        nll, correct = (torch.cat([one[kind] for one in found]) for kind in ("nll", "correct"))
        numbers = {"nll": float(nll.mean()), "accuracy": float(correct.mean())}
        row = {"episode": episode, **numbers, "num_tasks": len(found), "num_examples": len(nll)}
        row = processes.of_first(row)  # all stop early by the same numbers, however their processors round
        self.rows.append(row)
        return row

    def row(self, episode: int) -> Document | None:
        """The evaluation after that episode, if there is one."""
        return next((row for row in self.rows if row["episode"] == episode), None)

    def best_episode(self, saved: Collection[int] | None = None) -> int | None:
        """The episode of the best evaluation (of those ``saved``), where its theta is wanted at the end; else None."""
        rows = [row for row in self.rows if saved is None or row["episode"] in saved]
        best = best_row(rows, self.config.metric_for_best_model) if self.config.load_best_model_at_end else None
        return None if best is None else best["episode"]

    def ending(self, last: int, chosen: int) -> str:
        """How a run ended after episode ``last`` with theta of after ``chosen``, in words; none without tasks."""
        config, row, said = self.config, self.row(chosen), []
        if last < config.max_steps:
            said.append(
                f"Stopped early, after episode {last} of {config.max_steps}: {config.early_stopping_patience} "
                f"evaluations in a row had no better {config.metric_for_best_model}. To go on, add --resume and a "
                "larger --early-stopping-patience."
            )
        if chosen != last:
            said.append(f"Theta is that of after episode {chosen}, the best evaluation.")
        if row is not None:
            said.append(
                f"On {row['num_examples']} questions of {row['num_tasks']} validation tasks it has NLL "
                f"{row['nll']:.3f} and accuracy {row['accuracy']:.3f}, before the calibration."
            )
        return "\n".join(said)


def _outcomes(probs: torch.Tensor, questions: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Negative log-likelihood and correctness (N,) in float64 of probabilities (N, C), by these names."""
    answers = torch.tensor([example.answer for example in questions])
    right = probs.gather(1, answers[:, None])[:, 0]
    nll = -right.clamp(min=torch.finfo(torch.float64).tiny).log()
    return {"nll": nll, "correct": (probs.argmax(-1) == answers).double()}
