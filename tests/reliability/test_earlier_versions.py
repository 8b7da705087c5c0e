"""What earlier versions wrote is read by this one, and answers as it did then.

A folder of ``tests/fixtures`` was written by the version that it is named after, and is never written again: run,
posterior, mixture, head and classifier on a tiny model, and what they answered; an evaluation and a comparison with its
cells.
"""

import json
from pathlib import Path

import pytest

from abmll import AbmllClassifier, AbmllModel, TaskPosterior
from abmll.experiments.cells import load_cell, load_predictions
from abmll.experiments.html.reading import read_report
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


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "name"), [("evaluation", "metrics.json"), ("comparison", "comparison.json")])
def test_results_of_an_earlier_version(version: str, kind: str, name: str) -> None:
    folder = Path(__file__).parents[1] / "fixtures" / version / kind
    written = json.loads((folder / name).read_text())
    report = read_report(folder)
    assert (report.kind, report.suite) == (kind, "mine")
    [method] = report.methods.values()
    [expected] = written["methods"].values() if kind == "comparison" else [written]
    assert (method.mean["nll"], method.tasks["t2"]["accuracy"]) == (
        expected["mean"]["nll"], expected["tasks"]["t2"]["accuracy"])  # fmt: skip
    assert method.outcomes is not None


@pytest.mark.parametrize("version", VERSIONS)
def test_finished_cells_of_an_earlier_version_are_not_computed_again(version: str) -> None:
    paths = sorted((Path(__file__).parents[1] / "fixtures" / version / "comparison/cells/mine").glob("*[0-9a-f].json"))
    cells = [load_cell(path) for path in paths]
    assert [cell and cell["seed"] for cell in cells] == [0, 1]
    assert [len(list(load_predictions(path))) for path in paths] == [3, 3]
