"""AbmllClassifier: what it computes, with what it works together, and how often the language model is at work."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import base
from sklearn.calibration import CalibrationDisplay
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from abmll import AbmllClassifier, AbmllModel, MetaTrainer
from abmll.common.errors import ConfigError, InputError
from abmll.language.features import FeatureReader
from abmll.language.meter import counted
from abmll.model import shared_models
from abmll.model.shared_models import shared_learner
from abmll.posterior import head
from abmll.tasks import Example

clone: Any = base.clone  # whose type says that it gives a list or a dict
TEXTS = [f"{letter * 6} {number}" for number, letter in enumerate("abcabcabcabc")]
LABELS = ["billing", "bug", "other"] * 4
ASKED = ["aaaaaa", "bbbbbb 99", "c"]


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHAINS", 8)


@pytest.fixture
def classifier(tiny_llama: Path) -> Iterator[AbmllClassifier]:
    """Not fitted, and without a language model that another test has loaded."""
    shared_models.forget()
    yield AbmllClassifier(str(tiny_llama))
    shared_models.forget()


def examples(labels: tuple[str, ...] = ("billing", "bug", "other")) -> list[Example]:
    pairs = zip(TEXTS, LABELS, strict=True)
    return [Example(str(n), text, labels, labels.index(label)) for n, (text, label) in enumerate(pairs)]


def test_it_answers_as_the_posterior_of_a_bare_model(classifier: AbmllClassifier, tiny_llama: Path) -> None:
    found = classifier.set_params(task_name="desk", random_state=3).fit(TEXTS, LABELS)
    posterior = AbmllModel.from_base(str(tiny_llama)).adapt(examples(), task_name="desk", seed=3)
    wanted = posterior.predict([Example("", text, ("billing", "bug", "other"), None) for text in ASKED])
    np.testing.assert_array_equal(found.predict_proba(ASKED), wanted.probs.numpy())
    np.testing.assert_array_equal(found.predict_uncertainty(ASKED).entropy, wanted.entropy.numpy())
    information = found.predict_uncertainty(ASKED).mutual_information
    np.testing.assert_array_equal(information, wanted.mutual_information.numpy())
    assert information.shape == (3,)
    assert bool((information > 0).all())
    assert found.posterior_.labels == ("billing", "bug", "other")
    assert found.n_features_in_ == 1


def test_columns_are_in_the_order_of_the_classes(classifier: AbmllClassifier) -> None:
    """As numbers 2 comes before 10, as texts behind it."""
    numbers = [{"billing": 10, "bug": 2, "other": 1}[label] for label in LABELS]
    found = classifier.fit(TEXTS, numbers)
    assert found.classes_.tolist() == [1, 2, 10]
    probs = found.predict_proba(TEXTS)
    by_option = found.posterior_.predict([Example("", text, ("10", "1", "2"), None) for text in TEXTS]).probs
    np.testing.assert_allclose(probs, by_option.numpy()[:, [1, 2, 0]], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.predict(TEXTS), found.classes_[probs.argmax(1)])
    assert found.predict(TEXTS).dtype.kind == "i"
    assert found.score(TEXTS, numbers) == accuracy_score(numbers, found.predict(TEXTS)) > 0.9


FORMS: list[Callable[[list[str]], Any]] = [
    tuple,
    np.array,
    lambda texts: np.array(texts, dtype=object),
    lambda texts: np.array(texts, dtype=object)[:, None],
    lambda texts: pd.Series(texts, index=[5] * len(texts)),
    lambda texts: pd.Series(texts, dtype="category"),
    lambda texts: pd.DataFrame({"whatever": texts}),
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_texts_come_in_many_forms(classifier: AbmllClassifier, form: Callable[[list[str]], Any]) -> None:
    wanted = classifier.fit(TEXTS, LABELS).predict_proba(ASKED)
    found = clone(classifier).fit(form(TEXTS), pd.Series(LABELS, dtype="category"))
    np.testing.assert_array_equal(found.predict_proba(form(ASKED)), wanted)
    np.testing.assert_array_equal(found.predict(form(ASKED)), classifier.predict(ASKED))


def test_learning_in_parts_is_learning_at_once(classifier: AbmllClassifier) -> None:
    whole = clone(classifier).fit(TEXTS, LABELS)
    classifier.partial_fit(TEXTS[:2], LABELS[:2], classes=["other", "bug", "billing"])
    classifier.partial_fit(TEXTS[2:7], LABELS[2:7]).partial_fit(TEXTS[7:], LABELS[7:], classes=whole.classes_)
    np.testing.assert_array_equal(classifier.predict_proba(ASKED), whole.predict_proba(ASKED))
    np.testing.assert_array_equal(
        clone(classifier).fit(TEXTS[:6], LABELS[:6]).partial_fit(TEXTS[6:], LABELS[6:]).predict_proba(ASKED),
        whole.predict_proba(ASKED),
    )


def test_a_part_has_the_labels_of_the_first_call(classifier: AbmllClassifier) -> None:
    with pytest.raises(InputError, match=r"^classes must be passed on the first call to partial_fit"):
        classifier.partial_fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="previously unseen labels"):
        classifier.partial_fit(TEXTS, LABELS, classes=["bug", "billing"])
    assert not hasattr(classifier, "classes_")
    classifier.partial_fit(TEXTS, LABELS, classes=["bug", "billing", "other"])
    with pytest.raises(InputError, match=r"^classes are .*bug.*, but .*other.* in the first call$"):
        classifier.partial_fit(TEXTS, LABELS, classes=["bug", "billing"])
    with pytest.raises(ValueError, match="previously unseen labels"):
        classifier.partial_fit(["a"], ["lunch"])


def test_a_new_fit_forgets_the_old_one(classifier: AbmllClassifier) -> None:
    wanted = clone(classifier).fit(TEXTS[:6], [1, 0] * 3).predict_proba(ASKED)
    again = classifier.fit(TEXTS, LABELS).fit(TEXTS[:6], [1, 0] * 3)
    np.testing.assert_array_equal(again.predict_proba(ASKED), wanted)


REFUSED: list[tuple[Any, Any, str]] = [
    ([], [], r"^X: Found array with 0 samples; give at least one text$"),
    (["a", None], [0, 1], r"^X\[1\]: its text is missing"),
    ("ab", [0, 1], r"^X: is one str"),
    (np.zeros((2, 2)), [0, 1], r"^X\[0\]: has 2 columns; give the one that holds the texts$"),
    ([1, 2], [0, 1], r"^X\[0\]: 'text' is 1 \(int\); it must be a text$"),
    (["a", "b"], [[0, 1], [1, 1]], r"^y: has several labels a row \(multi-label\)"),
]


@pytest.mark.parametrize(("texts", "labels", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_learned_is_a_value_error(
    classifier: AbmllClassifier, texts: Any, labels: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        classifier.fit(texts, labels)
    assert isinstance(caught.value, ValueError)


def test_texts_and_labels_are_equally_many(classifier: AbmllClassifier) -> None:
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[12, 11\]"):
        classifier.fit(TEXTS, LABELS[1:])


def test_before_it_is_fitted_it_answers_nothing(classifier: AbmllClassifier, tmp_path: Path) -> None:
    methods = (classifier.predict, classifier.predict_proba, classifier.predict_uncertainty)
    for method in (*methods, lambda _: classifier.save_pretrained(tmp_path), lambda _: classifier.posterior_):
        with pytest.raises(NotFittedError):
            method(ASKED)
    assert not hasattr(classifier, "posterior_")


def test_a_seed_decides_what_is_random(classifier: AbmllClassifier) -> None:
    states = (None, 0, np.int64(0), 5, np.random.RandomState(1), np.random.RandomState(1), np.random.RandomState(2))
    found = [
        clone(classifier).set_params(random_state=state).fit(TEXTS, LABELS).predict_proba(ASKED) for state in states
    ]
    for same in (1, 2):
        np.testing.assert_array_equal(found[0], found[same])
    np.testing.assert_array_equal(found[4], found[5])
    assert len({probs.tobytes() for probs in found}) == 4


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The language models that are loaded in the test."""
    names: list[str] = []
    load = shared_models.load_base

    def noted(config: Any, *others: Any, **more: Any) -> Any:
        names.append(config.model)
        return load(config, *others, **more)

    monkeypatch.setattr(shared_models, "load_base", noted)
    return names


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples went through the language model at a time."""
    numbers: list[int] = []
    compute = FeatureReader._compute

    def noted(self: FeatureReader, examples: Any, quiet: bool) -> Any:
        numbers.append(len(examples))
        return compute(self, examples, quiet)

    monkeypatch.setattr(FeatureReader, "_compute", noted)
    return numbers


def test_a_search_loads_the_language_model_once_and_reads_a_text_once_a_task_name(
    classifier: AbmllClassifier, loads: list[str], read: list[int]
) -> None:
    search = GridSearchCV(classifier, {"task_name": ["desk", "letters"]}, cv=3).fit(TEXTS, LABELS)
    assert loads == [classifier.model]
    assert sum(read) == 2 * (len(TEXTS) + 1)  # and the prompt without a text
    with counted(shared_learner(classifier.model, None, "auto").scorer) as cost:
        again = cross_val_predict(search.best_estimator_, TEXTS, LABELS, cv=4)
    assert cost.forward_passes == 0
    assert set(again) <= set(LABELS)
    assert loads == [classifier.model]


def test_held_out_texts_are_answered_without_their_labels(classifier: AbmllClassifier) -> None:
    """scikit-learn numbers the labels before it asks for probabilities; the model still reads their names."""
    wanted = clone(classifier).fit(TEXTS[4:], LABELS[4:]).predict_proba(TEXTS[:4])
    named = classifier.set_params(target_names=["billing", "bug", "other"])
    with counted(shared_learner(classifier.model, None, "auto").scorer) as cost:
        found = cross_val_predict(named, np.array(TEXTS), LABELS, cv=KFold(3), method="predict_proba")
    np.testing.assert_array_equal(found[:4], wanted)
    assert cost.forward_passes == 0


def test_it_stands_at_the_end_of_a_pipeline(classifier: AbmllClassifier) -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    piped = make_pipeline(lower, classifier).fit([text.upper() for text in TEXTS], LABELS)
    found = piped.predict_proba([text.upper() for text in ASKED])
    np.testing.assert_array_equal(found, clone(classifier).fit(TEXTS, LABELS).predict_proba(ASKED))
    assert piped.set_params(abmllclassifier__task_name="desk").get_params()["abmllclassifier"].task_name == "desk"


def test_its_calibration_is_displayed(classifier: AbmllClassifier) -> None:
    plt.switch_backend("Agg")
    labels = np.array([label == "bug" for label in LABELS])
    display = CalibrationDisplay.from_estimator(classifier.fit(TEXTS, labels), TEXTS, labels, n_bins=3)
    np.testing.assert_array_equal(display.y_prob, classifier.predict_proba(TEXTS)[:, 1])
    plt.close("all")


def test_several_labels_a_text_are_several_classifiers(classifier: AbmllClassifier) -> None:
    table = np.array([[label == "bug", label != "other"] for label in LABELS]).astype(int)
    several = MultiOutputClassifier(classifier).fit(np.array(TEXTS), table)
    first = clone(classifier).fit(TEXTS, table[:, 0]).predict_proba(ASKED)
    np.testing.assert_array_equal(several.predict_proba(ASKED)[0], first)


def test_threads_share_the_language_model(classifier: AbmllClassifier, loads: list[str]) -> None:
    wanted = cross_val_score(classifier, TEXTS, LABELS, cv=3)
    shared_models.forget()
    loads.clear()
    with joblib.parallel_backend("threading", n_jobs=3):
        found = cross_val_score(classifier, TEXTS, LABELS, cv=3, n_jobs=3)
    np.testing.assert_array_equal(found, wanted)
    assert loads == [classifier.model]


@pytest.fixture
def run(make_trainer: Callable[..., MetaTrainer], tmp_path: Path) -> Path:
    """A training run's folder."""
    make_trainer(max_steps=1).train()
    return tmp_path / "run"


def test_it_starts_from_a_theta(run: Path, loads: list[str], tiny_llama: Path) -> None:
    """The language model is the run's, whatever the default is."""
    shared_models.forget()
    search = GridSearchCV(AbmllClassifier(theta=run, steps=2), {"adapt": ["head", "full"]}, cv=2).fit(TEXTS, LABELS)
    assert loads == [str(tiny_llama)]
    model = AbmllModel.from_pretrained(run)
    for adapt in ("head", "full"):
        found = clone(search.best_estimator_).set_params(adapt=adapt, task_name="desk").fit(TEXTS, LABELS)
        wanted = model.adapt(examples(), how=adapt, steps=2, task_name="desk").predict(examples())
        np.testing.assert_array_equal(found.predict_proba(TEXTS), wanted.probs.numpy())
        with_pickle = copy.deepcopy(found)
        np.testing.assert_array_equal(with_pickle.predict_proba(TEXTS), wanted.probs.numpy())
    assert loads == [str(tiny_llama)]
    with pytest.raises(ConfigError, match=r"^update: this posterior has no head; learn the task with how='head'$"):
        found.partial_fit(TEXTS, LABELS)


def test_a_run_that_was_trained_anew_is_read_anew(run: Path, make_trainer: Callable[..., MetaTrainer]) -> None:
    before = shared_learner(AbmllClassifier().model, str(run), "auto")
    assert shared_learner(AbmllClassifier().model, str(run), "auto") is before
    make_trainer(max_steps=1, outer_learning_rate=0.1).train(overwrite=True)
    after = shared_learner(AbmllClassifier().model, str(run), "auto")
    pairs = zip(before.theta.mean_tensors(), after.theta.mean_tensors(), strict=True)
    assert not all(torch.equal(old, new) for old, new in pairs)
    assert (
        before.scorer.base.model.get_input_embeddings().weight is after.scorer.base.model.get_input_embeddings().weight
    )
