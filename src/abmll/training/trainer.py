"""MetaTrainer: the outer loop over episodes, its checkpoints and its metrics.

Everything random is a pure function of (seed, episode), so a run that goes on from a checkpoint computes the same bits
as one that was never stopped.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abmll.common.checkpoint import (
    PREFIX,
    STATE,
    Bundle,
    checkpoints,
    keep_newest,
    latest_checkpoint,
    load_bundle,
    refuse_other_base,
    save_bundle,
    write_best,
)
from abmll.common.config import LearningConfig, TrainConfig
from abmll.common.errors import CheckpointError, ConfigError, TrainingError
from abmll.common.files import write_text
from abmll.common.locks import sole_writer
from abmll.common.progress import progress
from abmll.common.settings import flatten, pick
from abmll.language.activation_cache import ActivationCache, open_cache
from abmll.language.adapter import Adapter
from abmll.language.meter import counted
from abmll.methods import OUTER, Loss, State, make_rule, read_steps, refuse_written, summarize
from abmll.model.card import run_card
from abmll.model.meta_learner import AbmllModel, mean_log_sigma
from abmll.model.run_folder import CARD, METRICS, TIMING, VALIDATION, RunFolder, refuse_other_run
from abmll.tasks import Task
from abmll.tasks.order import sample_seed
from abmll.training.callbacks import Callback, Callbacks
from abmll.training.early_stopping import is_over
from abmll.training.empirical_bayes import learn_calibration_prior
from abmll.training.episodes import Episodes
from abmll.training.refusals import refuse_unfit
from abmll.training.sampler import EpisodeSampler
from abmll.training.schedule import rate
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
    validation tasks: theta is evaluated on them now and then, and learns nothing from them.
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
    ) -> None:
        refuse_unfit(config)
        self.validation = Validation(eval_tasks, config)
        self.folder = RunFolder(Path(config.output_dir))
        self.callbacks = Callbacks([*callbacks, *trackers(config.report_to, self.folder.path)])
        self.model = model
        self.config = config
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.rule = make_rule(model.scorer, config, len(tasks))
        query = self.rule.needs_query
        self.tasks = usable(tasks, min_examples=1 + query if self.rule.draws_from == "task" else 0)
        if self.tasks[0].is_written:
            refuse_written(config.method)
        self.data_sha256 = fingerprint(self.tasks)
        sizes, part_size = [len(task.train) for task in self.tasks], config.per_device_train_batch_size
        batch_size = part_size * config.gradient_accumulation_steps
        sampler = EpisodeSampler(config.seed, sizes, batch_size, config.inner_steps, query, self.rule.draws_from)
        if cache is None:
            cache = open_cache(model.scorer.base, model.scorer.lower_blocks, config, config.activation_cache_gb)
        shown = config.num_demonstrations if self.rule.demonstrations else 0
        self.episodes = Episodes(model.scorer, self.tasks, sampler, cache, shown, part_size)

    def settings(self) -> dict[str, Any]:
        """Everything that determines the run but its tasks, flat and fit for YAML: what ``config.yaml`` holds."""
        return self.model.scorer.settings() | flatten(self.config)

    def describe(self) -> str:
        """One line on what will be trained: rule, tasks, trainable numbers, adapted layers."""
        state = self.rule.init(self.model.theta)
        learned = [tensor for optimizer in state.optimizers().values() for tensor in optimizer.named.values()]
        return (
            f"{self.rule.label}: {len(self.tasks)} tasks, {sum(self.episodes.sampler.sizes)} training examples; "
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
        with sole_writer(self.folder.path):
            return self._train(resume, overwrite, quiet)

    def _train(self, resume: bool, overwrite: bool, quiet: bool) -> TrainResult:
        config, encoder = self.config, self.model.scorer.encoder
        drawn = self.episodes.sampler.drawn(config.max_steps)
        examples, truncated = check_encodings(encoder, self.tasks, drawn, quiet)
        self.validation.check(self.model)
        state, episode = self._resume() if resume else self._start(overwrite)
        started, steps, tokens, result = time.perf_counter(), 0, 0, None
        with progress(config.max_steps, f"training {self.rule.label}", "episode", quiet=quiet) as bar:
            bar.update(episode)
            try:
                self.callbacks.on_start(self.settings())
                while episode < config.max_steps and not is_over(self.validation.rows, config):
                    row, cost = self._episode(state, episode)
                    episode, steps, tokens = episode + 1, steps + cost["steps"], tokens + cost["tokens"]
                    self.folder.append(METRICS, row)
                    self.folder.append(TIMING, cost)
                    self.callbacks.on_step(episode, row)
                    bar.set_postfix(nll=f"{row['nll']:.3f}", accuracy=f"{row['accuracy']:.2f}")
                    self._evaluate_and_save(state, episode)
                    bar.update()
                evaluation = self._finish(state.theta, episode, quiet)
                counts = {"examples": examples, "truncated": truncated, "gradient_steps": steps, "tokens": tokens}
                ended = {"evaluation": evaluation, "stopped_early": episode < config.max_steps}
                seconds = time.perf_counter() - started
                result = TrainResult(self.folder.path, episode, seconds=seconds, **counts, **ended)
                return result
            except KeyboardInterrupt:
                saved = max(checkpoints(self.folder.path), default=0)  # a checkpoint may just have been completed
                again = f"--resume to go on from episode {saved}" if saved else "--overwrite: no checkpoint was due yet"
                raise KeyboardInterrupt(f"{self.folder.path}: run the same command with {again}") from None
            finally:
                self.callbacks.on_end(result)

    def _start(self, overwrite: bool) -> tuple[State, int]:
        self.folder.start(self.settings(), overwrite)
        return self.rule.init(self.model.scorer.new_adapter(sample_seed(self.config.seed, "init"))), 0

    def _resume(self) -> tuple[State, int]:
        """The state of the newest checkpoint; the folder is touched only after everything in it has been accepted."""
        path = latest_checkpoint(self.folder.path)
        bundle = load_bundle(path, STATE)
        document, episode = bundle.document, bundle.document["episode"]
        refuse_other_run(document["settings"], self.settings(), self.folder.path)
        base = self.model.scorer.base
        refuse_other_base(document, base.fingerprints, base.name, path)
        if document["data_sha256"] != self.data_sha256:
            raise CheckpointError(f"{path}: the training tasks are not those the run began with; give the same --tasks")
        if document.get("validation_sha256") not in (None, self.validation.fingerprint):
            same = "give the same --eval-tasks, --eval-examples, --eval-test-examples and --eval-adapt-steps"
            raise CheckpointError(f"{path}: the run has been evaluated in another way so far; {same}")
        if episode > self.config.max_steps:
            raise ConfigError(f"max_steps is {self.config.max_steps}, but {path} has done more; give {episode} or more")
        theta = self.model.scorer.new_adapter(0)
        theta.load_state_dict(bundle.tensors["theta"], str(path / "theta.safetensors"))
        state = self.rule.init(theta)
        for name, optimizer in state.optimizers().items():
            optimizer.load_tensors(bundle.tensors.get(name, {}), str(path / f"{name}.safetensors"))
        self.folder.resume(self.settings(), episode)
        self.validation.rows = self.folder.rows(VALIDATION)
        return state, episode

    def _evaluate_and_save(self, state: State, episode: int) -> None:
        """What is due after an episode. With the best theta wanted at the end, each new best one is saved."""
        config, validation = self.config, self.validation
        if validation.is_due(episode):
            found = validation.evaluate(self.model, state.theta, len(self.tasks), episode, self.episodes.cache)
            self.folder.append(VALIDATION, found)
            self.callbacks.on_evaluate(episode, found)
        ends = episode == config.max_steps or is_over(validation.rows, config)
        if ends or episode % config.save_steps == 0 or validation.best_episode() == episode:
            self._save(state, episode)

    def _finish(self, theta: Adapter, episode: int, quiet: bool) -> Mapping[str, Any] | None:
        """Hand the model what was learned and write the card; learn theta's calibration unless an earlier call did.

        Returns the evaluation of that theta, if there is one.
        """
        config, last, best = self.config, episode, self.validation.best_episode(checkpoints(self.folder.path))
        if best not in (None, last):
            episode = best
            path = self.folder.path / f"{PREFIX}{episode}"
            theta = theta.clone()
            theta.load_state_dict(load_bundle(path, STATE).tensors["theta"], str(path / "theta.safetensors"))
            write_best(self.folder.path, episode)
        self.model.learned(theta, pick(LearningConfig, flatten(config)), len(self.tasks))
        if self.rule.has_calibration and config.calibration_tasks and not self.tasks[0].is_written:
            wanted = {"num_tasks": config.calibration_tasks, "num_examples": config.calibration_examples}
            prior = self.folder.calibration(episode, wanted)
            if prior is None:
                how: dict[str, Any] = {"seed": config.seed, "cache": self.episodes.cache, "quiet": quiet}
                with counted(self.model.scorer) as cost:
                    prior = learn_calibration_prior(self.model, self.tasks, **wanted, **how)
                self.folder.write_calibration(episode, prior, wanted, cost.of_run())
            self.model.calibration_prior = prior
        names = [task.name for task in self.tasks]
        run, rows, fingerprint = str(self.folder.path), self.folder.rows(), self.model.scorer.base.fingerprint
        self.model.episodes, self.model.trained_on = episode, tuple(names)
        remark, evaluation = self.validation.ending(last, episode), self.validation.row(episode)
        card = run_card(run, self.settings(), fingerprint, names, last, rows, remark=remark)
        write_text(self.folder.path / CARD, card)
        return evaluation

    def _save(self, state: State, episode: int) -> None:
        moments = {name: optimizer.tensors() for name, optimizer in state.optimizers().items()}
        tensors = {"theta": state.theta.state_dict(), "optimizer_phi": {}} | moments
        document = {
            "episode": episode,
            "num_tasks": len(self.tasks),
            "tasks": [task.name for task in self.tasks],
            "data_sha256": self.data_sha256,
            "validation_sha256": self.validation.fingerprint,
            "base_fingerprint": self.model.scorer.base.fingerprint,
            "settings": self.settings(),
        }
        saved = self.folder.path / f"{PREFIX}{episode}"
        save_bundle(saved, Bundle(tensors, document), STATE, overwrite=True)
        best = self.validation.best_episode(checkpoints(self.folder.path))
        keep_newest(self.folder.path, self.config.save_total_limit, best)
        self.callbacks.on_save(episode, saved)

    def _episode(self, state: State, episode: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """One episode; returns its row of metrics and its cost."""
        started, left_out, name = time.perf_counter(), self.episodes.left_out, self.episodes.name(episode)
        ends_first_outer_step = episode + 1 == self.config.meta_batch
        before = state.theta.clone() if ends_first_outer_step else None
        try:
            steps = read_steps(self.learn(state, episode), "theta", state.theta)
            if before is not None:
                _refuse_unmoved(before, {"phi": state.phi, "theta": state.theta})
        except TrainingError as error:
            raise TrainingError(f"episode {episode + 1}, task '{name}': {error}") from error
        log_sigma = mean_log_sigma(self.model.scorer, state.theta) if self.rule.is_posterior else None
        row = {"episode": episode + 1, "task": name} | summarize(steps) | {"log_sigma": log_sigma}
        return row, {
            "episode": episode + 1,
            "seconds": time.perf_counter() - started,
            "tokens": sum(step.tokens for step in steps.values()),
            "steps": len(steps),
            "forward_passes": sum(step.passes for step in steps.values()),
            "demonstrations_left_out": self.episodes.left_out - left_out,
        }

    def learn(self, state: State, episode: int) -> dict[str, Loss]:
        """The K inner steps of an episode, and the outer one on the batch that is left or else on the last; by name."""
        factor = rate(self.config, episode, self.config.max_steps)
        self.rule.begin_episode(state, done=episode / self.config.max_steps)
        batches = self.episodes.batches(episode)
        losses, batch = {}, next(batches)
        for k in range(self.config.inner_steps):
            losses[f"step {k + 1}"] = self.rule.inner_step(state, batch, self.episodes.generator(episode, k), factor)
            batch = next(batches, batch)
        generator = self.episodes.generator(episode, self.config.inner_steps)
        outer = self.rule.outer_step(state, batch, generator, factor)
        return losses if outer is None else losses | {OUTER: outer}


def _refuse_unmoved(before: Adapter, roles: Mapping[str, Adapter]) -> None:
    """Both start at ``before``. Standard deviations may be held fixed on purpose, means never are."""
    for role, after in roles.items():
        if all(map(torch.equal, before.mean_tensors(), after.mean_tensors())):
            raise TrainingError(f"the mean of {role} did not move in the first episode; are the learning rates zero?")
