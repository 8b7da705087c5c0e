"""How good a head is on examples that it has not seen: k-fold cross-validation, on features that are read already."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.common.progress import progress
from abmll.language.features import Features
from abmll.model.task_head import TaskHead, key_of
from abmll.posterior.head import Known
from abmll.tasks import Example


def cross_validate(head: TaskHead, examples: Sequence[Example], folds: int = 5, quiet: bool = True) -> Tensor:
    """(N, C): probabilities of the labels of ``examples``, each by a head of the examples in the other folds.

    Every label is spread over the folds as evenly as can be, and examples that ask the same are in one fold. The
    ``examples`` are those of the head, in any order; the columns are in the order of ``head.labels``.
    Raises ``ConfigError`` for less than 2 folds, and where the examples have no labels in common.
    """
    if folds < 2:
        raise ConfigError(f"fold is {folds}; at least 2 are needed")
    if not head.labels:
        raise ConfigError("cross-validation: the examples have different options; it needs the same in all of them")
    fold_of = torch.tensor(_dealt(head.keys, head.answers, folds))
    probs = torch.zeros(len(head.keys), len(head.labels), dtype=torch.float64)
    for fold in progress(fold_of.unique().tolist(), "cross-validating", "fold", quiet=quiet):
        left_out = fold_of == fold
        probs[left_out] = _part(head, ~left_out).posterior.probs(Known(*_part(head, left_out).features, True)).mean(0)
    place = {key: n for n, key in enumerate(head.keys)}  # those of one key have one answer to their question
    return probs[[place[key_of(example)] for example in examples]]


def _part(head: TaskHead, kept: Tensor) -> TaskHead:
    """The head of the examples that are ``kept`` (N,)."""
    keys = tuple(key for key, is_kept in zip(head.keys, kept.tolist(), strict=True) if is_kept)
    features = Features(*(part[kept] for part in head.features))
    return replace(head, keys=keys, features=features, answers=head.answers[kept])


def _dealt(keys: Sequence[str], answers: Tensor, folds: int) -> list[int]:
    """A fold for each example: the distinct keys of one answer after the other, dealt out in turn."""
    first = dict(reversed(list(zip(keys, answers.tolist(), strict=True))))
    order = sorted(first, key=lambda key: (first[key], key))
    number = {key: place % folds for place, key in enumerate(order)}
    return [number[key] for key in keys]
