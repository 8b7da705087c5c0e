"""Learns the versions of tasks: what the jobs of a server do."""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, TimeoutError
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from abmll.common.config import AdaptConfig
from abmll.common.errors import AbmllError, CheckpointError, ConfigError
from abmll.experiments.trust import trust
from abmll.language.features import Features
from abmll.model.cross_validation import cross_validate
from abmll.model.learned_task import TaskPosterior
from abmll.model.task_head import TaskHead, key_of
from abmll.serving.engine import Engine
from abmll.serving.fair_queue import Request
from abmll.serving.fresh_threads import FreshThreads
from abmll.serving.jobs import Live
from abmll.serving.memory import Memory
from abmll.serving.posterior_files import PosteriorFiles
from abmll.serving.resident import Resident, Row, together
from abmll.serving.task_store import Labelled, NoSuchTask, StoredTask, TaskStore, in_order
from abmll.tasks import Example

LOG = logging.getLogger("abmll.serving")
FEATURES, ANSWERS = "features", "answers"  # kinds of rows
PATIENCE = 0.1  # seconds between looks whether a job is still wanted
Known = Memory[tuple[int, int], TaskPosterior]  # by task and version


class Teacher:
    """Learns by heads, whose features the ``engine`` reads together with everybody else's, and by gradient steps.

    ``fitters`` see to what nobody asks for yet: they have a turn in ``memory`` only one at a time.
    """

    def __init__(
        self,
        store: TaskStore,
        files: PosteriorFiles,
        resident: Resident,
        engine: Engine,
        memory: Known,
        fitters: Executor,
    ) -> None:
        self.store = store
        self.files = files
        self.resident = resident
        self.engine = engine
        self.memory = memory
        self.fitters = fitters
        self.lock = threading.Lock()
        self.soon: dict[int, tuple[int, Callable[[], TaskPosterior]]] = {}  # by task, what waits for a fitter

    def learn_head(self, live: Live) -> None:
        """Learn the version of a job with a head. It is ready once its features are read; the fit comes after."""
        task = self.store.by_id(live.task)
        if self.store.is_learned(task, live.version):  # the process ended before it could note that
            return
        examples = as_examples(self.store.examples(task, live.version), task.label_order)
        before = self._before(task, live, examples)
        head = self._anew(task, live, examples) if before is None else self._updated(task, live, examples, before)
        model = self.resident.reading
        posterior = model.posterior_of(head, examples[0].options, task.name, 0)
        live.check()
        if not self.files.save(task, live.version, posterior):
            return
        self._fit_soon(task, live.version, partial(self._fitted, task, live.version, posterior, examples))

    def learn_by_steps(self, live: Live) -> None:
        """Learn the version of a job by gradient steps from theta."""
        task, model = self.store.by_id(live.task), self.resident.stepping
        if model is None:
            raise ConfigError("how 'full': this server has no theta to take gradient steps from")
        if self.store.is_learned(task, live.version):
            return
        examples = as_examples(self.store.examples(task, live.version), None)

        def on_step(total: int) -> None:
            live.total = total
            live.advance()

        steps = int(task.settings.get("steps") or AdaptConfig.steps)
        adapt = partial(model.adapt, examples, task_name=task.name, steps=steps, how="full", on_step=on_step)
        posterior = FreshThreads(1, self.resident.begin).submit(adapt).result()
        assert self.resident.answering is not None
        posterior = replace(posterior, scorer=self.resident.answering)
        if self.files.save(task, live.version, posterior):
            self.memory.put((task.id, live.version), posterior)

    def known(self, task: StoredTask, row: Any) -> "Future[TaskPosterior]":
        """The version of a row of the table, ready to answer: from memory, or once it has been loaded."""
        return self.memory.made((task.id, row.version), partial(self._load, task, row))

    def _load(self, task: StoredTask, row: Any) -> TaskPosterior:
        """A version that was learned before.

        Raises ``CheckpointError`` where its file is damaged, which is noted, and ``NoSuchTask``.
        """
        try:
            posterior = self.files.load(task, row)
        except CheckpointError as error:
            self.store.by_id(task.id)  # a task that has been deleted is not damaged
            self.store.set_version(task, row.version, state="damaged", error=str(error))
            raise
        if row.state == "damaged":  # its file could not be read for a while
            self.store.set_version(task, row.version, state="ready", error=None)
        if posterior.head is None:
            return posterior
        kept = self.files.with_fitted(task, row.version, posterior)
        if kept is not None:
            return kept
        examples = as_examples(self.store.examples(task, row.version), posterior.labels)
        return self._fitted(task, row.version, posterior, examples)

    def read(self, task: StoredTask, rows: Sequence[Row], live: Live) -> Features:
        """Features of rows, as many of them as are wanted for a job."""
        live.total += len(rows)

        def on_progress(number: int) -> None:
            live.done += number

        request = Request(task.tenant, FEATURES, rows, together, inf, on_progress, is_accepted=True)
        self.engine.submit(request)
        while True:
            try:
                return request.future.result(PATIENCE)
            except TimeoutError:
                if live.cancelled.is_set():
                    request.future.cancel()
            except CancelledError:
                live.check()
                raise

    def _forget_deleted(self, task: StoredTask) -> None:
        """Raises ``NoSuchTask`` where the task was deleted meanwhile; nothing is left of it then."""
        try:
            self.store.by_id(task.id)
        except NoSuchTask:
            self.files.delete(task)
            raise

    def _fit_soon(self, task: StoredTask, version: int, fit: Callable[[], TaskPosterior]) -> None:
        """Fit a version though nobody asks for it yet; of those of a task that wait for that, the newest alone."""
        with self.lock:
            is_waiting = task.id in self.soon
            self.soon[task.id] = (version, fit)
        if not is_waiting:
            self.fitters.submit(self._fit_newest, task.id)

    def _fit_newest(self, task_id: int) -> None:
        with self.lock:
            version, fit = self.soon.pop(task_id)
        self.memory.made((task_id, version), fit).result()

    def _anew(self, task: StoredTask, live: Live, examples: list[Example]) -> TaskHead:
        model = self.resident.reading
        features = self.read(task, self.resident.encode(examples, task.name), live)
        reader, method = self.resident.reader, model.learning.method
        return TaskHead.of_features(reader, method, model.head_prior, examples, features, label_order=task.label_order)

    def _before(self, task: StoredTask, live: Live, examples: list[Example]) -> TaskHead | None:
        """The head of the version before, where it can be updated: it has the same labels, and is whole."""
        if live.kind != "update":
            return None
        try:
            row = self.store.version(task)
            posterior = self.memory.get((task.id, row.version)) or self.files.load(task, row)
        except (NoSuchTask, CheckpointError):
            return None
        head = posterior.head
        return head if head is not None and sorted(head.labels) == sorted(examples[0].options) else None

    def _updated(self, task: StoredTask, live: Live, examples: list[Example], head: TaskHead) -> TaskHead:
        """The head with what is new, and without what is gone or has another label now."""
        answers = [head.labels[number] for number in head.answers.tolist()]
        known = set(zip(head.keys, answers, strict=True))
        wanted = {(key_of(one), one.options[one.answer or 0]): one for one in examples}
        gone = {key for key, answer in known if (key, answer) not in wanted}
        new = [one for pair, one in wanted.items() if pair not in known]
        if gone.issuperset(head.keys):
            return self._anew(task, live, examples)
        left = head.without(gone) if gone else head
        if not new:
            return left
        return left.updated_with(new, self.read(task, self.resident.encode(new, task.name), live))

    def _fitted(
        self, task: StoredTask, version: int, posterior: TaskPosterior, examples: list[Example]
    ) -> TaskPosterior:
        """The posterior with its head fitted, which is kept, and its quality, which is noted."""
        head = posterior.head
        assert head is not None
        measured = quality(head, examples)
        _ = head.posterior  # fitted when it is first asked for
        try:
            self.store.set_version(task, version, quality=json.dumps(measured))
            self.files.save_fitted(task, version, posterior)  # last: what was kept is not measured again
            self._forget_deleted(task)
        except NoSuchTask:  # nothing is left to be kept
            pass
        except AbmllError as error:  # it answers all the same; that it could not be kept costs another fit
            LOG.warning("what was fitted of task %d could not be kept: %s", task.id, error)
        return posterior


def as_examples(labelled: Sequence[Labelled], order: Sequence[str] | None) -> list[Example]:
    """Labelled texts as examples, all with the same options. Raises ``ConfigError`` for less than two labels."""
    labels = sorted({one.label for one in labelled})
    if len(labels) < 2:
        raise ConfigError("examples of at least two labels are needed")
    options = tuple(in_order(labels, order))
    return [Example(str(n), one.text, options, options.index(one.label)) for n, one in enumerate(labelled)]


def quality(head: TaskHead, examples: Sequence[Example]) -> dict[str, Any] | None:
    """What cross-validation says of a head of these examples; None where there are too few for it."""
    try:
        probs = cross_validate(head, examples)
    except ConfigError:
        return None
    answers = [head.labels.index(one.options[one.answer or 0]) for one in examples]
    found = trust(probs.numpy(), answers)
    each = zip(found.each.confidence.tolist(), found.each.correct.tolist(), strict=True)
    metrics = {name: found.metrics[name] for name in ("accuracy", "nll", "ece", "brier")}
    return metrics | {"num_examples": len(examples), "each": [[round(sure, 6), int(right)] for sure, right in each]}
