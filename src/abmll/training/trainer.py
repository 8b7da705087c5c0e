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
)
from abmll.common.config import LearningConfig, TrainConfig
from abmll.common.errors import CheckpointError, ConfigError, TrainingError
from abmll.common.files import write_text
from abmll.common.progress import progress
from abmll.common.settings import flatten, pick
from abmll.language.activation_cache import ActivationCache, open_cache
from abmll.language.adapter import Adapter
from abmll.language.meter import counted
from abmll.methods import OUTER, Loss, State, find_rule, make_rule, read_steps, summarize
from abmll.model.meta_learner import AbmllModel, mean_log_sigma
from abmll.model.run_folder import CARD, METRICS, TIMING, RunFolder, refuse_other_run
from abmll.tasks import Task
from abmll.tasks.order import sample_seed
from abmll.training.callbacks import Callback, Callbacks
from abmll.training.card import model_card
from abmll.training.empirical_bayes import learn_calibration_prior
from abmll.training.episodes import Episodes
from abmll.training.sampler import EpisodeSampler
from abmll.training.schedule import rate
from abmll.training.trackers import trackers
from abmll.training.training_tasks import check_encodings, fingerprint, usable


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its folder, episodes done in all, gradient steps and tokens of this call.

    ``examples`` counts the distinct training examples that all episodes read, ``truncated`` those of them that were too
    long for the model and lost the middle of their input.
    """

    folder: Path
    episodes: int
    gradient_steps: int
    tokens: int
    seconds: float
    examples: int
    truncated: int


class MetaTrainer:
    """Meta-trains ``model`` on ``tasks`` and leaves the learned theta in it and in ``config.output_dir``.

    Training starts from a fresh theta that ``config.seed`` determines, whatever theta the model has.
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
    ) -> None:
        _refuse_unfit(config)
        self.folder = RunFolder(Path(config.output_dir))
        self.callbacks = Callbacks([*callbacks, *trackers(config.report_to, self.folder.path)])
        self.model = model
        self.config = config
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.rule = make_rule(model.scorer, config, len(tasks))
        query = self.rule.needs_query
        self.tasks = usable(tasks, min_examples=1 + query if self.rule.draws_from == "task" else 0)
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
        """Run until ``max_steps`` episodes are done.

        Args:
            resume: go on from the newest checkpoint of the run folder.
            overwrite: replace a run that is in the folder.
            quiet: show no progress bar.

        Raises ``TrainingError`` (with episode and task) where a loss term is not finite or theta does not move; the
        last checkpoint stays intact. Raises ``DataError`` for an example too long to learn from, before anything else.
        """
        config, encoder = self.config, self.model.scorer.encoder
        drawn = self.episodes.sampler.drawn(config.max_steps)
        examples, truncated = check_encodings(encoder, self.tasks, drawn, quiet)
        state, first = self._resume() if resume else self._start(overwrite)
        started, steps, tokens, result = time.perf_counter(), 0, 0, None
        with progress(config.max_steps, f"training {self.rule.label}", "episode", quiet=quiet) as bar:
            bar.update(first)
            try:
                self.callbacks.on_start(self.settings())
                for episode in range(first, config.max_steps):
                    row, cost = self._episode(state, episode)
                    steps, tokens = steps + cost["steps"], tokens + cost["tokens"]
                    self.folder.append(METRICS, row)
                    self.folder.append(TIMING, cost)
                    self.callbacks.on_step(episode + 1, row)
                    if (episode + 1) % config.save_steps == 0 or episode + 1 == config.max_steps:
                        self._save(state, episode + 1)
                    bar.set_postfix(nll=f"{row['nll']:.3f}", accuracy=f"{row['accuracy']:.2f}")
                    bar.update()
                self._finish(state.theta, quiet)
                seconds = time.perf_counter() - started
                result = TrainResult(self.folder.path, config.max_steps, steps, tokens, seconds, examples, truncated)
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
        refuse_other_base(document, base.fingerprint, base.name, path)
        if document["data_sha256"] != self.data_sha256:
            raise CheckpointError(f"{path}: the training tasks are not those the run began with; give the same --tasks")
        if episode > self.config.max_steps:
            raise ConfigError(f"max_steps is {self.config.max_steps}, but {path} has done more; give {episode} or more")
        theta = self.model.scorer.new_adapter(0)
        theta.load_state_dict(bundle.tensors["theta"], str(path / "theta.safetensors"))
        state = self.rule.init(theta)
        for name, optimizer in state.optimizers().items():
            optimizer.load_tensors(bundle.tensors.get(name, {}), str(path / f"{name}.safetensors"))
        self.folder.resume(self.settings(), episode)
        return state, episode

    def _finish(self, theta: Adapter, quiet: bool) -> None:
        """Hand the model what was learned and write the card; learn theta's calibration unless an earlier call did."""
        config, episode = self.config, self.config.max_steps
        self.model.learned(theta, pick(LearningConfig, flatten(config)), len(self.tasks))
        if self.rule.has_calibration and config.calibration_tasks:
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
        write_text(self.folder.path / CARD, model_card(self.rule.label, run, self.settings(), fingerprint, names, rows))

    def _save(self, state: State, episode: int) -> None:
        moments = {name: optimizer.tensors() for name, optimizer in state.optimizers().items()}
        tensors = {"theta": state.theta.state_dict(), "optimizer_phi": {}} | moments
        document = {
            "episode": episode,
            "num_tasks": len(self.tasks),
            "tasks": [task.name for task in self.tasks],
            "data_sha256": self.data_sha256,
            "base_fingerprint": self.model.scorer.base.fingerprint,
            "settings": self.settings(),
        }
        saved = self.folder.path / f"{PREFIX}{episode}"
        save_bundle(saved, Bundle(tensors, document), STATE, overwrite=True)
        keep_newest(self.folder.path, self.config.save_total_limit)
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


def _refuse_unfit(config: TrainConfig) -> None:
    """Raise ``ConfigError`` for a rule without a training, and for an outer step that a checkpoint would cut in two."""
    rule = find_rule(config.method)
    if rule.base_method is not None:
        raise ConfigError(f"method: '{rule.name}' is not trained itself; train {rule.base_method}, which it continues")
    if not rule.is_trained:
        raise ConfigError(f"method: '{rule.name}' is not trained; it is a baseline of 'abmll compare'")
    for name, episodes in (("max_steps", config.max_steps), ("save_steps", config.save_steps)):
        if episodes % config.meta_batch:
            fitting = -(-episodes // config.meta_batch) * config.meta_batch
            raise ConfigError(
                f"{name} is {episodes}, but an outer step takes meta_batch = {config.meta_batch} episodes and none may "
                f"be cut in two; use {name} = {fitting}"
            )


def _refuse_unmoved(before: Adapter, roles: Mapping[str, Adapter]) -> None:
    """Both start at ``before``. Standard deviations may be held fixed on purpose, means never are."""
    for role, after in roles.items():
        if all(map(torch.equal, before.mean_tensors(), after.mean_tensors())):
            raise TrainingError(f"the mean of {role} did not move in the first episode; are the learning rates zero?")
