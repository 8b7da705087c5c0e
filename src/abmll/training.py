"""MetaTrainer: the outer loop over task visits, its checkpoints and its metrics.

Everything random is a pure function of (seed, visit), so a run that goes on from a checkpoint computes the same bits
as one that was never stopped.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abmll.adapter import Adapter
from abmll.checkpoint import PREFIX, STATE, Bundle, keep_newest, latest_checkpoint, load_bundle, save_bundle
from abmll.config import TrainConfig
from abmll.errors import CheckpointError, ConfigError, DataError, TrainingError
from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.trunk import TrunkCache
from abmll.methods import Loss, State, make_rule
from abmll.model import AbmllModel, mean_log_sigma
from abmll.progress import progress
from abmll.run_folder import METRICS, TIMING, RunFolder
from abmll.schedule import rate
from abmll.settings import flatten
from abmll.tasks.sampler import batches_of_visit, sample_seed, task_of_visit, union_batches
from abmll.tasks.task import Task

FORMAT = "abmll-checkpoint-1"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its folder, visits done in all, gradient steps and tokens of this call."""

    folder: Path
    visits: int
    gradient_steps: int
    tokens: int
    seconds: float


class MetaTrainer:
    """Meta-trains ``model`` on ``tasks`` and leaves the learned theta in it and in ``config.output_dir``.

    Raises ``ConfigError`` for settings that contradict each other and ``DataError`` for a task with too few training
    examples for one visit.
    """

    def __init__(
        self, model: AbmllModel, tasks: Sequence[Task], config: TrainConfig, cache: TrunkCache | None = None
    ) -> None:
        if not tasks:
            raise DataError("no training tasks")
        self.model = model
        self.config = config
        self.tasks = sorted(tasks, key=lambda task: task.name)
        self.train_examples = [task.train for task in self.tasks]
        self.rule = make_rule(model.scorer, config, len(self.tasks))
        if not self.rule.is_trained:
            raise ConfigError(f"method: '{config.method}' is not trained; give it to adapt or evaluate")
        self.folder = RunFolder(Path(config.output_dir))
        self.num_batches = config.inner_steps + (config.outer_batch == "query")
        self._refuse_small_tasks()
        gigabytes = config.trunk_cache_gb
        self.cache = cache or (TrunkCache(int(gigabytes * 1e9)) if gigabytes > 0 else None)
        self.data_sha256 = sha256_of_tasks(self.tasks)
        self.encoded: dict[tuple[int, int], Encoded] = {}

    def settings(self) -> dict[str, Any]:
        """Everything that determines the run but its tasks, flat and fit for YAML: what ``config.yaml`` holds."""
        return self.model.scorer.settings() | flatten(self.config)

    def describe(self) -> str:
        """One line on what will be trained: rule, tasks, trainable numbers, adapted layers."""
        state = self.rule.init(self.model.theta)
        learned = [*state.inner.named.values(), *(state.outer.named.values() if state.outer else ())]
        layers = len(self.model.scorer.shapes)
        return (
            f"{self.rule.label}: {len(self.tasks)} tasks, {sum(len(examples) for examples in self.train_examples)} "
            f"training examples; {sum(tensor.numel() for tensor in learned):,} trainable numbers in {layers} layers"
        )

    def train(self, *, resume: bool = False, overwrite: bool = False, quiet: bool = True) -> TrainResult:
        """Run until ``max_steps`` visits are done.

        Args:
            resume: go on from the newest checkpoint of the run folder.
            overwrite: replace a run that is in the folder.
            quiet: show no progress bar.

        Raises ``TrainingError`` (with visit and task) where a loss term is not finite or theta does not move; the
        last checkpoint stays intact.
        """
        state, first = self._resume() if resume else self._start(overwrite)
        started, steps, tokens = time.perf_counter(), 0, 0
        saved = first
        with progress(self.config.max_steps, f"training {self.rule.label}", "visit", quiet=quiet) as bar:
            bar.update(first)
            try:
                for visit in range(first, self.config.max_steps):
                    row, done = self._visit(state, visit)
                    steps, tokens = steps + done["steps"], tokens + done["tokens"]
                    self.folder.append(METRICS, row)
                    self.folder.append(TIMING, {"visit": visit + 1} | done)
                    if (visit + 1) % self.config.save_steps == 0 or visit + 1 == self.config.max_steps:
                        self._save(state, visit + 1)
                        saved = visit + 1
                    bar.set_postfix(nll=f"{row['nll']:.3f}", accuracy=f"{row['accuracy']:.2f}")
                    bar.update()
            except KeyboardInterrupt:
                where = f"run the same command with --resume to go on from visit {saved}"
                raise KeyboardInterrupt(where if saved else "no checkpoint was due yet") from None
        self.model.learned(state.theta, self.config, len(self.tasks))
        return TrainResult(self.folder.path, self.config.max_steps, steps, tokens, time.perf_counter() - started)

    def _refuse_small_tasks(self) -> None:
        if self.rule.episodes == "union":
            return
        needed = self.num_batches * self.config.per_device_train_batch_size
        for task, examples in zip(self.tasks, self.train_examples, strict=True):
            if len(examples) < needed:
                raise DataError(
                    f"{task.source or task.name}: {len(examples)} training examples, but a visit takes "
                    f"{self.num_batches} batches of {self.config.per_device_train_batch_size}; lower "
                    "inner_steps or per_device_train_batch_size, or leave the task out"
                )

    def _start(self, overwrite: bool) -> tuple[State, int]:
        self.folder.start(self.settings(), overwrite)
        return self.rule.init(self.model.scorer.new_adapter(sample_seed(self.config.seed, "init"))), 0

    def _resume(self) -> tuple[State, int]:
        path = latest_checkpoint(self.folder.path)
        bundle = load_bundle(path, STATE)
        visit = bundle.document["visit"]
        self.folder.resume(self.settings(), visit)
        self.model.scorer.refuse_other_base(
            bundle.document["base_fingerprint"], self.folder.settings()["model"], str(path)
        )
        if bundle.document["data_sha256"] != self.data_sha256:
            raise CheckpointError(f"{path}: the training tasks are not those the run began with; give the same --tasks")
        theta = self.model.scorer.new_adapter(0)
        theta.load_state_dict(bundle.tensors["theta"], str(path / "theta.safetensors"))
        state = self.rule.init(theta)
        state.inner.load_tensors(bundle.tensors["optimizer_phi"], str(path / "optimizer_phi.safetensors"))
        if state.outer is not None:
            state.outer.load_tensors(bundle.tensors["optimizer_theta"], str(path / "optimizer_theta.safetensors"))
        return state, visit

    def _save(self, state: State, visit: int) -> None:
        tensors = {"theta": state.theta.state_dict(), "optimizer_phi": state.inner.tensors()}
        if state.outer is not None:
            tensors["optimizer_theta"] = state.outer.tensors()
        document = {
            "format": FORMAT,
            "visit": visit,
            "num_tasks": len(self.tasks),
            "data_sha256": self.data_sha256,
            "base_fingerprint": self.model.scorer.base.fingerprint,
            "settings": self.settings(),
        }
        save_bundle(self.folder.path / f"{PREFIX}{visit}", Bundle(tensors, document), STATE, overwrite=True)
        keep_newest(self.folder.path, self.config.save_total_limit)

    def _visit(self, state: State, visit: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """One task visit; returns its row of metrics and its cost."""
        started = time.perf_counter()
        chosen = self._examples_of_visit(visit)
        names = {self.tasks[task].name for batch in chosen for task, _ in batch}
        name = names.pop() if len(names) == 1 else "union"
        factor = rate(self.config, visit, self.config.max_steps)
        before = state.theta.clone() if visit == 0 else None
        try:
            losses, outer, tokens = self._learn(state, chosen, visit, factor)
            if before is not None:
                _refuse_unmoved(before, state.theta)
        except TrainingError as error:
            raise TrainingError(f"visit {visit + 1}, task '{name}': {error}") from error
        row = {"visit": visit + 1, "task": name} | summarize(losses, outer)
        log_sigma = mean_log_sigma(self.model.scorer, state.theta) if self.rule.is_posterior else None
        seconds = time.perf_counter() - started
        steps = len(losses) + (outer is not None)
        return row | {"log_sigma": log_sigma}, {"seconds": seconds, "tokens": tokens, "steps": steps}

    def _learn(
        self, state: State, chosen: list[list[tuple[int, int]]], visit: int, factor: float
    ) -> tuple[list[Loss], Loss | None, int]:
        """The K inner steps and the outer one of a visit, and the tokens they read."""
        self.rule.begin_visit(state)
        losses, tokens, batch = [], 0, None
        for k, pairs in enumerate(chosen[: self.config.inner_steps]):
            batch = self._batch(pairs)
            tokens += int(batch.mask.sum())
            losses.append(self.rule.inner_step(state, batch, self._generator(visit, k), factor))
        if self.config.outer_batch == "query":
            batch = self._batch(chosen[-1])
            tokens += int(batch.mask.sum())
        assert batch is not None
        outer = self.rule.outer_step(state, batch, self._generator(visit, self.config.inner_steps), factor)
        return losses, outer, tokens

    def _examples_of_visit(self, visit: int) -> list[list[tuple[int, int]]]:
        """Pairs (task, training example) of each of the visit's batches."""
        config, size = self.config, self.config.per_device_train_batch_size
        if self.rule.episodes == "union":
            sizes = [len(examples) for examples in self.train_examples]
            return union_batches(config.seed, visit, sizes, size, self.num_batches)
        task = task_of_visit(config.seed, visit, len(self.tasks))
        batches = batches_of_visit(config.seed, visit, len(self.train_examples[task]), size, self.num_batches)
        return [[(task, index) for index in batch] for batch in batches]

    def _batch(self, pairs: list[tuple[int, int]]) -> Batch:
        return self.model.scorer.batch([self._encode(task, index) for task, index in pairs], self.cache)

    def _encode(self, task: int, index: int) -> Encoded:
        """The example in tokens, encoded when first drawn."""
        if (task, index) not in self.encoded:
            example = self.train_examples[task][index]
            [self.encoded[task, index]] = self.model.scorer.encode([example], self.tasks[task].name)
        return self.encoded[task, index]

    def _generator(self, visit: int, step: int) -> torch.Generator:
        seed = sample_seed(self.config.seed, "noise", visit, step)
        return torch.Generator(self.model.scorer.device).manual_seed(seed)


def summarize(losses: Sequence[Loss], outer: Loss | None) -> dict[str, float]:
    """A visit in numbers: nll and accuracy per example over the inner batches, the terms of the last step."""
    size = sum(loss.size for loss in losses)
    last = outer or losses[-1]
    return {
        "nll": float(sum(float(loss.nll) for loss in losses) / size),
        "accuracy": float(sum(int(loss.correct) for loss in losses) / size),
        "loss": float(last.total),
        "kl": float(last.kl),
        "prior": float(last.prior),
        "grad_norm": losses[-1].grad_norm,
        "outer_grad_norm": outer.grad_norm if outer else 0.0,
    }


def sha256_of_tasks(tasks: Sequence[Task]) -> str:
    """A hash of everything training reads of the tasks: names and training examples, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        rows = [(example.input, example.options, example.answer) for example in task.train]
        digest.update(json.dumps([task.name, rows]).encode())
    return digest.hexdigest()


def _refuse_unmoved(before: Adapter, after: Adapter) -> None:
    pairs = zip(before.named_tensors(), after.named_tensors(), strict=True)
    if all(torch.equal(old, new) for (_, old), (_, new) in pairs):
        raise TrainingError("theta did not move in the first visit; are the learning rates zero?")
