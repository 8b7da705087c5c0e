"""MetaTrainer: the outer loop over episodes, its checkpoints and its metrics.

Everything random is a pure function of (seed, episode), so a run that goes on from a checkpoint computes the same bits
as one that was never stopped, and any number of processes the same as one.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from abmll.common.checkpoint import (
    checkpoints,
    keep_newest,
    write_best,
)
from abmll.common.config import LearningConfig, TrainConfig
from abmll.common.errors import ConfigError, DataError, ReportedError
from abmll.common.files import write_text
from abmll.common.locks import sole_writer
from abmll.common.processes import ALONE, Processes
from abmll.common.progress import progress
from abmll.common.settings import flatten, pick
from abmll.language.activation_cache import ActivationCache, open_cache
from abmll.language.adapter import Adapter
from abmll.language.meter import counted
from abmll.methods import State, make_rule, refuse_written
from abmll.model.card import run_card
from abmll.model.meta_learner import AbmllModel
from abmll.model.run_folder import CARD, METRICS, TIMING, VALIDATION, RunFolder
from abmll.posterior.calibration import CalibrationPrior
from abmll.tasks import Task
from abmll.training.callbacks import Callback, Callbacks
from abmll.training.early_stopping import is_over
from abmll.training.empirical_bayes import learn_calibration_prior
from abmll.training.episodes import Episodes
from abmll.training.outer_step import OuterStep
from abmll.training.refusals import refuse_too_many, refuse_unfit
from abmll.training.run_state import RunState
from abmll.training.sampler import EpisodeSampler
from abmll.training.trackers import trackers
from abmll.training.training_tasks import check_encodings, fingerprint, usable
from abmll.training.validation import Validation


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its folder, episodes done in all, gradient steps and tokens of this call.

    ``examples`` counts the distinct training examples that all episodes read, ``truncated`` those of them that were too
    long for the model and lost the middle of their input. ``evaluation`` is the line of validation.jsonl of the theta
    that the run has in the end, if it was evaluated; ``stopped_early`` says that the patience was used up.
    """

    folder: Path
    episodes: int
    gradient_steps: int
    tokens: int
    seconds: float
    examples: int
    truncated: int
    evaluation: Mapping[str, Any] | None = None
    stopped_early: bool = False


class MetaTrainer:
    """Meta-trains ``model`` on ``tasks`` and leaves the learned theta in it and in ``config.output_dir``.

    Training starts from a fresh theta that ``config.seed`` determines, whatever theta the model has. ``eval_tasks`` are
    validation tasks: theta is evaluated on them now and then, and learns nothing from them. ``processes`` each make a
    trainer of the same tasks and settings, and share the episodes of every outer step out; the first of them writes the
    run folder and calls the callbacks.
    Raises ``ConfigError`` for settings that contradict each other or a library of ``report_to`` that is not installed,
    ``DataError`` for tasks that cannot be trained on.
    """

    def __init__(
        self,
        model: AbmllModel,
        tasks: Sequence[Task],
        config: TrainConfig,
        cache: ActivationCache | None = None,
        callbacks: Sequence[Callback] = (),
        eval_tasks: Sequence[Task] = (),
        processes: Processes = ALONE,
    ) -> None:
        refuse_unfit(config)
        refuse_too_many(processes.size, config.meta_batch)
        self.processes = processes
        self.validation = Validation(eval_tasks, config)
        self.folder = RunFolder(Path(config.output_dir))
        told = [*callbacks, *trackers(config.report_to, self.folder.path)] if processes.is_first else []
        self.callbacks = Callbacks(told)
        self.model = model
        self.config = config
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if config.compile and model.scorer.compilation is None:
            model.compile()
        if model.scorer.compilation is not None and not config.compile:
            raise ConfigError(
                "compile: this model's steps are compiled, which the run's settings must say; set it there, or call "
                "model.compile(None)"
            )
        self.rule = make_rule(model.scorer, config, len(tasks))
        if model.scorer.base.shards is not None and not self.rule.accumulates:
            raise ConfigError(
                f"shard_base: {self.rule.name} takes the gradient of a whole episode at its end, when blocks are in "
                "parts again; use fomaml, or leave shard_base out"
            )
        query = self.rule.needs_query
        self.tasks = usable(tasks, min_examples=1 + query if self.rule.draws_from == "task" else 0)
        if self.tasks[0].is_written:
            refuse_written(config.method, config.compile)
        self.data_sha256 = fingerprint(self.tasks)
        sizes, part_size = [len(task.train) for task in self.tasks], config.per_device_train_batch_size
        batch_size = part_size * config.gradient_accumulation_steps
        sampler = EpisodeSampler(config.seed, sizes, batch_size, config.inner_steps, query, self.rule.draws_from)
        if cache is None:
            cache = open_cache(model.scorer.base, model.scorer.lower_blocks, config, config.activation_cache_gb)
        shown = config.num_demonstrations if self.rule.demonstrations else 0
        self.cache = cache
        # A head reads all blocks of an episode's examples itself.
        kept = cache if self.rule.classifier is None else None
        self.episodes = Episodes(model.scorer, self.tasks, sampler, kept, shown, part_size)
        self.outer_step = OuterStep(self.rule, self.episodes, config, processes)
        names = tuple(task.name for task in self.tasks)
        known = self.data_sha256, self.validation.fingerprint
        self.saved = RunState(self.folder, self.rule, self.settings(), names, *known)

    def settings(self) -> dict[str, Any]:
        """Everything that determines the run but its tasks, flat and fit for YAML: what ``config.yaml`` holds."""
        return self.model.scorer.settings() | flatten(self.config)

    def describe(self) -> str:
        """One line on what will be trained: rule, tasks, trainable numbers, adapted layers."""
        state = self.rule.init(self.model.theta)
        learned = [tensor for optimizer in state.optimizers().values() for tensor in optimizer.named.values()]
        number = len(self.tasks)
        return (
            f"{self.rule.label}: {number} task{'s' * (number != 1)}, "
            f"{sum(self.episodes.sampler.sizes)} training examples; "
            f"{sum(tensor.numel() for tensor in learned):,} trainable numbers in {len(self.model.scorer.shapes)} layers"
        )

    def train(self, *, resume: bool = False, overwrite: bool = False, quiet: bool = True) -> TrainResult:
        """Run until ``max_steps`` episodes are done, or evaluations have not improved for too long.

        Args:
            resume: go on from the newest checkpoint of the run folder.
            overwrite: replace a run that is in the folder.
            quiet: show no progress bar.

        Raises ``TrainingError`` (with episode and task) where a loss term is not finite or theta does not move; the
        last checkpoint stays intact. Raises ``DataError`` for an example too long to learn from, before anything else,
        and ``AbmllError`` where another process trains in the folder.
        """
        with ExitStack() as held:
            with self.processes.agreed():
                if self.processes.is_first:
                    held.enter_context(sole_writer(self.folder.path))
            return self._train(resume, overwrite, quiet or not self.processes.is_first)

    def _train(self, resume: bool, overwrite: bool, quiet: bool) -> TrainResult:
        config, encoder = self.config, self.model.scorer.encoder
        drawn = self.episodes.sampler.drawn(config.max_steps)
        with self.processes.agreed():
            examples, truncated = check_encodings(encoder, self.tasks, drawn, quiet)
            self.validation.check(self.model)
        state, episode = self._begin(resume, overwrite)
        started, steps, tokens, result = time.perf_counter(), 0, 0, None
        with progress(config.max_steps, f"training {self.rule.label}", "episode", quiet=quiet) as bar:
            bar.update(episode)
            try:
                self.callbacks.on_start(self.settings())
                while episode < config.max_steps and not is_over(self.validation.rows, config):
                    rows = self.outer_step.take(state, episode)
                    with self.processes.agreed():
                        for row, cost in rows:
                            episode, steps, tokens = episode + 1, steps + cost["steps"], tokens + cost["tokens"]
                            self._append(METRICS, row)
                            self._append(TIMING, cost)
                            self.callbacks.on_step(episode, row)
                            bar.set_postfix(nll=f"{row['nll']:.3f}", accuracy=f"{row['accuracy']:.2f}")
                    self._evaluate_and_save(state, episode)
                    bar.update(config.meta_batch)
                evaluation = self._finish(state.theta, episode, quiet)
                counts = {"examples": examples, "truncated": truncated, "gradient_steps": steps, "tokens": tokens}
                ended = {"evaluation": evaluation, "stopped_early": episode < config.max_steps}
                seconds = time.perf_counter() - started
                result = TrainResult(self.folder.path, episode, seconds=seconds, **counts, **ended)
                return result
            except KeyboardInterrupt:
                if not self.processes.is_first:
                    raise ReportedError("interrupted") from None
                saved = max(checkpoints(self.folder.path), default=0)  # a checkpoint may just have been completed
                again = f"--resume to go on from episode {saved}" if saved else "--overwrite: no checkpoint was due yet"
                raise KeyboardInterrupt(f"{self.folder.path}: run the same command with {again}") from None
            finally:
                self.callbacks.on_end(result)

    def _begin(self, resume: bool, overwrite: bool) -> tuple[State, int]:
        """The state to begin or to go on from, and the episodes done so far: what the first process has found."""
        tensors: dict[str, Tensor] = {}
        episode, rows, base = 0, [], self.model.scorer.base
        own = [self.data_sha256, self.validation.fingerprint, base.fingerprint, self.settings()]
        known = self.processes.told(own)
        with self.processes.agreed():
            if any(one != known[0] for one in known):
                raise DataError(
                    "the processes have read different tasks or models, or have other settings; give all the same"
                )
            if self.processes.is_first:
                if resume:
                    episode, tensors = self.saved.read()
                    rows = self.folder.rows(VALIDATION)
                else:
                    self.folder.start(self.settings(), overwrite)
        episode, self.validation.rows = self.processes.of_first([episode, rows])
        return self.saved.state(episode, self.processes.tensors_of_first(tensors) if resume else {}), episode

    def _evaluate_and_save(self, state: State, episode: int) -> None:
        """What is due after an episode. With the best theta wanted at the end, each new best one is saved."""
        config, validation = self.config, self.validation
        if validation.is_due(episode):
            how: dict[str, Any] = {"cache": self.cache, "processes": self.processes}
            found = validation.evaluate(self.model, state.theta, len(self.tasks), episode, **how)
            self._append(VALIDATION, found)
            self.callbacks.on_evaluate(episode, found)
        ends = episode == config.max_steps or is_over(validation.rows, config)
        due = ends or episode % config.save_steps == 0 or validation.best_episode() == episode
        with self.processes.agreed():
            if due and self.processes.is_first:
                self._save(state, episode)

    def _save(self, state: State, episode: int) -> None:
        path = self.saved.save(state, episode)
        keep_newest(
            self.folder.path, self.config.save_total_limit, self.validation.best_episode(checkpoints(self.folder.path))
        )
        self.callbacks.on_save(episode, path)

    def _finish(self, theta: Adapter, last: int, quiet: bool) -> Mapping[str, Any] | None:
        """Hand the model what was learned and write the card; learn theta's calibration unless an earlier call did.

        Returns the evaluation of that theta, if there is one.
        """
        config, first = self.config, self.processes.is_first
        theta, episode = self._chosen(theta, last)
        self.model.learned(theta, pick(LearningConfig, flatten(config)), len(self.tasks))
        if self.rule.has_calibration and config.calibration_tasks and not self.tasks[0].is_written:
            self.model.calibration_prior = self._calibration(episode, quiet)
        names = [task.name for task in self.tasks]
        self.model.episodes, self.model.trained_on = episode, tuple(names)
        if first:
            run, rows, fingerprint = str(self.folder.path), self.folder.rows(), self.model.scorer.base.fingerprint
            remark = self.validation.ending(last, episode)
            card = run_card(run, self.settings(), fingerprint, names, last, rows, remark=remark)
            write_text(self.folder.path / CARD, card)
        return self.validation.row(episode)

    def _chosen(self, theta: Adapter, last: int) -> tuple[Adapter, int]:
        """The best theta that is saved, where that is wanted, or else the last; and of after which episode it is."""
        best, tensors = None, {}
        with self.processes.agreed():
            if self.processes.is_first:
                best = self.validation.best_episode(checkpoints(self.folder.path))
                if best not in (None, last):
                    tensors = self.saved.theta(best)
                    write_best(self.folder.path, best)
        best = self.processes.of_first(best)
        if best in (None, last):
            return theta, last
        theta = theta.clone()
        theta.load_state_dict(self.processes.tensors_of_first(tensors), str(self.saved.path(best)))
        return theta, best

    def _calibration(self, episode: int, quiet: bool) -> CalibrationPrior:
        """Theta's calibration of after ``episode``: that of the run folder, or learned now."""
        config = self.config
        wanted = {"num_tasks": config.calibration_tasks, "num_examples": config.calibration_examples}
        there = None
        with self.processes.agreed():
            if self.processes.is_first:
                there = self.folder.calibration(episode, wanted)
        known = self.processes.of_first(there and asdict(there))
        if known is not None:
            return CalibrationPrior(**known)
        how: dict[str, Any] = {"seed": config.seed, "cache": self.cache, "quiet": quiet}
        with counted(self.model.scorer) as cost:
            prior = learn_calibration_prior(self.model, self.tasks, **wanted, **how, processes=self.processes)
        costs = self.processes.told(cost.of_run())
        with self.processes.agreed():
            if self.processes.is_first:
                whole = {kind: sum(one[kind] for one in costs) for kind in costs[0]}
                self.folder.write_calibration(episode, prior, wanted, whole)
        return prior

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if self.processes.is_first:
            self.folder.append(name, row)
