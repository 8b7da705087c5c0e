"""A task's head: what was read of its labelled examples, and the classifier that was fitted to it.

Examples and labels are put into an order of their own, by their content, so that neither the order of a file nor
learning the examples bit by bit changes an answer. The posterior is not saved: it follows from the features.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from abmll.common.documents import Document
from abmll.common.errors import CheckpointError, DataError
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader, Features
from abmll.language.scorer import OptionScorer
from abmll.methods import find_rule
from abmll.methods.rule import Classifier
from abmll.model.prediction import Prediction, entropy
from abmll.model.prequential import answer_columns, label_index, labels_of
from abmll.posterior.head import HeadPrior, Known
from abmll.tasks import Example

AT_ONCE = 256  # questions


@dataclass(frozen=True)
class TaskHead:
    """The head of one task.

    Args:
        reader: reads the features of further examples.
        method: the rule whose classifier it is.
        prior: theta's part.
        labels: the options where all examples have the same ones, sorted or in the order that they have; else none.
        keys: a hash of each of the N examples, in rising order; the tensors below are in the same order.
        features: of the examples, with the scores' columns in the order of ``labels``.
        answers: (N,) columns of the right options.
        is_ordered: whether the labels have an order, which then is theirs.
    """

    reader: FeatureReader
    method: str
    prior: HeadPrior
    labels: tuple[str, ...]
    keys: tuple[str, ...]
    features: Features
    answers: Tensor
    seed: int = 0
    is_ordered: bool = False

    @classmethod
    def learn(
        cls,
        reader: FeatureReader,
        method: str,
        prior: HeadPrior,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        seed: int = 0,
        quiet: bool = True,
        label_order: Sequence[str] | None = None,
    ) -> "TaskHead":
        """The head of labelled ``examples``: one pass over each.

        Raises ``DataError`` where there is a ``label_order`` and it does not say how all labels are ordered.
        """
        labels = tuple(sorted(labels_of(examples))) if label_order is None else in_order(examples, label_order)
        features = aligned(reader.read(encoded, quiet), examples, labels)
        answers = answer_columns(examples, labels)
        keys, is_ordered = tuple(map(key_of, examples)), label_order is not None
        return cls(reader, method, prior, labels, keys, features, answers, seed, is_ordered)._sorted()

    def updated(self, examples: Sequence[Example], encoded: Sequence[Encoded], quiet: bool = True) -> "TaskHead":
        """The head of these labelled examples and those before: the same as learning all of them at once.

        Raises ``DataError`` where there are labels, and other options than these.
        """
        if self.labels and sorted(self.labels) != sorted(labels_of(examples)):
            known = ", ".join(self.labels)
            raise DataError(f"the new examples have other options than those learned, which are {known}; adapt again")
        more = aligned(self.reader.read(encoded, quiet), examples, self.labels)
        width = max(part.scores.shape[1] for part in (self.features, more))
        scores = [_widened(part.scores, width) for part in (self.features, more)]
        features = Features(torch.cat([self.features.hidden, more.hidden]), torch.cat(scores))
        answers = torch.cat([self.answers, answer_columns(examples, self.labels)])
        return replace(
            self, keys=self.keys + tuple(map(key_of, examples)), features=features, answers=answers
        )._sorted()

    def _sorted(self) -> "TaskHead":
        order = sorted(range(len(self.keys)), key=lambda number: (self.keys[number], int(self.answers[number])))
        features = Features(self.features.hidden[order], self.features.scores[order])
        keys = tuple(self.keys[number] for number in order)
        return replace(self, keys=keys, features=features, answers=self.answers[order])

    @property
    def posterior(self) -> Classifier:
        """The classifier of the labels, or of the options where there are none."""
        return self.classifier(bool(self.labels))

    @property
    def of_options(self) -> Classifier:
        """The classifier of options that are no labels: what the examples say of scores alone."""
        return self.classifier(False)

    def classifier(self, is_labelled: bool, quiet: bool = True) -> Classifier:
        """One of the two, fitted when it is first asked for."""
        if is_labelled not in self._fitted:
            kind = find_rule(self.method).classifier
            assert kind is not None
            self._fitted[is_labelled] = kind(self.prior, self.known(is_labelled), self.answers, self.seed, quiet)
        return self._fitted[is_labelled]

    @cached_property
    def _fitted(self) -> dict[bool, Classifier]:
        return {}

    def known(self, is_labelled: bool) -> Known:
        """What a classifier is told of the examples."""
        return Known(*self.features, is_labelled, is_labelled and self.is_ordered)

    def predict(self, examples: Sequence[Example], encoded: Sequence[Encoded], quiet: bool = True) -> Prediction:
        """Probabilities of the options of ``examples``, averaged over the classifier's samples."""
        features = self.reader.read(encoded, quiet)
        counts = torch.tensor([len(example.options) for example in examples])
        probs = torch.zeros(len(examples), int(counts.max()), dtype=torch.float64)
        expected = torch.zeros(len(examples), dtype=torch.float64)
        labels = set(self.labels)
        for is_labelled in (True, False):
            own = [
                n for n, one in enumerate(examples) if bool(labels and labels.issuperset(one.options)) == is_labelled
            ]
            for start in range(0, len(own), AT_ONCE):
                chosen = own[start : start + AT_ONCE]
                part = Features(*(values[chosen] for values in features))
                classifier = self.classifier(is_labelled, quiet)
                drawn = self._draws(classifier, part, [examples[number] for number in chosen], is_labelled)
                probs[chosen, : drawn.shape[-1]], expected[chosen] = tempered(classifier, drawn)
        truncated = sum(one.truncated > 0 for one in encoded)
        return Prediction(probs, counts, entropy(probs), expected, truncated)

    def _draws(
        self, classifier: Classifier, features: Features, examples: Sequence[Example], is_labelled: bool
    ) -> Tensor:
        """(P, N, C) probabilities, options in their own order."""
        if not is_labelled:
            return classifier.probs(Known(*features, False))
        by_label = aligned(features, examples, self.labels)
        drawn = classifier.probs(Known(*by_label, True))
        index = label_index(examples, self.labels, max(len(example.options) for example in examples))
        picked = drawn.gather(-1, index.clamp(min=0).expand(len(drawn), -1, -1))
        return picked.masked_fill(index < 0, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved beside ``document``."""
        return {"hidden": self.features.hidden, "scores": self.features.scores, "answers": self.answers}

    def document(self) -> Document:
        """As JSON has it."""
        about = {"method": self.method, "labels": list(self.labels), "keys": list(self.keys), "seed": self.seed}
        return about | {"ordered": self.is_ordered, "prior": asdict(self.prior)}

    @classmethod
    def of(
        cls, scorer: OptionScorer, phi: Adapter | None, document: Document, tensors: dict[str, Tensor], where: Path
    ) -> "TaskHead":
        """What was saved, on features read with ``phi``. Raises ``CheckpointError`` where it is no head."""
        try:
            prior = HeadPrior.of(document["prior"])
            reader = FeatureReader(scorer, prior.blocks(scorer.num_blocks), phi)
            features = Features(tensors["hidden"], tensors["scores"])
            labels, keys = (tuple(map(str, document[name])) for name in ("labels", "keys"))
            answers, seed = tensors["answers"], int(document["seed"])
            is_ordered = document.get("ordered", False)  # as it was before heads knew of an order
            refuse_odd(features, answers, (len(reader.blocks), scorer.base.model.config.get_text_config().hidden_size))
            if {len(keys), *map(len, features)} != {len(answers)} or len(labels) not in (0, features.scores.shape[1]):
                raise ValueError("its numbers of examples or labels differ")
            if not isinstance(is_ordered, bool):
                raise TypeError(f"ordered is {is_ordered!r}")
            return cls(reader, document["method"], prior, labels, keys, features, answers, seed, is_ordered)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: its head cannot be used ({error}); adapt to the task again") from error


def in_order(examples: Sequence[Example], label_order: Sequence[str]) -> tuple[str, ...]:
    """The labels of ``examples`` in their order, which may have others too.

    Raises ``DataError`` where a label is not in it or is so twice, or where the examples' options differ.
    """
    labels = labels_of(examples)
    if not labels:
        raise DataError(
            "label_order: the examples have different options; only labels that all of them have are ordered"
        )
    missing, twice = [label for label in labels if label not in label_order], len(set(label_order)) < len(label_order)
    if missing or twice:
        what = f"lacks '{missing[0]}'" if missing else "has a label twice"
        raise DataError(f"label_order {what}; name every label of the examples once, from the lowest to the highest")
    return tuple(label for label in label_order if label in labels)


def tempered(classifier: Classifier, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Of draws (P, M, C) the probabilities (M, C) that are reported, and their expected entropy (M,).

    Tempering changes how much is uncertain, not which share of it the draws agree on.
    """
    mean = drawn.mean(0)
    probs = classifier.temper(mean)
    share = entropy(drawn).mean(0) / entropy(mean).clamp(min=torch.finfo(torch.float64).tiny)
    return probs, entropy(probs) * share


def aligned(features: Features, examples: Sequence[Example], labels: Sequence[str]) -> Features:
    """The features with the scores' columns in the order of the labels, if there are any; -inf for a label left out."""
    if not labels:
        return features
    scores = torch.full((len(examples), len(labels), 2), -torch.inf, dtype=torch.float64)
    for row, own, example in zip(scores, features.scores, examples, strict=True):
        row[[labels.index(option) for option in example.options]] = own[: len(example.options)]
    return Features(features.hidden, scores)


def refuse_odd(features: Features, answers: Tensor, depths: tuple[int, int]) -> None:
    """Raise ``ValueError`` for tensors that no reader has read of this many depths and numbers."""
    hidden, scores = features
    if [one.dtype for one in (hidden, scores, answers)] != [torch.float32, torch.float64, torch.int64]:
        raise ValueError("its tensors are of other types")
    if hidden.shape[1:] != depths or scores.dim() != 3 or scores.shape[2] != 2 or answers.dim() > 2:
        raise ValueError("its tensors have other shapes")
    if not bool(hidden.isfinite().all()) or bool(scores.isnan().any()) or bool(scores.isposinf().any()):
        raise ValueError("its features are not finite")
    if not bool(((answers >= 0) & (answers < scores.shape[1])).all()):
        raise ValueError("an answer is none of the options")


def _widened(scores: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(scores, (0, 0, 0, width - scores.shape[1]), value=-torch.inf)


def key_of(example: Example) -> str:
    """A hash of what is asked, which is neither the answer nor the options' order."""
    return hashlib.sha256(json.dumps([example.input, sorted(example.options)]).encode()).hexdigest()[:16]
