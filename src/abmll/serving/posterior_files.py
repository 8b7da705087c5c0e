"""Posteriors of a store: a document in the database, tensors in a file beside it, and a hash over both."""

import hashlib
import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from sqlalchemy import Row
from torch import Tensor

from abmll.common.checkpoint import Bundle
from abmll.common.errors import CheckpointError
from abmll.model.learned_task import TaskPosterior
from abmll.serving.objects import Objects
from abmll.serving.resident import Resident
from abmll.serving.task_store import StoredTask, TaskStore

LOG = logging.getLogger("abmll.serving")
MOST_FITTED = 16_000_000  # bytes; what has more is fitted anew
REMEDY = "learn the task again (POST .../relearn); its examples are all there"


class PosteriorFiles:
    """Saves and loads what was learned of tasks. A head's features were all read by the same model, which is not saved
    with each of them."""

    def __init__(self, store: TaskStore, objects: Objects, resident: Resident) -> None:
        self.store = store
        self.objects = objects
        self.resident = resident

    def save(self, task: StoredTask, version: int, posterior: TaskPosterior) -> bool:
        """Keep a version, which is ready from then on; False where it was learned before, which stays.

        Raises ``NoSuchTask`` where the task has been deleted.
        """
        own = posterior if posterior.head is None else replace(posterior, members=(None,))
        bundle = own.bundle()
        data = _packed(bundle.tensors)
        document = json.dumps(bundle.document, allow_nan=False)
        values = {"document": document, "sha256": _digest(document, data)}
        put = partial(self.objects.put, _name(task, version), data)
        return self.store.learned(task, version, put, **values)

    def load(self, task: StoredTask, row: "Row[Any]") -> TaskPosterior:
        """The version of a row of the table, as it is asked. Raises ``CheckpointError`` where it is damaged."""
        where = f"task '{task.name}', version {row.version}"
        data = self._read(_name(task, row.version), where)
        if data is None:
            raise CheckpointError(f"{where}: its file is missing; {REMEDY}")
        if _digest(row.document, data) != row.sha256:
            raise CheckpointError(f"{where}: its file is damaged; {REMEDY}")
        bundle = Bundle(_unpacked(data, where), json.loads(row.document))
        scorer = self.resident.reading.scorer if task.how == "head" else self.resident.answering
        if scorer is None:
            raise CheckpointError(f"{where}: was learned by gradient steps, and this server has no theta")
        posterior = TaskPosterior.of_bundle(bundle, scorer, Path(where))
        return posterior if posterior.head is None else self.resident.sharing(posterior)

    def save_fitted(self, task: StoredTask, version: int, posterior: TaskPosterior) -> None:
        """Keep what a head has been fitted, so that it need not be fitted again; that of earlier versions leaves."""
        assert posterior.head is not None
        fitted = posterior.head.fitted()
        if sum(tensor.nbytes for tensor in fitted.values()) <= MOST_FITTED:
            self.objects.put(_name(task, version, "fitted"), _packed({"fitted": fitted}))
        for name in self.objects.names(_folder(task)):
            number, _, what = name.partition(".")
            if what == "fitted.safetensors" and int(number) < version:
                self.objects.delete(_name(task, int(number), "fitted"))

    def with_fitted(self, task: StoredTask, version: int, posterior: TaskPosterior) -> TaskPosterior | None:
        """The posterior with what its head has been fitted before; None where that was not kept or is damaged."""
        where = f"task '{task.name}', version {version}"
        try:
            data = self._read(_name(task, version, "fitted"), where)
            if data is None or posterior.head is None:
                return None
            return replace(posterior, head=posterior.head.with_fitted(_unpacked(data, where)["fitted"], Path(where)))
        except (CheckpointError, KeyError):  # it can be had anew
            return None

    def _read(self, name: str, where: str) -> bytes | None:
        try:
            return self.objects.get(name)
        except CheckpointError as error:  # which says where it lies; that is not for clients
            LOG.error("%s: %s", where, error)
            raise CheckpointError(f"{where}: its file cannot be read; {REMEDY}") from error

    def delete(self, task: StoredTask) -> None:
        """Delete all files of a task."""
        self.objects.delete(_folder(task))


def _folder(task: StoredTask) -> str:
    return f"{task.id // 1000}/{task.id}"


def _name(task: StoredTask, version: int, what: str = "posterior") -> str:
    return f"{_folder(task)}/{version}.{what}.safetensors"


def _packed(groups: dict[str, dict[str, Tensor]]) -> bytes:
    """Groups of tensors as one file."""
    flat = {f"{group}/{name}": tensor for group, own in groups.items() for name, tensor in own.items()}
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in flat.items()})


def _unpacked(data: bytes, where: str) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        for name, tensor in load(data).items():
            group, _, own = name.partition("/")
            groups.setdefault(group, {})[own] = tensor
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{where}: its file cannot be read ({error}); {REMEDY}") from error
    return groups


def _digest(document: str, data: bytes) -> str:
    return hashlib.sha256(document.encode() + b"\n" + data).hexdigest()
