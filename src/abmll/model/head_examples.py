"""The examples of a head: their labels, their features in the labels' order, and the keys that they are known by."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.common.errors import DataError
from abmll.language.features import Features
from abmll.model.prequential import labels_of
from abmll.tasks import Example


def labels_in(examples: Sequence[Example], label_order: Sequence[str] | None) -> tuple[str, ...]:
    """The labels of ``examples``, sorted or in the order that they have. Raises ``DataError`` as ``in_order``."""
    return tuple(sorted(labels_of(examples))) if label_order is None else in_order(examples, label_order)


def in_order(examples: Sequence[Example], label_order: Sequence[str]) -> tuple[str, ...]:
    """The labels of ``examples`` in their order, which may have others too.

    Raises ``DataError`` where a label is not in it or is so twice, or where the examples' options differ.
    """
    labels = labels_of(examples)
    if not labels:
        raise DataError(
            "label_order: the examples have different options; only labels that all of them have are ordered"
        )
    missing, twice = [label for label in labels if label not in label_order], len(set(label_order)) < len(label_order)
    if missing or twice:
        what = f"lacks '{missing[0]}'" if missing else "has a label twice"
        raise DataError(f"label_order {what}; name every label of the examples once, from the lowest to the highest")
    return tuple(label for label in label_order if label in labels)


def aligned(features: Features, examples: Sequence[Example], labels: Sequence[str]) -> Features:
    """The features with the scores' columns in the order of the labels, if there are any; -inf for a label left out."""
    if not labels:
        return features
    scores = torch.full((len(examples), len(labels), features.scores.shape[-1]), -torch.inf, dtype=torch.float64)
    for row, own, example in zip(scores, features.scores, examples, strict=True):
        row[[labels.index(option) for option in example.options]] = own[: len(example.options)]
    return Features(features.hidden, scores)


def refuse_odd(features: Features, answers: Tensor, answer_dims: int, depths: tuple[int, int], kinds: int) -> None:
    """Raise ``ValueError`` for tensors that no reader has read of this many depths and numbers, with so many scores.

    ``answers`` have so many dimensions: 1 of a column for each example, 2 of a yes or no for each label as well.
    """
    hidden, scores = features
    if [one.dtype for one in (hidden, scores, answers)] != [torch.float32, torch.float64, torch.int64]:
        raise ValueError("its tensors are of other types")
    if hidden.shape[1:] != depths or scores.dim() != 3 or scores.shape[2] != kinds or answers.dim() != answer_dims:
        raise ValueError("its tensors have other shapes")
    if not bool(hidden.isfinite().all()) or bool(scores.isnan().any()) or bool(scores.isposinf().any()):
        raise ValueError("its features are not finite")
    is_option = (answers >= 0) & (answers < scores.shape[1])
    if answer_dims == 1 and bool(is_option.all()) and len(answers) == len(scores):
        is_option = scores[torch.arange(len(answers)), answers, 0].isfinite()
    if not bool(is_option.all()):
        raise ValueError("an answer is none of the options")


def widened(scores: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(scores, (0, 0, 0, width - scores.shape[1]), value=-torch.inf)


def key_of(example: Example) -> str:
    """A hash of what is asked, which is neither the answer nor the options' order."""
    return hashlib.sha256(json.dumps([example.input, sorted(example.options)]).encode()).hexdigest()[:16]
