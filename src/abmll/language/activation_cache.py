"""The lower blocks' output for examples, kept in memory for a run, and on disk for other runs, seeds and methods.

A row is found by a hash of the tokens that the lower blocks read. The answer, and the last tokens of the options, which
are only ever predicted, play no part: the same question with another label shares its row.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from abmll.common.config import ActivationCacheConfig, RunConfig
from abmll.common.recent import Recent
from abmll.language.activation_store import ActivationStore
from abmll.language.base import Base
from abmll.language.encoding import Encoded
from abmll.language.lower_blocks import LowerBlocks


class ActivationCache:
    """Rows of single examples, in memory up to a number of bytes (the longest unused leave first), and in a ``store``.

    It belongs to one model and one choice of adapted layers: examples alone are its keys.
    """

    def __init__(self, max_bytes: int, store: ActivationStore | None = None) -> None:
        self.store = store
        self.kept: Recent[str, Tensor] = Recent(max_bytes)

    def rows(
        self,
        examples: Sequence[Encoded],
        compute: Callable[[Sequence[Encoded]], Sequence[Tensor]],
        device: torch.device,
    ) -> list[Tensor]:
        """The row (T, d) of every example on ``device``; ``compute`` gives those that are not kept."""
        keys = [row_key(example) for example in examples]
        found = {key: row for key in dict.fromkeys(keys) if (row := self._lookup(key, device)) is not None}
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in found}
        if missing:
            for key, row in zip(missing, compute(list(missing.values())), strict=True):
                found[key] = row
                if self.store is not None:
                    self.store.put(key, row)
                self.kept.put(key, row, row.nbytes)
        return [found[key] for key in keys]

    def _lookup(self, key: str, device: torch.device) -> Tensor | None:
        row = self.kept.get(key)
        if row is not None:
            return row
        row = None if self.store is None else self.store.get(key)
        if row is None or row.device == device:
            return row  # of the mapped file, which the operating system keeps in memory as long as there is room
        row = row.to(device)
        self.kept.put(key, row, row.nbytes)
        return row


def row_key(example: Encoded) -> str:
    """A hash of the tokens that the lower blocks read of an example: its prompt, and all but the last of each option.

    An option of one token (a letter) adds none.
    """
    read = [tuple(option[:-1]) for option in example.options if len(option) > 1]
    return hashlib.sha256(repr((tuple(example.prompt), read)).encode()).hexdigest()


def open_cache(
    base: Base,
    lower_blocks: LowerBlocks,
    config: ActivationCacheConfig,
    memory_gb: float = RunConfig.activation_cache_gb,
    announce: Callable[[str], None] = lambda line: None,
) -> ActivationCache | None:
    """The cache that ``config`` asks for, for a scorer's ``base`` and ``lower_blocks``; None where it keeps nothing.

    ``announce`` is told when the disk takes no more. Raises ``AbmllError`` where the folder cannot be made.
    """
    store = None
    if config.activation_cache_dir is not None and lower_blocks.blocks:
        root = Path(config.activation_cache_dir).expanduser()
        limit = int(config.activation_cache_disk_gb * 1e9)
        store = ActivationStore(root, identity(base, len(lower_blocks.blocks)), limit, announce)
    return ActivationCache(int(memory_gb * 1e9), store) if memory_gb > 0 or store is not None else None


def disk_cache(
    base: Base,
    lower_blocks: LowerBlocks,
    config: ActivationCacheConfig,
    announce: Callable[[str], None] = lambda line: None,
) -> ActivationCache | None:
    """The cache for what reads every example once, which gains nothing from memory: None without a folder."""
    return None if config.activation_cache_dir is None else open_cache(base, lower_blocks, config, announce=announce)


def identity(base: Base, depth: int | Sequence[int]) -> dict[str, Any]:
    """All that the bits of a row of the first ``depth`` blocks (or behind each of several) depend on but its tokens.

    The number of threads is left out, although sums that are split otherwise may differ in the last bit.
    """
    settings = base.model.config.to_dict()
    passing = ("_name_or_path", "transformers_version", "dtype")
    known = json.dumps({key: settings[key] for key in sorted(settings) if key not in passing}, default=str)
    return {
        "base_fingerprint": base.fingerprint,
        "model_config": hashlib.sha256(known.encode()).hexdigest(),
        "depth": depth if isinstance(depth, int) else list(depth),
        "dtype": str(base.model.dtype),
        "attention": str(base.model.config._attn_implementation),
        "processor": _processor(base.model.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
