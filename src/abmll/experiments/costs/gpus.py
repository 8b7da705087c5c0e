"""Memory and peak speed of a GPU: by name, or by its memory alone."""

import re
from dataclasses import dataclass

from abmll.common.errors import ConfigError, nearest

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20, "TB": 10**12, "TIB": 2**40}


@dataclass(frozen=True)
class Gpu:
    """Bytes of memory, and dense matrix products in operations a second (no sparsity; fp32 without TF32)."""

    name: str
    memory: int
    peak: dict[str, float]


# Makers' data sheets, SXM versions.
GPUS = {
    "a100": Gpu("A100", 80 * 10**9, {"bf16": 312e12, "fp32": 19.5e12}),
    "h100": Gpu("H100", 80 * 10**9, {"bf16": 989.4e12, "fp32": 66.9e12}),
    "h200": Gpu("H200", 141 * 10**9, {"bf16": 989.4e12, "fp32": 66.9e12}),
}
BY_MEMORY_ALONE = GPUS["a100"]  # the slowest of them: an estimate that errs errs on the long side


def find_gpu(text: str) -> Gpu:
    """``"h100"``, or a memory such as ``"80GB"`` with an A100's speed. Raises ``ConfigError`` for anything else."""
    if text.lower() in GPUS:
        return GPUS[text.lower()]
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)", text.strip(), re.IGNORECASE)
    if number is None or number[2].upper() not in UNITS or float(number[1]) == 0:
        hint = nearest(text.lower(), GPUS) or f" Use {', '.join(GPUS)}, or a memory such as 80GB or 40GiB."
        raise ConfigError(f"gpu is '{text}', neither a known GPU nor a memory.{hint}")
    memory = round(float(number[1]) * UNITS[number[2].upper()])
    return Gpu(text.strip(), memory, BY_MEMORY_ALONE.peak)
