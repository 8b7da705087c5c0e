"""A task's head: what was read of its labelled examples, and the classifier that was fitted to it.

Examples and labels are put into an order of their own, by their content, so that neither the order of a file nor
learning the examples bit by bit changes an answer. The posterior is not saved: it follows from the features.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

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
from abmll.model.head_examples import aligned, key_of, labels_in, refuse_odd, widened
from abmll.model.head_tensors import DIGEST, digest, grouped
from abmll.model.prediction import Prediction, entropy
from abmll.model.prequential import answer_columns, label_index, labels_of
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.tasks import Example

Own = TypeVar("Own", bound="TaskHead")
QUESTIONS_AT_ONCE = 256
KINDS = {True: "labels", False: "options"}  # of classifiers, in the names of what they have learned


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

    answer_dims: ClassVar[int] = 1

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
        labels_in(examples, label_order)  # refused before anything is read
        features = reader.read(encoded, quiet)
        return cls.of_features(reader, method, prior, examples, features, seed, label_order)

    @classmethod
    def of_features(
        cls,
        reader: FeatureReader,
        method: str,
        prior: HeadPrior,
        examples: Sequence[Example],
        features: Features,
        seed: int = 0,
        label_order: Sequence[str] | None = None,
    ) -> "TaskHead":
        """``learn`` of examples whose ``features`` the ``reader`` has read."""
        labels = labels_in(examples, label_order)
        features = aligned(features, examples, labels).of(prior.num_scores)
        answers = answer_columns(examples, labels)
        keys, is_ordered = tuple(map(key_of, examples)), label_order is not None
        return cls(reader, method, prior, labels, keys, features, answers, seed, is_ordered)._sorted()

    def updated(self, examples: Sequence[Example], encoded: Sequence[Encoded], quiet: bool = True) -> "TaskHead":
        """The head of these labelled examples and those before: the same as learning all of them at once.

        Raises ``DataError`` where there are labels, and other options than these.
        """
        self.refuse_to_learn(examples)  # before anything is read
        return self.updated_with(examples, self.reader.read(encoded, quiet))

    def updated_with(self, examples: Sequence[Example], features: Features) -> "TaskHead":
        """``updated`` with examples whose ``features`` the ``reader`` has read."""
        self.refuse_to_learn(examples)
        more = aligned(features, examples, self.labels).of(self.prior.num_scores)
        width = max(part.scores.shape[1] for part in (self.features, more))
        scores = [widened(part.scores, width) for part in (self.features, more)]
        features = Features(torch.cat([self.features.hidden, more.hidden]), torch.cat(scores))
        answers = torch.cat([self.answers, answer_columns(examples, self.labels)])
        return replace(
            self, keys=self.keys + tuple(map(key_of, examples)), features=features, answers=answers
        )._sorted()

    def refuse_to_learn(self, examples: Sequence[Example]) -> None:
        """Raise ``DataError`` where there are labels, and the examples have other options."""
        if self.labels and sorted(self.labels) != sorted(labels_of(examples)):
            known = ", ".join(self.labels)
            raise DataError(f"the new examples have other options than those learned, which are {known}; adapt again")

    def without(self, keys: Collection[str]) -> "TaskHead":
        """The head of the examples with other keys than these: the same as learning those alone.

        Where examples have different options it stays a head of such, also when those that are left have the same.
        Raises ``DataError`` for a key that no example has, and where none is left.
        """
        if unknown := set(keys) - set(self.keys):
            raise DataError(f"no example of this task has the key '{min(unknown)}'; nothing was removed")
        left = [number for number, key in enumerate(self.keys) if key not in keys]
        if not left:
            raise DataError("these are all examples of this task; leave one to learn from, or remove the task")
        hidden, scores = (values[left] for values in self.features)
        if not self.labels:  # as wide as the most options that are left
            scores = scores[:, : int(scores[..., 0].isfinite().sum(1).max())]
        return replace(
            self,
            keys=tuple(self.keys[number] for number in left),
            features=Features(hidden, scores),
            answers=self.answers[left],
        )

    def _sorted(self: Own) -> Own:
        # By what was read, too, which tells apart prompts of one input whose options are in another order.
        read = [
            b"".join(values[number].numpy().tobytes() for values in self.features) for number in range(len(self.keys))
        ]
        order = sorted(range(len(self.keys)), key=lambda n: (self.keys[n], self.answers[n].tolist(), read[n]))
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
            self._fitted[is_labelled] = self.kind(self.prior, self.known(is_labelled), self.answers, self.seed, quiet)
        return self._fitted[is_labelled]

    @property
    def kind(self) -> type[Classifier]:
        """What classifies."""
        kind = find_rule(self.method).classifier
        assert kind is not None
        return kind

    @cached_property
    def _fitted(self) -> dict[bool, Classifier]:
        return {}

    def known(self, is_labelled: bool) -> Known:
        """What a classifier is told of the examples."""
        return Known(*self.features, is_labelled, is_labelled and self.is_ordered)

    def fitted(self) -> dict[str, Tensor]:
        """What has been learned so far by classifiers that can be put back; none where that is nothing."""
        learned = {
            f"{KINDS[is_labelled]}.{name}": tensor
            for is_labelled, classifier in self._fitted.items()
            for name, tensor in classifier.fitted().items()
        }
        return learned | {DIGEST: self.digest()} if learned else {}

    def with_fitted(self, tensors: Mapping[str, Tensor], where: Path | str) -> "TaskHead":
        """This head with what ``fitted()`` of it gave: the same answers to the bit, and nothing is learned again.

        ``where`` is named in errors. Raises ``CheckpointError`` where it is not that, or that of another head.
        """
        restored = replace(self)
        try:
            restored._restore(tensors)
        except ValueError as error:
            raise CheckpointError(f"{where}: this is not what the head has learned ({error}); leave it out") from error
        return restored

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what was ``fitted``. Raises ``ValueError`` where it is not of this head."""
        if not tensors:
            return
        if DIGEST not in tensors or not torch.equal(tensors[DIGEST], self.digest()):
            raise ValueError("it is of another head")
        groups = grouped({name: tensor for name, tensor in tensors.items() if name != DIGEST})
        if unknown := groups.keys() - set(KINDS.values()):
            raise ValueError(f"{min(unknown)} is unknown")
        for is_labelled, name in KINDS.items():
            if name in groups:
                learned_of = self.prior, self.known(is_labelled), self.answers, self.seed
                self._fitted[is_labelled] = self.kind.restored(*learned_of, groups[name])

    def digest(self) -> Tensor:
        """(32,) uint8: a hash of all that is learned from."""
        return digest(json.dumps(self.document(), sort_keys=True), self.tensors().values())

    def predict(self, examples: Sequence[Example], encoded: Sequence[Encoded], quiet: bool = True) -> Prediction:
        """Probabilities of the options of ``examples``, averaged over the classifier's samples."""
        self.refuse_to_answer(examples)  # before anything is read
        found = self.answer(examples, self.reader.read(encoded, quiet), quiet)
        return replace(found, truncated=sum(one.truncated > 0 for one in encoded))

    def refuse_to_answer(self, examples: Sequence[Example]) -> None:
        """Raise ``DataError`` for options that cannot be answered: here there are none."""

    def answer(self, examples: Sequence[Example], features: Features, quiet: bool = True) -> Prediction:
        """``predict`` of examples whose ``features`` the ``reader`` has read; how many were cut it cannot say."""
        self.refuse_to_answer(examples)
        counts = torch.tensor([len(example.options) for example in examples])
        probs = torch.zeros(len(examples), int(counts.max()), dtype=torch.float64)
        expected = torch.zeros(len(examples), dtype=torch.float64)
        labels = set(self.labels)
        for is_labelled in (True, False):
            own = [
                n for n, one in enumerate(examples) if bool(labels and labels.issuperset(one.options)) == is_labelled
            ]
            for start in range(0, len(own), QUESTIONS_AT_ONCE):
                chosen = own[start : start + QUESTIONS_AT_ONCE]
                part = Features(*(values[chosen] for values in features))
                classifier = self.classifier(is_labelled, quiet)
                drawn = self._draws(classifier, part, [examples[number] for number in chosen], is_labelled)
                probs[chosen, : drawn.shape[-1]], expected[chosen] = tempered(classifier, drawn)
        return Prediction(probs, counts, entropy(probs), expected)

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
            size = scorer.base.model.config.get_text_config().hidden_size
            refuse_odd(features, answers, cls.answer_dims, (len(reader.blocks), size), prior.num_scores)
            if {len(keys), *map(len, features)} != {len(answers)} or len(labels) not in (0, features.scores.shape[1]):
                raise ValueError("its numbers of examples or labels differ")
            if not isinstance(is_ordered, bool):
                raise TypeError(f"ordered is {is_ordered!r}")
            return cls(reader, document["method"], prior, labels, keys, features, answers, seed, is_ordered)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: its head cannot be used ({error}); adapt to the task again") from error


def tempered(classifier: Classifier, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Of draws (P, M, C) the probabilities (M, C) that are reported, and their expected entropy (M,).

    Tempering changes how much is uncertain, not which share of it the draws agree on.
    """
    mean = drawn.mean(0)
    probs = classifier.temper(mean)
    share = entropy(drawn).mean(0) / entropy(mean).clamp(min=torch.finfo(torch.float64).tiny)
    return probs, entropy(probs) * share
