"""A fitted classifier in pickles, in skops' files and in folders, always without its language model."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from joblib import Parallel, delayed
from sklearn import base

from abmll import AbmllClassifier, MetaTrainer, TaskPosterior
from abmll.common.errors import AbmllError, CheckpointError, ConfigError
from abmll.model import shared_models
from abmll.model.saved_classifier import CLASSIFIER
from abmll.posterior import head

clone: Any = base.clone  # whose type says that it gives a list or a dict
TEXTS = [f"{letter * 6} {number}" for number, letter in enumerate("abababababab")]
ASKED = ["aaaaaa", "bbbbbb 99", "c"]
KINDS: list[list[Any]] = [["yes", "no"], [10, 2], [True, False], [2.0, 1.0]]


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHAINS", 8)


@pytest.fixture
def classifier(tiny_llama: Path) -> Iterator[AbmllClassifier]:
    shared_models.forget()
    yield AbmllClassifier(str(tiny_llama), task_name="desk", random_state=4)
    shared_models.forget()


@pytest.fixture
def fitted(classifier: AbmllClassifier) -> AbmllClassifier:
    return classifier.fit(TEXTS, ["yes", "no"] * 6)


@pytest.fixture
def full(make_trainer: Callable[..., MetaTrainer], tmp_path: Path) -> AbmllClassifier:
    """Learned by gradient steps from the theta of a run."""
    make_trainer(max_steps=1).train()
    return AbmllClassifier(theta=tmp_path / "run", adapt="full", steps=2).fit(TEXTS, ["yes", "no"] * 6)


def assert_same(found: AbmllClassifier, wanted: AbmllClassifier) -> None:
    np.testing.assert_array_equal(found.predict_proba(ASKED), wanted.predict_proba(ASKED))
    np.testing.assert_array_equal(found.classes_, wanted.classes_)
    assert found.classes_.dtype == wanted.classes_.dtype
    assert found.posterior_.labels == wanted.posterior_.labels
    assert found.n_features_in_ == 1


def through_pickle(one: AbmllClassifier) -> AbmllClassifier:
    data = pickle.dumps(one)
    assert len(data) < 40_000  # the language model has 88,000 bytes
    shared_models.forget()
    return pickle.loads(data)


def through_skops(one: AbmllClassifier) -> AbmllClassifier:
    data = skops.io.dumps(one)
    assert skops.io.get_untrusted_types(data=data) == TRUSTED
    return skops.io.loads(data, trusted=TRUSTED)


TRUSTED = ["abmll.model.classifier.AbmllClassifier"]
COPIES: list[Callable[[AbmllClassifier], AbmllClassifier]] = [through_pickle, copy.deepcopy, through_skops]


@pytest.mark.parametrize("copied", COPIES, ids=["pickle", "deepcopy", "skops"])
def test_a_copy_answers_to_the_bit(fitted: AbmllClassifier, copied: Callable[[Any], Any]) -> None:
    found = copied(fitted)
    assert_same(found, fitted)
    assert_same(copied(found), fitted)
    assert_same(copied(copied(fitted)), fitted)  # one that was never asked
    more = ["bbb 1", "aaa 2"], ["no", "yes"]
    assert_same(copied(fitted).partial_fit(*more), clone(fitted).fit(TEXTS + more[0], ["yes", "no"] * 6 + more[1]))


@pytest.mark.parametrize("copied", COPIES, ids=["pickle", "deepcopy", "skops"])
def test_an_unfitted_one_is_copied(classifier: AbmllClassifier, copied: Callable[[Any], Any]) -> None:
    found = copied(classifier)
    assert found.get_params() == classifier.get_params()
    assert not hasattr(found, "posterior_")


@pytest.mark.parametrize("copied", COPIES[:2], ids=["pickle", "deepcopy"])
def test_a_copy_needs_neither_theta_nor_its_run(full: AbmllClassifier, copied: Any, tmp_path: Path) -> None:
    data = copied(full)
    (tmp_path / "run").rename(tmp_path / "gone")
    assert_same(data, full)


def test_a_copy_loads_no_language_model_before_it_is_asked(
    fitted: AbmllClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(fitted)
    shared_models.forget()
    monkeypatch.setattr(shared_models, "load_base", lambda *_, **__: pytest.fail("was loaded"))
    found = pickle.loads(data)
    assert found.classes_.tolist() == ["no", "yes"]
    assert pickle.dumps(found)


def test_threads_may_ask_a_copy_at_once(fitted: AbmllClassifier) -> None:
    found = through_pickle(fitted)
    answers: Any = Parallel(n_jobs=4, backend="threading")(delayed(found.predict_proba)(ASKED) for _ in range(8))
    for answer in answers:
        np.testing.assert_array_equal(answer, fitted.predict_proba(ASKED))


def test_a_copy_can_be_told_where_the_language_model_is(fitted: AbmllClassifier, family_folder: Any) -> None:
    found = through_pickle(fitted).set_params(model=str(family_folder("qwen2")))
    with pytest.raises(CheckpointError, match=r"^this classifier: was learned on .*llama.* other weights"):
        found.predict(ASKED)
    assert_same(found.set_params(model=fitted.model), fitted)


@pytest.mark.parametrize("labels", KINDS, ids=["str", "int", "bool", "float"])
def test_a_folder_keeps_everything(classifier: AbmllClassifier, labels: list[Any], tmp_path: Path) -> None:
    fitted = classifier.set_params(random_state=np.random.RandomState(4)).fit(TEXTS, labels * 6)
    fitted.save_pretrained(tmp_path / "saved")
    found = AbmllClassifier.from_pretrained(tmp_path / "saved")
    assert_same(found, fitted)
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    seed = fitted.posterior_.settings["adapt_seed"]
    assert found.get_params() == classifier.get_params() | {"random_state": seed}
    more = ["bbb 1", "aaa 2"], labels
    assert_same(found.partial_fit(*more), fitted.partial_fit(*more))


def test_names_of_the_labels_are_saved(classifier: AbmllClassifier, tmp_path: Path) -> None:
    fitted = classifier.set_params(target_names=("no", "yes")).fit(TEXTS, [1, 0] * 6)
    fitted.save_pretrained(tmp_path / "saved")
    found = AbmllClassifier.from_pretrained(tmp_path / "saved")
    assert found.target_names == ["no", "yes"]
    assert_same(found, fitted)


def test_gradient_steps_are_saved(full: AbmllClassifier, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path / "saved")
    (tmp_path / "run").rename(tmp_path / "gone")
    found = AbmllClassifier.from_pretrained(tmp_path / "saved")
    assert_same(found, full)
    assert (found.theta, found.adapt, found.steps) == (str(tmp_path / "run"), "full", 2)


def test_the_folder_is_a_posterior_s_too(fitted: AbmllClassifier, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "saved")
    posterior = TaskPosterior.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(posterior.predict(ASKED).probs.numpy(), fitted.predict_proba(ASKED))


def test_a_folder_is_overwritten_on_demand(fitted: AbmllClassifier, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "saved")
    other = clone(fitted).set_params(task_name="other").fit(TEXTS, [1, 2] * 6)
    with pytest.raises(AbmllError, match="saved"):
        other.save_pretrained(tmp_path / "saved")
    assert AbmllClassifier.from_pretrained(tmp_path / "saved").task_name == "desk"
    other.save_pretrained(tmp_path / "saved", overwrite=True)
    assert_same(AbmllClassifier.from_pretrained(tmp_path / "saved"), other)


def test_the_language_model_may_have_moved(fitted: AbmllClassifier, family_folder: Any, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "saved")
    moved = tmp_path / "moved"
    moved.symlink_to(fitted.model)
    assert AbmllClassifier.from_pretrained(tmp_path / "saved", model=str(moved)).model == str(moved)
    with pytest.raises(CheckpointError, match="other weights"):
        AbmllClassifier.from_pretrained(tmp_path / "saved", model=str(family_folder("qwen2")))


def test_classes_that_json_does_not_know_are_refused(fitted: AbmllClassifier, tmp_path: Path) -> None:
    fitted.classes_ = np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[D]")
    with pytest.raises(ConfigError, match=r"^classes of type datetime64\[D\] cannot be saved; make them str, int,"):
        fitted.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


DAMAGES: list[tuple[dict[str, Any], str]] = [
    ({"classes": None}, r"is damaged \(classes: Input should be an object"),
    ({"classes": {"type": "int", "values": ["no", "yes"]}}, "cannot be used .its classes are"),
    ({"classes": {"type": "date", "values": ["no", "yes"]}}, r"is damaged \(classes.type: Input should be 'bool'"),
    ({"classes": {"type": "str", "values": ["no"]}}, r"is damaged \(classes.values: List should have at least 2"),
    ({"parameters": 3}, r"is damaged \(parameters: Input should be an object"),
    ({"parameters": {"colour": 3}}, "its parameters are not this version's"),
    ({"format": "abmll-classifier-0"}, "is not of the format 'abmll-classifier-1'"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_folder_is_refused(
    fitted: AbmllClassifier, tmp_path: Path, damage: dict[str, Any], words: str
) -> None:
    fitted.save_pretrained(tmp_path)
    document = json.loads((tmp_path / CLASSIFIER).read_text()) | damage
    del document["sha256"]  # else every change is refused for that alone
    (tmp_path / CLASSIFIER).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"{words}.*fit and save the classifier again"):
        AbmllClassifier.from_pretrained(tmp_path)


def test_a_posterior_s_folder_is_no_classifier_s(fitted: AbmllClassifier, tmp_path: Path) -> None:
    fitted.posterior_.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="fit and save the classifier again"):
        AbmllClassifier.from_pretrained(tmp_path / "saved")
