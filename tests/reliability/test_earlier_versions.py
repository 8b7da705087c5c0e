"""What earlier versions wrote is read by this one, and answers as it did then.

A folder of ``tests/fixtures`` was written by the version that it is named after, and is never written again: run,
posterior, mixture, head and classifier on a tiny model, and what they answered.
"""

import json
from pathlib import Path

import pytest

from abmll import AbmllClassifier, AbmllModel, TaskPosterior
from abmll.tasks import Example

VERSIONS = sorted(path.name for path in (Path(__file__).parents[1] / "fixtures").iterdir())
QUESTIONS = [Example("q", "toy 3 b", ("yes", "no"), None), Example("r", "new 40 a", ("no", "yes"), None)]
# Processors round differently, and a head's chain of samples can turn another way for it.
CLOSE = {"head": 0.05, "classifier": 0.05}


def answers(kind: str) -> list[list[float]]:
    if kind == "classifier":
        return AbmllClassifier.from_pretrained(kind).predict_proba(["toy 3 b"]).tolist()
    if kind == "run":
        return AbmllModel.from_pretrained(kind).theta_as_posterior("t").predict(QUESTIONS).probs.tolist()
    return TaskPosterior.from_pretrained(kind).predict(QUESTIONS).probs.tolist()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["run", "posterior", "mixture", "head", "classifier"])
def test_what_an_earlier_version_wrote(version: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[1] / "fixtures" / version
    monkeypatch.chdir(folder)
    expected = json.loads((folder / "answers.json").read_text())[kind]
    for found, own in zip(answers(kind), expected, strict=True):
        assert found == pytest.approx(own, abs=CLOSE.get(kind, 1e-4))
