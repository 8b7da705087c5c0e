"""Labels as scikit-learn's interface gets them: their types, and what cannot be a label."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import DataConversionWarning

from abmll.common.errors import InputError
from abmll.model.class_labels import class_texts, classes_of, encoded

KINDS: list[tuple[Any, list[Any]]] = [
    (["b", "a", "b"], ["a", "b"]),
    (("b", "a", "b"), ["a", "b"]),
    ([10, 2, 10], [2, 10]),
    ([True, False, True], [False, True]),
    ([1.0, 2.0, 1.0], [1.0, 2.0]),
    (np.array(["b", "a", "b"], dtype=object), ["a", "b"]),
    (np.array([10, 2, 10], dtype=object), [2, 10]),
    (np.array([10, 2, 10], dtype=np.int8), [2, 10]),
    (np.array([True, False, True]), [False, True]),
    (pd.Series(["b", "a", "b"], index=[4, 4, 4]), ["a", "b"]),
    (pd.Series(["b", "a", "b"], dtype="category"), ["a", "b"]),
    (pd.Series([10, 2, 10], dtype="category"), [2, 10]),
    (pd.Series(["b", "a", "b"], dtype="string"), ["a", "b"]),
    (pd.Series([10, 2, 10], dtype="Int64"), [2, 10]),
    (pd.Series([True, False, True], dtype="boolean"), [False, True]),
]


@pytest.mark.parametrize(("y", "wanted"), KINDS, ids=range(len(KINDS)))
def test_labels_keep_their_type(y: Any, wanted: list[Any]) -> None:
    classes = classes_of(y)
    assert classes.tolist() == wanted
    assert {type(label) for label in classes.tolist()} == {type(label) for label in wanted}
    assert class_texts(classes) == tuple(map(str, wanted))
    assert encoded(y, classes).tolist() == [wanted.index(label) for label in list(y)]


def test_a_column_is_taken_with_a_warning() -> None:
    for column in (np.array([[1], [0], [1]]), [[1], [0], [1]], pd.DataFrame({"y": [1, 0, 1]})):
        with pytest.warns(DataConversionWarning, match="A column-vector y was passed"):
            assert classes_of(column).tolist() == [0, 1]


NAN = float("nan")
REFUSED: list[tuple[Any, str]] = [
    (["a", None], r"^y\[1\]: Input y contains NaN or None; give every text a label, or leave it out$"),
    (["a", NAN], r"^y\[1\]: Input y contains NaN or None"),
    (pd.Series(["a", None]), r"^y\[1\]: Input y contains NaN or None"),
    (pd.Series([1, None], dtype="Int64"), r"^y\[1\]: Input y contains NaN or None"),
    (np.array(["a", None], dtype=object), r"^y\[1\]: Input y contains NaN or None"),
    (["a", 1], r"^y\[1\]: is 1, but y\[0\] is 'a'; give labels of one type$"),
    (np.array([1, "a"], dtype=object), r"^y\[1\]: is 'a', but y\[0\] is 1; give labels of one type$"),
    (["a", "a"], r"^y: has 1 class; a classifier needs at least 2, so give texts of another one$"),
    (np.array([[0, 1], [1, 1]]), r"^y: has several labels a row \(multi-label\), which AbmllClassifier does not learn"),
    ([[0, 1], [1, 1]], r"^y: has several labels a row"),
    ([["a"], ["a", "b"]], r"^y: has several labels a row"),
    (pd.DataFrame({"a": [0, 1], "b": [1, 1]}), r"^y: has several labels a row"),
    (None, r"^AbmllClassifier requires y to be passed, but the target y is None$"),
]


@pytest.mark.parametrize(("y", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_label_is_refused_in_one_line(y: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        classes_of(y)


def test_scikit_learn_refuses_numbers_that_are_no_classes() -> None:
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        classes_of([0.5, 1.5])
    with pytest.raises(ValueError, match="Input y contains NaN"):
        classes_of(np.array([1.0, NAN]))
    with pytest.raises(ValueError, match="previously unseen labels"):
        encoded(["a", "c"], np.array(["a", "b"]))


def test_classes_must_differ_as_texts() -> None:
    with pytest.raises(InputError, match=r"^y: options 0 and 1 are both 'a'; make them distinct$"):
        class_texts(np.array([" a", "a"]))
    with pytest.raises(InputError, match=r"^y: its label is empty; give every label a text$"):
        class_texts(np.array(["", "a"]))
    with pytest.raises(InputError, match=r"^y: 201 options; at most 200 are possible$"):
        class_texts(np.arange(201))


def test_names_stand_for_the_classes() -> None:
    assert class_texts(np.array([0, 1]), ["no", "yes"]) == ("no", "yes")
    with pytest.raises(InputError, match=r"^target_names: has 1 texts for 2 classes; give one for each, in order$"):
        class_texts(np.array([0, 1]), ["no"])
    with pytest.raises(InputError, match=r"^y: options 0 and 1 are both 'no'; make them distinct$"):
        class_texts(np.array([0, 1]), ["no", "no"])
