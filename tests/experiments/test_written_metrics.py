"""Scores of written answers against hand-computed cases, SQuAD's own definitions and rouge-score."""

import re
import string
from collections import Counter

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from abmll.common.errors import ConfigError
from abmll.experiments import written_metrics
from abmll.experiments.written_metrics import exact_match, mean_scores, rouge, score_answers, token_f1
from abmll.model.generation import WrittenAnswer
from abmll.tasks.written import normalize_answer

PAIRS = [
    ("The Eiffel Tower!", "eiffel tower"),
    ("in Paris, France", "Paris"),
    ("Paris Paris", "Paris"),
    ("Rome", "Paris"),
    ("a", "the"),
    ("", "Paris"),
    ("U.S.A. and others", "the USA"),
    ("theatre anthem", "theatre  an them"),
]


def squad_normalize(s: str) -> str:
    """As SQuAD 1.1's evaluate-v1.1.py has it."""
    lowered = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def squad_f1(prediction: str, reference: str) -> float:
    """As SQuAD 2.0's evaluation has it, for answers without words too."""
    prediction_tokens, reference_tokens = squad_normalize(prediction).split(), squad_normalize(reference).split()
    common = Counter(prediction_tokens) & Counter(reference_tokens)
    num_same = sum(common.values())
    if len(prediction_tokens) == 0 or len(reference_tokens) == 0:
        return float(prediction_tokens == reference_tokens)
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(prediction_tokens), num_same / len(reference_tokens)
    return (2 * precision * recall) / (precision + recall)


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_exact_match_and_f1_are_squads(answer: str, reference: str) -> None:
    assert normalize_answer(answer) == squad_normalize(answer)
    assert exact_match(answer, reference) == float(squad_normalize(answer) == squad_normalize(reference))
    assert token_f1(answer, reference) == pytest.approx(squad_f1(answer, reference))


def test_by_hand() -> None:
    assert [exact_match(*pair) for pair in PAIRS] == [1, 0, 0, 0, 1, 0, 0, 0]
    assert [token_f1(*pair) for pair in PAIRS[:4]] == pytest.approx([1, 1 / 2, 2 / 3, 0])
    scores = rouge(["the cat sat"], ["the cat ran off"])
    # one-grams: 2 of 3 and 2 of 4; two-grams: 1 of 2 and 1 of 3; longest common subsequence: the cat
    assert scores == pytest.approx({"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7})


def test_rouge_is_the_mean_of_the_packages() -> None:
    scorer = RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in PAIRS])
    assert rouge(*map(list, zip(*PAIRS, strict=True)))["rougeL"] == pytest.approx(expected)


def test_agreement_is_a_score_for_being_right() -> None:
    answers = [
        WrittenAnswer.of(samples, 0)
        for samples in (["x", "x", "x"], ["y", "y", "z"], ["q", "r", "s"], ["x", "x", "x"], ["z", "z", "a"])
    ]
    references = ["x", "y", "n", "n", "n"]
    scores = score_answers(answers, references)
    assert answers[4].agreement == pytest.approx(2 / 3)
    expected = roc_auc_score([1, 1, 0, 0, 0], [1, 2 / 3, 1 / 3, 1, 2 / 3])
    assert scores["agreement_auroc"] == pytest.approx(expected)
    assert (scores["num_examples"], scores["exact_match"]) == (5, pytest.approx(2 / 5))
    assert scores["agreement"] == pytest.approx((1 + 2 / 3 + 1 / 3 + 1 + 2 / 3) / 5)
    once = score_answers([WrittenAnswer.of(["x"], 0)], ["x"])
    assert (once["agreement"], once["entropy"], once["agreement_auroc"]) == (None, None, None)
    mean = mean_scores({"one": scores, "two": once})
    assert mean["exact_match"] == pytest.approx((2 / 5 + 1) / 2)
    assert (mean["agreement_auroc"], mean["num_tasks"]) == (scores["agreement_auroc"], 2)


def test_answers_of_which_nothing_was_written_are_counted() -> None:
    one = score_answers([WrittenAnswer.of([text], 0) for text in ("x", "", " \n")], ["x", "", "y"])
    other = score_answers([WrittenAnswer.of(["x"], 0), WrittenAnswer.of([""], 0)], ["x", "y"])
    assert (one["empty"], other["empty"], mean_scores({"one": one, "two": other})["empty"]) == (2, 1, 3)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_metrics, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"abmll\[generate\]\""):
        rouge(["a"], ["a"])
