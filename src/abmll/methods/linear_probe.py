"""The linear probe: scikit-learn's logistic regression on the head's features, without a prior that was learned.

The regularisation is chosen by cross-validation within the examples. ``linear-probe-temperature`` divides its scores by
a temperature, which ``CalibratedClassifierCV`` fits to cross-validated answers (Guo et al. 2017).

A label without an example gets 1 / (N + C), the rule of succession: a probability of zero would cost any score. Where
the options differ by question, the probe says of each option whether it is right, from the option's scores.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from abmll.methods.lora import Pretrained
from abmll.methods.rule import Classifier
from abmll.posterior.head import Metric
from abmll.posterior.hypotheses import HeadPrior, Known, centred

STRENGTHS = [0.1, 1.0, 10.0, 100.0]  # C, the inverse of the regularisation
FOLDS = 5
STEPS = 1000


class Probe(Classifier):
    """The probe of one task: a point estimate, so that it has a single sample. Its arguments are ``Classifier``'s."""

    samples = 1

    def __init__(self, prior: HeadPrior, known: Known, answers: Tensor, seed: int = 0, quiet: bool = True) -> None:
        self.metric, (_, self.width, self.kinds) = Metric(known.hidden), known.scores.shape
        inputs, labels = self._rows(known), answers.numpy()
        if not known.is_labelled:
            present = ~known.scores[..., 0].isneginf().numpy()
            labels = (np.arange(self.width) == labels[:, None])[present].astype(np.int64)
        # Numbers without gaps: scikit-learn's temperature scaling takes a label for the number of its column.
        self.classes, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.size = len(answers)
        self.model = None if len(counts) < 2 else self._fit(inputs, labels, int(counts.min()))

    def probs(self, asked: Known) -> Tensor:
        """(1, M, C) probabilities of M questions."""
        inputs = self._rows(asked)
        given = np.ones((len(inputs), 1)) if self.model is None else self.model.predict_proba(inputs)
        present = ~asked.scores[..., 0].isneginf()
        chances = torch.zeros(present.shape, dtype=torch.float64)
        if asked.is_labelled:
            unseen = self.width - len(self.classes)
            probs = np.full((len(inputs), self.width), 1 / (self.size + self.width))
            probs[:, self.classes] = given * (1 - unseen / (self.size + self.width))
            chances[present] = torch.from_numpy(probs)[present]
        else:
            chances[present] = torch.from_numpy(given[:, -1])
        return (chances / chances.sum(-1, keepdim=True))[None]

    def _rows(self, known: Known) -> NDArray[np.float64]:
        """A row of features for each example, or of scores for each option."""
        if known.is_labelled:
            return self.metric(known.hidden).numpy()
        scores, absent = centred(known.scores[..., : self.kinds])
        return scores[~absent].numpy()

    def temper(self, probs: Tensor) -> Tensor:
        """The probabilities as they are."""
        return probs

    def _fit(self, inputs: NDArray[np.float64], labels: NDArray[np.int64], fewest: int) -> Any:
        """Cross-validation where every label that occurs does so twice."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        model = LogisticRegression(max_iter=STEPS)
        if fewest > 1:
            model = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=min(FOLDS, fewest))
        return model.fit(inputs, labels)


class TemperedProbe(Probe):
    """The probe after temperature scaling."""

    def _fit(self, inputs: NDArray[np.float64], labels: NDArray[np.int64], fewest: int) -> Any:
        from sklearn.calibration import CalibratedClassifierCV

        plain = super()._fit(inputs, labels, fewest)
        if fewest < 2:
            return plain
        folds = min(FOLDS, fewest)
        model = CalibratedClassifierCV(
            plain.best_estimator_,
            method="temperature",
            cv=folds,
            ensemble=False,  # pyright: ignore[reportArgumentType] (read off the default, "auto")
        )
        return model.fit(inputs, labels)


class LinearProbe(Pretrained):
    """A probe of the pretrained model."""

    name = "linear-probe"
    label = "Linear probe"
    classifier = Probe


class TemperedLinearProbe(Pretrained):
    """The same with a temperature."""

    name = "linear-probe-temperature"
    label = "Linear probe, temperature"
    classifier = TemperedProbe
