"""A fitted classifier without its language model: as arrays and texts in a pickle, and as a folder free of code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abmll.common.checkpoint import Bundle
from abmll.common.documents import Document, document_text, read_json
from abmll.common.errors import CheckpointError, ConfigError
from abmll.common.files import restore

CLASSIFIER = "classifier.json"
KINDS = {
    "b": "bool",
    "i": "int",
    "u": "int",
    "f": "float",
    "U": "str",
}  # of classes that JSON can hold, as NumPy has it
REMEDY = "fit and save the classifier again"


def arrays_of(bundle: Bundle) -> dict[str, Any]:
    """What a posterior saves, as plain types and arrays."""
    groups = bundle.tensors.items()
    tensors = {group: {key: one.detach().cpu().numpy() for key, one in named.items()} for group, named in groups}
    return {"document": json.dumps(bundle.document), "tensors": tensors}


def bundle_of(arrays: dict[str, Any]) -> Bundle:
    """The inverse."""
    groups = arrays["tensors"].items()
    tensors = {group: {key: torch.from_numpy(np.array(one)) for key, one in named.items()} for group, named in groups}
    return Bundle(tensors, json.loads(arrays["document"]))


def classifier_text(parameters: Document, classes: np.ndarray) -> str:
    """What a classifier has beside its posterior; the classes are such as ``refuse_unsaveable`` lets pass."""
    kind = KINDS[classes.dtype.kind]
    document = {"parameters": parameters, "classes": {"type": kind, "values": classes.tolist()}}
    return document_text("classifier", document)


def refuse_unsaveable(classes: np.ndarray) -> None:
    """Raise ``ConfigError`` for classes that JSON does not tell apart from others: dates, for one."""
    if classes.dtype.kind not in KINDS:
        raise ConfigError(
            f"classes of type {classes.dtype} cannot be saved; make them str, int, float or bool, and fit"
        )


def read_classifier(folder: Path) -> tuple[Document, np.ndarray]:
    """Parameters and classes. Raises ``CheckpointError`` where they are missing or damaged."""
    restore(folder)
    path = folder / CLASSIFIER
    document = read_json(path, "classifier", REMEDY)
    try:
        kind = {"bool": bool, "int": int, "float": float, "str": str}[document["classes"]["type"]]
        values = document["classes"]["values"]
        if len(values) < 2 or {type(value) for value in values} != {kind}:
            raise ValueError(f"its classes are {values}")
        return dict(document["parameters"]), np.array(values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be used ({error}); {REMEDY}") from error
