"""The head of a task whose examples may have several labels: a yes-or-no classifier for each, on the same features."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from abmll.common.documents import Document
from abmll.common.errors import ConfigError, DataError
from abmll.common.progress import progress
from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader, Features
from abmll.methods.rule import Classifier
from abmll.model.prediction import Prediction, entropy
from abmll.model.prequential import label_index
from abmll.model.task_head import AT_ONCE, TaskHead, aligned, key_of, tempered
from abmll.posterior.head import HeadPrior, Known
from abmll.tasks import Example

NO_YES = ("no", "yes")


@dataclass(frozen=True)
class MultiLabelHead(TaskHead):
    """As a ``TaskHead``, but for ``answers``: (N, C), 1 where an example has a label.

    A label's score is weighed against the mean score of all labels.
    """

    @classmethod
    def learn_sets(
        cls,
        reader: FeatureReader,
        method: str,
        prior: HeadPrior,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        chosen: Sequence[Collection[str]],
        seed: int = 0,
        quiet: bool = True,
    ) -> "MultiLabelHead":
        """The head of ``examples``, which all have the same options; ``chosen`` are each one's labels.

        Raises ``DataError`` for a label that is not among the options.
        """
        labels = tuple(sorted(examples[0].options))
        for example, own in zip(examples, chosen, strict=True):
            if unknown := set(own) - set(labels):
                raise DataError(f"example '{example.id}': has the label '{min(unknown)}', which is none of its options")
        answers = torch.tensor([[int(label in own) for label in labels] for own in chosen])
        features = aligned(reader.read(encoded, quiet), examples, labels)
        order = sorted(range(len(examples)), key=lambda n: (key_of(examples[n]), answers[n].tolist()))
        keys = tuple(key_of(examples[n]) for n in order)
        ordered = Features(features.hidden[order], features.scores[order])
        return cls(reader, method, prior, labels, keys, ordered, answers[order], seed)

    @cached_property
    def heads(self) -> tuple[TaskHead, ...]:
        """The head of each label, whose own labels are no and yes."""
        return tuple(
            TaskHead(self.reader, self.method, self.prior, NO_YES, self.keys, two(self.features, n), answers, self.seed)
            for n, answers in enumerate(self.answers.T)
        )

    @property
    def posterior(self) -> Classifier:  # pyright: ignore[reportIncompatibleVariableOverride] (all have as many samples)
        """That of the first label."""
        return self.heads[0].posterior

    def updated(self, examples: Sequence[Example], encoded: Sequence[Encoded], quiet: bool = True) -> TaskHead:
        """Refused: an ``Example`` has one answer."""
        raise ConfigError("update: the examples of this task may have several labels; learn all of them again")

    def predict(self, examples: Sequence[Example], encoded: Sequence[Encoded], quiet: bool = True) -> Prediction:
        """For each option of ``examples`` the probability that it is one of the labels; entropies are sums over them.

        Raises ``DataError`` for options that are not the labels.
        """
        for example in examples:
            if sorted(example.options) != list(self.labels):
                raise DataError(f"example '{example.id}': its options are not the labels, {', '.join(self.labels)}")
        features = aligned(self.reader.read(encoded, quiet), examples, self.labels)
        drawn = torch.zeros(len(examples), len(self.labels), 3, dtype=torch.float64)
        for n, head in enumerate(progress(self.heads, "predicting", "label", quiet=quiet)):
            for start in range(0, len(examples), AT_ONCE):
                part = Features(*(values[start : start + AT_ONCE] for values in two(features, n)))
                probs, expected = tempered(head.posterior, head.posterior.probs(Known(*part, True)))
                drawn[start : start + AT_ONCE, n] = torch.stack([probs[:, 1], entropy(probs), expected], -1)
        columns = label_index(examples, self.labels, len(self.labels))
        probs, total, expected = drawn.gather(1, columns[..., None].expand_as(drawn)).unbind(-1)
        truncated = sum(one.truncated > 0 for one in encoded)
        counts = torch.full((len(examples),), len(self.labels))
        return Prediction(probs, counts, total.sum(1), expected.sum(1), truncated)

    def document(self) -> Document:
        """As JSON has it."""
        return super().document() | {"is_multi_label": True}


def two(features: Features, label: int) -> Features:
    """The features with two options: a label's score, and before it the mean of all labels'."""
    both = [features.scores.mean(1), features.scores[:, label]]
    return Features(features.hidden, torch.stack(both, 1))
