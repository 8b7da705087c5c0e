"""scikit-learn's own checks of an estimator.

It runs them with numbers alone: of an estimator that takes texts it checks whether it can be cloned, and no more. So
all others are run on a classifier of numbers, which writes every row down and leaves the rest to AbmllClassifier.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import base
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from abmll import AbmllClassifier
from abmll.model.prediction import Prediction
from abmll.model.shared_models import shared_learner
from abmll.posterior import head
from abmll.posterior.hypotheses import HeadPrior

clone: Any = base.clone  # whose type says that it gives a list or a dict
LENGTH = 25


class OfNumbers(AbmllClassifier):
    """A number becomes a word of 25 letters, in which the larger one has more a's and fewer z's."""

    def written(self, X: Any, reset: bool) -> list[str]:
        numbers: Any = validate_data(self, X, reset=reset)
        rows = np.clip(numbers * 4 + LENGTH / 2, 0, LENGTH).astype(int)
        return [" ".join("a" * number + "z" * (LENGTH - number) for number in row) for row in rows]

    def fit(self, X: Any, y: Any) -> "OfNumbers":
        super().fit(self.written(X, reset=True), y)
        validate_data(self, X, reset=True)  # which says how many features there are
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "OfNumbers":
        is_first = not hasattr(self, "classes_")
        super().partial_fit(self.written(X, reset=is_first), y, classes)
        validate_data(self, X, reset=True)
        return self

    def _predict(self, X: Any) -> Prediction:
        check_is_fitted(self)
        return super()._predict(self.written(X, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        return tags


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    """Few chains and hypotheses: some of the checks learn hundreds of rows."""
    monkeypatch.setattr(head, "CHAINS", 4)
    prior = HeadPrior(taus=(4.0,), labelled=((0.0,),) * 3)
    monkeypatch.setattr(shared_learner(str(tiny_llama), None, "auto"), "head_prior", prior)


CHECKS = parametrize_with_checks([OfNumbers()])  # up to scikit-learn 1.7 a generator, of which pytest warns


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_it_is_an_estimator(estimator: Any, check: Any, tiny_llama: Path) -> None:
    check(clone(estimator).set_params(model=str(tiny_llama)))


def test_texts_are_what_it_says_it_takes(tiny_llama: Path) -> None:
    estimator = AbmllClassifier(str(tiny_llama))
    tags = estimator.__sklearn_tags__()
    assert tags.input_tags.string
    assert tags.input_tags.one_d_array
    assert not tags.input_tags.two_d_array
    assert not tags.classifier_tags.multi_label
    assert tags.target_tags.required
    with pytest.warns(SkipTestWarning, match="Can't test estimator AbmllClassifier which requires input"):
        found = {one["check_name"]: one["status"] for one in check_estimator(estimator)}
    assert found == {"check_estimator_cloneable": "passed"}
