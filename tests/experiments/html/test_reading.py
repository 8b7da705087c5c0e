"""Reading folders: what they hold, and what is said when they are damaged."""

import json

import numpy as np
import pytest

from abmll.common.errors import DataError
from abmll.experiments.html.reading import read_report


def test_comparison_has_predictions_and_curves_of_each_method(reports):
    report = read_report(reports / "comparison")
    assert (report.kind, report.suite, report.seeds) == ("comparison", "bigbench-demo", [0])
    assert list(report.methods) == ["abmll", "structured-lora", "pretrained"]
    abmll = report.methods["abmll"]
    assert abmll.outcomes is not None
    assert abmll.outcomes.correct.mean() == pytest.approx(abmll.pooled["accuracy"])
    assert abmll.curves["episode"].tolist() == list(range(1, 101))
    assert np.isnan(report.methods["structured-lora"].curves["log_sigma"]).all()
    assert report.methods["pretrained"].curves == {}


def test_run_takes_its_evaluation_along(reports):
    report = read_report(reports / "run")
    assert (report.kind, report.suite) == ("run", "bigbench-demo")
    method = report.methods["abmll"]
    assert len(method.tasks) == 8
    assert len(method.curves["nll"]) == method.cost["episodes"] == 100
    assert method.cost["tokens"] == 240_000
    assert report.settings["beta"] == 1e-6


def test_run_without_evaluation_and_evaluation_without_run(reports):
    alone = read_report(reports / "training-only").methods["run"]
    assert (alone.label, alone.tasks, alone.outcomes) == ("training-only", {}, None)
    assert read_report(reports / "evaluation").methods["abmll"].curves == {}


def test_last_line_cut_short_by_a_killed_process_is_left_out(tmp_path, make):
    make.run(tmp_path, episodes=3)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"episode": 4, "nl')
    assert read_report(tmp_path).methods["run"].curves["episode"].tolist() == [1, 2, 3]


def test_missing_predictions_are_no_error(tmp_path, make):
    make.evaluation(tmp_path)
    (tmp_path / "predictions.jsonl").unlink()
    assert read_report(tmp_path).methods["abmll"].outcomes is None


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        read_report(tmp_path)
    with pytest.raises(DataError, match="nothing to report"):
        read_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"metrics\.json: is not valid JSON"),
        ("[]", "is not of the format 'abmll-evaluation-2'"),
        ('{"format": "abmll-evaluation-9"}', "is not of the format 'abmll-evaluation-2'"),
        ('{"format": "abmll-evaluation-2", "mean": {}}', r"is damaged \(method: Field required\); "),
        ("\udcff", "is not valid JSON"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, text, message):
    (tmp_path / "metrics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"predictions\.jsonl:2: is not valid JSON"),
        ("[1]", r"predictions\.jsonl:2: is list, not a JSON object"),
        ('{"probs": [1.0]}', r"predictions\.jsonl:2: needs 'probs'"),
        ('{"probs": [0.5, 0.2], "answer": 0}', r"predictions\.jsonl: example 1.*sum 0\.7"),
    ],
)
def test_damaged_predictions_are_named_with_their_line(tmp_path, make, line, message):
    make.evaluation(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"probs": [0.5, 0.5], "answer": 0}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_report(tmp_path)


def test_damaged_curves_and_config_are_named(tmp_path, make):
    make.run(tmp_path, episodes=2)
    (tmp_path / "config.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.yaml: must be a mapping"):
        read_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.yaml:1: not valid YAML"):
        read_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"episode": 1, "nll": "low"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: 'nll' is 'low'"):
        read_report(tmp_path)
