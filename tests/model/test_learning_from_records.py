"""Tables, dicts, pairs and texts where a posterior learns and answers, and the labels that it knows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from abmll import AbmllModel, TaskPosterior
from abmll.common.checkpoint import DOCUMENT, Bundle, load_bundle, save_bundle
from abmll.common.config import LearningConfig
from abmll.common.errors import DataError
from abmll.tasks import Example, Task

FRAME = pd.DataFrame({"text": ["aaa 1", "bbb 2", "aaa 3", "bbb 4"], "label": ["x", "y", "x", "y"]})
EXAMPLES = [Example(str(n), row["text"], ("x", "y"), n % 2) for n, row in enumerate(FRAME.to_dict("records"))]
ASKED = ["aaa 7", "bbb 9"]
QUESTIONS = [Example(str(n), text, ("x", "y"), None) for n, text in enumerate(ASKED)]


pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture
def model(tiny_model: AbmllModel) -> AbmllModel:
    """It learns with a head."""
    tiny_model.learning = LearningConfig(method="head")
    return tiny_model


FORMS: list[Any] = [FRAME, FRAME.to_dict("records"), list(FRAME.itertuples(index=False, name=None))]


@pytest.mark.parametrize("data", FORMS, ids=["frame", "dicts", "pairs"])
@pytest.mark.parametrize("how", ["head", "full"])
def test_records_are_learned_as_examples_are(tiny_model: AbmllModel, data: Any, how: Any) -> None:
    wanted, found = (tiny_model.adapt(one, how=how, steps=1) for one in (EXAMPLES, data))
    for asked in (ASKED, pd.Series(ASKED), [{"text": text} for text in ASKED]):
        assert torch.equal(found.predict(asked).probs, wanted.predict(QUESTIONS).probs)


def test_columns_are_named_wherever_data_comes_in(model: AbmllModel) -> None:
    data: Any = FRAME.rename(columns={"text": "body", "label": "queue"})
    posterior = model.adapt(data[:3], text="body", label="queue").update(data[3:], text="body", label="queue")
    wanted = model.adapt(EXAMPLES)
    assert torch.equal(posterior.predict(data, text="body", label="queue").probs, wanted.predict(EXAMPLES).probs)
    assert posterior.suggest(data, text="body", label="queue") == wanted.suggest(EXAMPLES)
    with pytest.raises(DataError, match=r"^examples: no column 'text' or 'input'; name it with text=\.\.\., of body"):
        posterior.predict(data)


def test_an_update_learns_known_labels_alone(model: AbmllModel) -> None:
    posterior = model.adapt(EXAMPLES)
    with pytest.raises(DataError, match=r"^examples\[0\]: the label 'z' is none of x, y; correct it, or learn anew$"):
        posterior.update([("aaa", "z")])
    with pytest.raises(DataError, match=r"^task 'task', example '1': has no answer to learn from$"):
        posterior.update([("aaa", "x"), ("bbb", None)])
    with pytest.raises(DataError, match=r"^task 'task': no examples to learn from$"):
        posterior.update(FRAME[:0])


def test_columns_of_the_answer_are_in_the_order_of_the_labels(model: AbmllModel) -> None:
    turned = [replace(one, options=("y", "x"), answer=1 - n % 2) for n, one in enumerate(EXAMPLES)]
    posterior = model.adapt(turned)
    assert posterior.labels == ("y", "x")
    wanted = model.adapt(EXAMPLES).predict(QUESTIONS).probs
    torch.testing.assert_close(posterior.predict(ASKED).probs, wanted.flip(-1), rtol=1e-4, atol=1e-5)


def test_without_common_labels_a_text_is_no_question(model: AbmllModel) -> None:
    posterior = model.adapt([EXAMPLES[0], replace(EXAMPLES[1], options=("u", "v"))])
    assert posterior.labels == ()
    with pytest.raises(DataError, match=r"^examples: nothing says what the labels are; give Examples, or dicts"):
        posterior.predict(ASKED)


@pytest.mark.parametrize("how", ["head", "full"])
def test_labels_are_saved(tiny_model: AbmllModel, tmp_path: Path, how: Any) -> None:
    posterior = tiny_model.adapt(FRAME, how=how, steps=1)
    posterior.save_pretrained(tmp_path / "saved")
    loaded = TaskPosterior.from_pretrained(tmp_path / "saved", scorer=tiny_model.scorer)
    assert loaded.labels == ("x", "y")
    assert torch.equal(loaded.predict(ASKED).probs, posterior.predict(ASKED).probs)


@pytest.mark.parametrize(("how", "labels"), [("head", ("x", "y")), ("full", ())])
def test_a_posterior_of_0_2_has_the_labels_of_its_head(
    tiny_model: AbmllModel, tmp_path: Path, how: Any, labels: tuple[str, ...]
) -> None:
    """It was saved without labels of its own."""
    tiny_model.adapt(FRAME, how=how, steps=1).save_pretrained(tmp_path / "saved")
    bundle = load_bundle(tmp_path / "saved", DOCUMENT)
    document = {key: value for key, value in bundle.document.items() if key != "labels"}
    save_bundle(tmp_path / "old", Bundle(bundle.tensors, document), DOCUMENT)
    assert TaskPosterior.from_pretrained(tmp_path / "old", scorer=tiny_model.scorer).labels == labels


def test_theta_knows_no_labels(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    posterior = tiny_model.theta_as_posterior("toy0")
    assert posterior.labels == ()
    assert len(posterior.predict(toy_tasks[0].test).probs) == len(toy_tasks[0].test)
