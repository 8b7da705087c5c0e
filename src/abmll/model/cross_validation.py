"""How good a head is on examples that it has not seen: k-fold cross-validation, on features that are read already."""

from collections.abc import Sequence

from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.model.head_examples import key_of
from abmll.model.task_head import TaskHead
from abmll.posterior.tempering import FOLDS, TemperedHead
from abmll.tasks import Example


def cross_validate(head: TaskHead, examples: Sequence[Example], folds: int = FOLDS, quiet: bool = True) -> Tensor:
    """(N, C): probabilities of the labels of ``examples``, each by a head of the examples in the other folds.

    Every label is spread over the folds as evenly as can be, and examples that ask the same are in one fold. The
    ``examples`` are those of the head, in any order; the columns are in the order of ``head.labels``.
    Raises ``ConfigError`` for less than 2 folds, and where the examples have no labels in common.
    """
    if folds < 2:
        raise ConfigError(f"fold is {folds}; at least 2 are needed")
    if not head.labels:
        raise ConfigError("cross-validation: the examples have different options; it needs the same in all of them")
    fitted = head.classifier(True, quiet)
    if not isinstance(fitted, TemperedHead):
        fitted = TemperedHead(head.prior, head.known(True), head.answers, head.seed, quiet)
    if not fitted.is_tempered:
        raise ConfigError("cross-validation: all examples ask the same; it needs different ones")
    place = {key: n for n, key in enumerate(head.keys)}  # those of one key are in one fold, and all but equal
    return fitted.cross_validated(None if folds == FOLDS else folds, quiet)[
        [place[key_of(example)] for example in examples]
    ]
