"""What heads have learned, as tensors under one name each, and the hash that says which head they belong to."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

DIGEST = "digest"  # the name of the hash


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors named ``group.name`` by their groups. Raises ``ValueError`` for a name without a dot."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, dot, rest = name.partition(".")
        if not dot:
            raise ValueError(f"{name} is unknown")
        found.setdefault(group, {})[rest] = tensor
    return found


def digest(document: str, tensors: Iterable[Tensor]) -> Tensor:
    """(32,) uint8: a hash of a document and of tensors."""
    found = hashlib.sha256(document.encode())
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
