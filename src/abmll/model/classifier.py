"""AbmllClassifier: learning a text task behind scikit-learn's interface."""

import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from abmll.common.checkpoint import DOCUMENT, load_bundle, save_bundle
from abmll.common.config import AUTO_THETA, AdaptConfig, ModelConfig
from abmll.common.errors import CheckpointError, DataError, InputError
from abmll.model.class_labels import class_texts, classes_of, encoded
from abmll.model.learned_task import TaskPosterior
from abmll.model.prediction import Prediction
from abmll.model.saved_classifier import (
    CLASSIFIER,
    REMEDY,
    arrays_of,
    bundle_of,
    classifier_text,
    read_classifier,
    refuse_unsaveable,
)
from abmll.model.shared_models import IN_USE, shared_learner, shared_scorer
from abmll.tasks import Example
from abmll.tasks.records import Data, texts_of


class Uncertainty(NamedTuple):
    """Of N texts, in nats."""

    entropy: NDArray[np.float64]  # (N,) of the probabilities: all uncertainty
    mutual_information: NDArray[np.float64]  # (N,) the part that more labelled texts would remove


class AbmllClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of texts for scikit-learn.

    X is a list, an array or a Series of texts, or a table with one column; y has one label a text, of any type. The
    language model reads the labels as well, so that "billing" teaches it more than 1. It is loaded once in a process
    for all estimators that name it, is no part of a pickle, and reads a text once for all fits that have the same task
    name and labels.

    Args:
        model: name or folder of the language model.
        theta: folder of a training run whose theta to start from. Its language model is the one it was trained on,
            unless ``model`` names another place than the default. "auto": the one that comes with the package, for
            features, where ``model`` is the default; None: the language model as it was downloaded.
        adapt: "head", "full" or None: as ``how`` in ``AbmllModel.adapt``.
        steps: gradient steps of "full".
        task_name: stands before every text in the prompt.
        target_names: (C,) what the language model reads for the labels, which are in rising order; None: the labels
            themselves. For labels that are numbers, and for tools that make numbers of them: ``cross_val_predict`` with
            ``method="predict_proba"``, ``VotingClassifier``, ``StackingClassifier``.
        random_state: seed of what is random in learning; None is 0, so that a fit can be repeated.
        device: where the language model runs: cpu, cuda, mps; auto takes a GPU where there is one.

    Attributes:
        classes_: (C,) the labels, sorted, in the type of y.
        n_features_in_: 1, a column of texts.
        posterior_: the TaskPosterior.

    Texts and labels that cannot be used raise ``InputError``, which is a ``ValueError``.
    """

    classes_: NDArray[Any]
    n_features_in_: int
    _posterior: TaskPosterior | None
    _saved: dict[str, Any] | None

    def __init__(
        self,
        model: str = ModelConfig.model,
        *,
        theta: str | os.PathLike[str] | None = AUTO_THETA,
        adapt: Literal["head", "full"] | None = None,
        steps: int = AdaptConfig.steps,
        task_name: str = "task",
        target_names: Sequence[str] | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.theta = theta
        self.adapt = adapt
        self.steps = steps
        self.task_name = task_name
        self.target_names = target_names
        self.random_state = random_state
        self.device = device

    def fit(self, X: Data, y: Data) -> "AbmllClassifier":
        """Learn the texts ``X`` with their labels ``y``, and nothing of what was learned before."""
        return self._learn(_texts(X), y, classes_of(y))

    def partial_fit(self, X: Data, y: Data, classes: Data | None = None) -> "AbmllClassifier":
        """Learn more texts: with a head the same as learning all of them at once.

        ``classes`` are all labels that may ever come; the first call must have them. Raises ``ConfigError`` where
        the task was learned without a head.
        """
        if not hasattr(self, "classes_"):
            if classes is None:
                raise InputError("classes must be passed on the first call to partial_fit: all labels that may come")
            return self._learn(_texts(X), y, classes_of(classes))
        if classes is not None and not np.array_equal(classes_of(classes), self.classes_):
            raise InputError(f"classes are {list(classes_of(classes))}, but {list(self.classes_)} in the first call")
        with IN_USE:
            examples = _examples(_texts(X), encoded(y, self.classes_), self.posterior_.labels)
            self._posterior = self.posterior_.update(examples)
        return self

    def _learn(self, texts: list[str], y: Data, classes: NDArray[Any]) -> "AbmllClassifier":
        examples = _examples(texts, encoded(y, classes), class_texts(classes, self.target_names))
        theta = None if self.theta is None else os.fspath(self.theta)
        how: Any = {"how": self.adapt, "steps": self.steps, "seed": _seed(self.random_state)}
        with IN_USE:
            learner = shared_learner(self.model, theta, self.device)
            self._posterior = learner.adapt(examples, task_name=self.task_name, **how)
        self._saved = None
        self.classes_ = classes
        self.n_features_in_ = 1
        return self

    @property
    def posterior_(self) -> TaskPosterior:
        """What was learned. Out of a pickle it gets its language model back when it is first asked for."""
        check_is_fitted(self)
        with IN_USE:
            if self._posterior is None:
                assert self._saved is not None
                bundle = bundle_of(self._saved)
                scorer = shared_scorer(bundle.document["settings"], self.model, self.theta is not None, self.device)
                self._posterior = TaskPosterior.of_bundle(bundle, scorer, Path("this classifier"))
                self._saved = None
            return self._posterior

    def predict(self, X: Data) -> NDArray[Any]:
        """(N,) the most probable label of each text."""
        answers = self._predict(X).answers.numpy()
        return self.classes_[answers]

    def predict_proba(self, X: Data) -> NDArray[np.float64]:
        """(N, C) probabilities, columns in the order of ``classes_``."""
        return self._predict(X).probs.numpy()

    def predict_uncertainty(self, X: Data) -> Uncertainty:
        """How uncertain each prediction is, and how much of that is for lack of examples."""
        prediction = self._predict(X)
        return Uncertainty(prediction.entropy.numpy(), prediction.mutual_information.numpy())

    def _predict(self, X: Data) -> Prediction:
        check_is_fitted(self)
        texts = _texts(X)
        with IN_USE:
            return self.posterior_.predict(texts)

    def save_pretrained(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the fitted classifier to a folder, without pickle and without the language model.

        The folder is a posterior's as well, for ``TaskPosterior.from_pretrained`` and ``abmll predict``. A
        ``RandomState`` is saved as the seed that was drawn of it. Raises ``ConfigError`` where the labels are neither
        str, int, float nor bool.
        """
        posterior = self.posterior_
        refuse_unsaveable(self.classes_)
        parameters = self.get_params(deep=False)
        parameters["theta"] = None if self.theta is None else os.fspath(self.theta)
        parameters["target_names"] = None if self.target_names is None else list(posterior.labels)
        if self.random_state is not None:
            parameters["random_state"] = posterior.settings["adapt_seed"]
        beside = {CLASSIFIER: classifier_text(parameters, self.classes_)}
        save_bundle(Path(folder), posterior.bundle(), DOCUMENT, overwrite, beside)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, model: str | None = None) -> "AbmllClassifier":
        """Read a folder that ``save_pretrained`` wrote; ``model`` says where the language model lies by now.

        Raises ``CheckpointError`` where the folder is damaged or belongs to other weights.
        """
        parameters, classes = read_classifier(Path(folder))
        try:
            estimator = cls(**parameters)
        except TypeError as error:
            raise CheckpointError(f"{folder}: its parameters are not this version's ({error}); {REMEDY}") from error
        estimator.model = estimator.model if model is None else model
        estimator._posterior, estimator._saved = None, arrays_of(load_bundle(Path(folder), DOCUMENT))
        estimator.classes_, estimator.n_features_in_ = classes, 1
        _ = estimator.posterior_  # what is wrong with it is said here
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """The parameters, the labels, and the posterior as it is saved."""
        state: dict[str, Any] = dict(super().__getstate__())
        if state.get("_posterior") is not None:
            state["_saved"], state["_posterior"] = arrays_of(state["_posterior"].bundle()), None
        return state

    def __sklearn_tags__(self) -> Any:
        """One text a row, as scikit-learn's text vectorizers take it."""
        tags: Any = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


def _texts(X: Data) -> list[str]:
    try:
        texts = texts_of(X)
    except DataError as error:
        raise InputError(str(error)) from error
    if not texts:
        raise InputError("X: Found array with 0 samples; give at least one text")  # in scikit-learn's words
    return texts


def _examples(texts: list[str], answers: NDArray[np.int64], options: tuple[str, ...]) -> list[Example]:
    check_consistent_length(texts, answers)
    pairs = zip(texts, answers.tolist(), strict=True)
    return [Example(str(number), text, options, answer) for number, (text, answer) in enumerate(pairs)]


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if random_state is None or isinstance(random_state, Integral):
        return int(random_state or 0)
    return int(check_random_state(random_state).randint(2**31 - 1))
