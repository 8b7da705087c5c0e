"""Processes that torchrun or accelerate started together: which share is whose, and what they tell each other.

Work that is shared out has a number of parts, which the processes take in turn. What comes of them is put together in
the order of the parts, so that the number of processes changes no bit of it. Each process computes the same from there
on, and the first alone writes files.

Processes exchange JSON and safetensors.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, distributed

from abmll.common.errors import AbmllError, ConfigError, ReportedError, TrainingError, is_out_of_memory

PATIENCE = timedelta(hours=2)  # that a process waits for the others: one may have far longer texts to read
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among the ``size`` of a run; one by itself unless ``together`` says more.

    ``settle`` is called before the processes tell each other anything (``Base.settle``, where they share a base).
    """

    rank: int = 0
    size: int = 1
    settle: Callable[[], None] = lambda: None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def own(self, count: int) -> range:
        """Which of ``count`` parts this process does."""
        return range(self.rank, count, self.size)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """An ``AbmllError`` inside, in any of the processes, ends the block with an error in all of them.

        The first process that has one raises it, and the others ``ReportedError``.
        """
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except AbmllError as raised:
            error = raised
        texts = self.told(str(error) if error else None)
        failed = [rank for rank, text in enumerate(texts) if text is not None]
        if failed and failed[0] == self.rank and error is not None:
            raise error
        if failed:
            raise ReportedError(f"process {failed[0]}: {texts[failed[0]]}")

    def told(self, value: Any) -> list[Any]:
        """What each process has to say, JSON-ready, by rank."""
        if self.size == 1:
            return [value]
        return [json.loads(data) for data in self._gathered(json.dumps(value).encode())]

    def joined(self, own: Sequence[Any], count: int) -> list[Any]:
        """What came of all ``count`` parts, in their order; ``own`` are JSON-ready results of this process's."""
        return list(own) if self.size == 1 else _interleaved(self.told(list(own)), count)

    def joined_tensors(self, own: Sequence[Mapping[str, Tensor]], count: int) -> list[Mapping[str, Tensor]]:
        """The same of results that are tensors by name. They come back on the CPU where there are several processes."""
        if self.size == 1:
            return list(own)
        packed = {f"{part} {name}": tensor for part, one in enumerate(own) for name, tensor in one.items()}
        theirs = [_unpacked(load(data)) for data in self._gathered(_packed(packed))]
        return _interleaved(theirs, count)

    def of_first(self, value: Any) -> Any:
        """What the first process has to say; ``value`` is JSON-ready, and not looked at in the others."""
        if self.size == 1:
            return value
        return json.loads(self._sent(json.dumps(value).encode() if self.is_first else b""))

    def tensors_of_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first one's tensors by name, on the CPU in the others, whose own are not looked at."""
        if self.size == 1:
            return dict(tensors)
        data = self._sent(_packed(tensors) if self.is_first else b"")
        return dict(tensors) if self.is_first else load(data)

    def mean(self, own: Sequence[Mapping[str, Tensor]], count: int) -> dict[str, Tensor]:
        """The mean of ``count`` parts, each the same tensors by name, of which ``own`` are this process's.

        The parts are added in their order. Each process adds up its own stretch of the elements and passes the sums on:
        it sends and receives about (count / size + 1) times the size of a part, and holds about four times as much.
        """
        if self.size == 1:
            return _mean(own, count)
        first = own[0]
        flat = torch.stack([torch.cat([tensor.reshape(-1) for tensor in one.values()]) for one in own])
        length = flat.shape[1]
        stretch, most = -(-length // self.size), -(-count // self.size)
        padded = flat.new_zeros(most, stretch * self.size)
        padded[: len(flat), :length] = flat
        sent = padded.reshape(most, self.size, stretch).transpose(0, 1).contiguous()
        received, whole = torch.empty_like(sent), flat.new_empty(self.size, stretch)
        with reachable():
            self.settle()
            distributed.all_to_all_single(received, sent)
            parts = [{"": received[part % self.size, part // self.size]} for part in range(count)]
            distributed.all_gather(list(whole), _mean(parts, count)[""])
        pieces = whole.view(-1)[:length].split([tensor.numel() for tensor in first.values()])
        return {name: piece.view_as(first[name]) for name, piece in zip(first, pieces, strict=True)}

    def _gathered(self, data: bytes) -> list[bytes]:
        """The bytes of each process, by rank."""
        lengths = torch.empty(self.size, 1, dtype=torch.int64)
        with reachable():
            self.settle()
            distributed.all_gather(list(lengths), torch.tensor([len(data)]))
            padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
            padded[: len(data)] = _as_tensor(data)
            rows = padded.new_empty(self.size, len(padded))
            distributed.all_gather(list(rows), padded)
        return [row[:length].numpy().tobytes() for row, length in zip(rows, lengths[:, 0].tolist(), strict=True)]

    def _sent(self, data: bytes) -> bytes:
        """The first one's bytes."""
        length = torch.tensor([len(data)])
        with reachable():
            self.settle()
            distributed.broadcast(length, 0)
            sent = _as_tensor(data) if self.is_first else torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(sent, 0)
        return sent.numpy().tobytes()


ALONE = Processes()


@contextmanager
def together() -> Iterator[Processes]:
    """The processes that this one was started with, which can talk to each other inside of the block.

    By torchrun's environment variables, which ``accelerate launch`` sets too. Raises ``ConfigError`` where some of them
    are missing.
    """
    wanted = os.environ.get("WORLD_SIZE") or "1"
    if wanted == "1":
        yield ALONE
        return
    missing = [name for name in STARTED if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {wanted}, but {missing[0]} is not set; start the command with torchrun")
    local = int(os.environ["LOCAL_RANK"])
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    with reachable():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


@contextmanager
def reachable() -> Iterator[None]:
    """Raise ``TrainingError`` where another process cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise TrainingError("another process cannot be reached; see what it said, and begin again") from error


def _mean(parts: Sequence[Mapping[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Their mean, added in their order."""
    if count == 1:
        return dict(parts[0])
    mean = {name: tensor / count for name, tensor in parts[0].items()}
    for part in parts[1:]:
        for name, tensor in part.items():
            mean[name] += tensor / count
    return mean


def _interleaved(by_rank: Sequence[Sequence[Any]], count: int) -> list[Any]:
    return [by_rank[part % len(by_rank)][part // len(by_rank)] for part in range(count)]


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _unpacked(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The parts of ``joined_tensors``."""
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(" ")
        parts.setdefault(int(part), {})[name] = tensor
    return [parts[part] for part in sorted(parts)]


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
