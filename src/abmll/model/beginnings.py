"""What a task's prompts begin with, read once with each sample of its adapters: keys and values that are kept."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.packing import KeysAndValues
from abmll.language.scorer import Pass
from abmll.model.joint_passes import Job, joint_passes


class Beginning(NamedTuple):
    """What an adapter's passes made of the tokens."""

    settings: tuple[Any, ...]  # of its noise
    tokens: tuple[int, ...]
    passes: tuple[KeysAndValues, ...]
    nbytes: int

    @classmethod
    def of(cls, settings: tuple[Any, ...], tokens: tuple[int, ...], passes: Sequence[KeysAndValues]) -> "Beginning":
        """With what it takes in memory."""
        size = sum(tensor.nbytes for own in passes for pair in own.values() for tensor in pair)
        return cls(settings, tokens, tuple(passes), size)


class Beginnings:
    """The last that were read, in at most ``max_bytes``; those of an adapter that is no more are dropped with it.

    An adapter must not change after it was read with.
    """

    def __init__(self, max_bytes: int = 256_000_000) -> None:
        self.max_bytes = max_bytes
        self.kept: weakref.WeakKeyDictionary[Adapter, Beginning] = weakref.WeakKeyDictionary()

    def of(self, jobs: Sequence[Job]) -> list[Sequence[KeysAndValues]]:
        """Those of each job in each of its passes: kept, or else read. Jobs with more passes come first."""
        found = [self._kept(job) for job in jobs]
        missing = [job for job, own in zip(jobs, found, strict=True) if own is None]
        new = iter(_read(missing) if missing else ())
        passes = [next(new) if own is None else own for own in found]
        for job, own, before in zip(jobs, passes, found, strict=True):
            for number, phi in enumerate(job.members if before is None else ()):
                part = own[number * job.each : (number + 1) * job.each]
                self.keep(phi, Beginning.of(_settings(job, number), job.beginning, part))
        return passes

    def find(self, phi: Adapter, settings: tuple[Any, ...], tokens: tuple[int, ...]) -> Sequence[KeysAndValues] | None:
        """What is kept of ``tokens``, or of more that begin with them."""
        found = self.kept.pop(phi, None)
        if found is None or found.settings != settings or found.tokens[: len(tokens)] != tokens:
            return None
        self.kept[phi] = found  # at the end: the first are those unused for longest
        return found.passes

    def keep(self, phi: Adapter, beginning: Beginning) -> None:
        """Keep it in the place of what was kept for ``phi``."""
        self.kept.pop(phi, None)
        self.kept[phi] = beginning
        kept = list(self.kept.items())
        size = sum(own.nbytes for _, own in kept)
        for unused, own in kept:
            if size <= self.max_bytes:
                break
            del self.kept[unused]
            size -= own.nbytes

    def _kept(self, job: Job) -> Sequence[KeysAndValues] | None:
        each = [self.find(phi, _settings(job, number), job.beginning) for number, phi in enumerate(job.members)]
        kept = [own for own in each if own is not None]
        return list(chain(*kept)) if len(kept) == len(each) else None


def beside(each: Sequence[KeysAndValues], size: int) -> KeysAndValues:
    """The first ``size`` places of several rows as one row."""
    rows = {module: [own[module] for own in each] for module in each[0]}
    return {
        module: (
            torch.cat([keys[:, :, :size] for keys, _ in pairs], 2),
            torch.cat([values[:, :, :size] for _, values in pairs], 2),
        )
        for module, pairs in rows.items()
    }


def _settings(job: Job, member: int) -> tuple[Any, ...]:
    """What a member's passes follow from beside the adapter: the modules that read, and the noise."""
    how = job.how
    return id(job.scorer), how.num_samples, how.prediction_noise, how.prediction_noise_rank, job.seeds[member]


def _read(jobs: Sequence[Job]) -> list[Sequence[KeysAndValues]]:
    """Each job's beginning in each of its passes, read by itself."""
    found: list[list[KeysAndValues]] = [[] for _ in jobs]
    lengths = [len(job.beginning) for job in jobs]
    alone = [[Encoded(job.beginning, ((0,),), None)] for job in jobs]  # a single token to be scored is none to be read
    for one in joint_passes(jobs, alone):
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        batch = replace(one.batch, packing=replace(one.batch.places, seen=seen))
        jobs[0].scorer.scores(batch, None, Pass(updates=one.updates))
        for own, part in zip(found, _apart(seen, lengths[: len(one.counts)]), strict=False):
            own.append(part)
    return [*found]


def _apart(seen: KeysAndValues, lengths: Sequence[int]) -> list[Mapping[nn.Module, tuple[Tensor, Tensor]]]:
    """A row's parts of so many places each, in memory of their own."""
    each: list[dict[nn.Module, tuple[Tensor, Tensor]]] = [{} for _ in lengths]
    for module, row in seen.items():
        for own, keys, values in zip(each, *(tensor.split(list(lengths), 2) for tensor in row), strict=True):
            own[module] = keys.clone(), values.clone()
    return [*each]
