"""The labels y of scikit-learn's interface: checked, in their own type, and as the texts that a model reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets, is_multilabel
from sklearn.utils.validation import assert_all_finite, column_or_1d

from abmll.common.errors import DataError, InputError
from abmll.tasks import Example
from abmll.tasks.records import Data, is_missing, label_text


def classes_of(y: Data) -> NDArray[Any]:
    """(C,) the distinct labels, sorted. Raises ``InputError`` where there are fewer than two."""
    classes = np.unique(column_of(y))
    if len(classes) < 2:
        raise InputError(f"y: has {len(classes)} class; a classifier needs at least 2, so give texts of another one")
    return classes


def encoded(y: Data, classes: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) the place of each label among ``classes``. Raises ``ValueError`` for one that is not there."""
    encoder = LabelEncoder()
    encoder.classes_ = classes
    return encoder.transform(column_of(y))


def class_texts(classes: NDArray[Any], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The texts of the classes: their ``names`` where these are given.

    Raises ``InputError`` where two have the same text, or one has none, and for too few or too many names.
    """
    if names is not None and len(names) != len(classes):
        raise InputError(
            f"target_names: has {len(names)} texts for {len(classes)} classes; give one for each, in order"
        )
    try:
        texts = tuple(label_text(label, "y") for label in (classes.tolist() if names is None else names))
        return Example("", "", texts, None).options
    except DataError as error:
        raise InputError(f"y: {str(error).removeprefix('y: ')}") from error


def column_of(y: Data) -> NDArray[Any]:
    """(N,) one label a row. Raises ``ValueError``, mostly ``InputError``, where it is not that.

    What pandas keeps in types of its own comes as Python has it: scikit-learn would make floats of its integers and
    truth values.
    """
    if y is None:
        raise InputError("AbmllClassifier requires y to be passed, but the target y is None")
    series: Any = y
    rows = series.to_list() if hasattr(y, "to_list") else series
    if is_multilabel(rows) or _has_lists(rows):
        raise InputError(
            "y: has several labels a row (multi-label), which AbmllClassifier does not learn; fit one classifier a "
            "label, with sklearn.multioutput.MultiOutputClassifier"
        )
    if isinstance(rows, list | tuple):
        _refuse_odd(rows)
    column = column_or_1d(rows, warn=True)
    if column.dtype == object:
        _refuse_odd(column.tolist())
        column = np.array(column.tolist())
    assert_all_finite(column, input_name="y")
    check_classification_targets(column)
    return column


def _has_lists(rows: Any) -> bool:
    return isinstance(rows, list | tuple) and any(isinstance(row, list | tuple | set) and len(row) != 1 for row in rows)


def _refuse_odd(rows: list[Any] | tuple[Any, ...]) -> None:
    """Raise ``InputError`` for a label that is missing, and for texts beside other types."""
    for number, label in enumerate(rows):
        if is_missing(label):
            raise InputError(f"y[{number}]: Input y contains NaN or None; give every text a label, or leave it out")
        if isinstance(label, str) != isinstance(rows[0], str):
            raise InputError(f"y[{number}]: is {label!r}, but y[0] is {rows[0]!r}; give labels of one type")
