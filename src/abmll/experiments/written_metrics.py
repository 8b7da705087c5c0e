"""How good written answers are: pure functions of texts, each against one reference.

exact_match and token_f1 are SQuAD's (Rajpurkar et al., EMNLP 2016), after its normalisation: without case, punctuation,
English articles and needless space. rouge1, rouge2 and rougeL are the F-measures of ROUGE (Lin 2004) as the package
``rouge-score`` computes them, without stemming; it knows letters and digits of ASCII only. agreement is the mean share
of the samples that say what the answer says, entropy that of their clusters. agreement_auroc is how well the agreement
tells answers with an exact match from the others: 0.5 says nothing, None where all are right or none is. These three
are None where each question has one sample.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from abmll.common.errors import ConfigError
from abmll.experiments.metrics import auroc
from abmll.model.generation import WrittenAnswer
from abmll.tasks.written import normalize_answer

ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = ("exact_match", "token_f1", *ROUGE, "agreement", "entropy", "agreement_auroc")


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same after normalisation, else 0."""
    return float(normalize_answer(answer) == normalize_answer(reference))


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the normalised words; without words on a side, whether both are."""
    ours, theirs = normalize_answer(answer).split(), normalize_answer(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The means of ``ROUGE`` over all answers. Raises as ``require_rouge``."""
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE))
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}


def require_rouge() -> None:
    """Raise ``ConfigError`` where ``rouge-score`` is not installed."""
    if find_spec("rouge_score") is None:
        raise ConfigError('ROUGE needs the package rouge-score; run: pip install "abmll[generate]"')


def score_answers(answers: Sequence[WrittenAnswer], references: Sequence[str]) -> dict[str, Any]:
    """Every metric over the answers to one task's questions, their number, and of how many nothing was written."""
    texts = [answer.output for answer in answers]
    right = np.array([exact_match(*pair) for pair in zip(texts, references, strict=True)])
    agreement = np.array([answer.agreement for answer in answers])
    sampled = len(answers[0].samples) > 1
    return {
        "num_examples": len(answers),
        "empty": sum(not text.strip() for text in texts),
        "exact_match": float(right.mean()),
        "token_f1": float(np.mean([token_f1(*pair) for pair in zip(texts, references, strict=True)])),
        **rouge(texts, references),
        "agreement": float(agreement.mean()) if sampled else None,
        "entropy": float(np.mean([answer.entropy for answer in answers])) if sampled else None,
        "agreement_auroc": auroc(agreement, right) if sampled else None,
    }


def mean_scores(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every metric over those tasks that have it, None where no task does; empty answers of all tasks."""
    found = {name: [task[name] for task in tasks.values() if task[name] is not None] for name in METRICS}
    means = {name: float(np.mean(values)) if values else None for name, values in found.items()}
    return means | {"num_tasks": len(tasks), "empty": sum(task["empty"] for task in tasks.values())}
