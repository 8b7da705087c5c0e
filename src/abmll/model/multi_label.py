"""The head of a task whose examples may have several labels: a yes-or-no classifier for each, on the same features."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from abmll.common.documents import Document
from abmll.common.errors import ConfigError, DataError
from abmll.common.progress import progress
from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader, Features
from abmll.methods.rule import Classifier
from abmll.model.head_examples import aligned, key_of
from abmll.model.head_tensors import grouped
from abmll.model.prediction import Prediction, entropy
from abmll.model.prequential import label_index
from abmll.model.task_head import QUESTIONS_AT_ONCE, TaskHead, tempered
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.tasks import Example

NO_YES = ("no", "yes")


@dataclass(frozen=True)
class MultiLabelHead(TaskHead):
    """As a ``TaskHead``, but for ``answers``: (N, C), 1 where an example has a label.

    A label's score is weighed against the mean score of all labels.
    """

    answer_dims: ClassVar[int] = 2

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
        answers_of(examples, chosen)  # refused before anything is read
        return cls.of_sets(reader, method, prior, examples, reader.read(encoded, quiet), chosen, seed)

    @classmethod
    def of_sets(
        cls,
        reader: FeatureReader,
        method: str,
        prior: HeadPrior,
        examples: Sequence[Example],
        features: Features,
        chosen: Sequence[Collection[str]],
        seed: int = 0,
    ) -> "MultiLabelHead":
        """``learn_sets`` of examples whose ``features`` the ``reader`` has read."""
        labels, answers = tuple(sorted(examples[0].options)), answers_of(examples, chosen)
        features = aligned(features, examples, labels).of(prior.num_scores)
        return cls(reader, method, prior, labels, tuple(map(key_of, examples)), features, answers, seed)._sorted()

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

    def refuse_to_learn(self, examples: Sequence[Example]) -> None:
        """Always: an ``Example`` has one answer."""
        raise ConfigError("update: the examples of this task may have several labels; learn all of them again")

    def refuse_to_answer(self, examples: Sequence[Example]) -> None:
        """Raise ``DataError`` for options that are not the labels."""
        for example in examples:
            if sorted(example.options) != list(self.labels):
                raise DataError(f"example '{example.id}': its options are not the labels, {', '.join(self.labels)}")

    def fitted(self) -> dict[str, Tensor]:
        """What the labels' heads have learned so far."""
        return {f"{n}.{name}": one for n, head in enumerate(self.heads) for name, one in head.fitted().items()}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        groups, heads = grouped(tensors), {str(n): head for n, head in enumerate(self.heads)}
        if unknown := groups.keys() - heads.keys():
            raise ValueError(f"{min(unknown)} is unknown")
        for name, own in groups.items():
            heads[name]._restore(own)

    def answer(self, examples: Sequence[Example], features: Features, quiet: bool = True) -> Prediction:
        """For each option of ``examples`` the probability that it is one of the labels; entropies are sums over them.

        Raises ``DataError`` for options that are not the labels.
        """
        self.refuse_to_answer(examples)
        features = aligned(features, examples, self.labels)
        drawn = torch.zeros(len(examples), len(self.labels), 3, dtype=torch.float64)
        for n, head in enumerate(progress(self.heads, "predicting", "label", quiet=quiet)):
            for start in range(0, len(examples), QUESTIONS_AT_ONCE):
                part = Features(*(values[start : start + QUESTIONS_AT_ONCE] for values in two(features, n)))
                probs, expected = tempered(head.posterior, head.posterior.probs(Known(*part, True)))
                drawn[start : start + QUESTIONS_AT_ONCE, n] = torch.stack([probs[:, 1], entropy(probs), expected], -1)
        columns = label_index(examples, self.labels, len(self.labels))
        probs, total, expected = drawn.gather(1, columns[..., None].expand_as(drawn)).unbind(-1)
        counts = torch.full((len(examples),), len(self.labels))
        return Prediction(probs, counts, total.sum(1), expected.sum(1))

    def document(self) -> Document:
        """As JSON has it."""
        return super().document() | {"is_multi_label": True}


def answers_of(examples: Sequence[Example], chosen: Sequence[Collection[str]]) -> Tensor:
    """(N, C): 1 where an example has a label, of its options sorted.

    Raises ``DataError`` for a label that is not among the options.
    """
    labels = sorted(examples[0].options)
    for example, own in zip(examples, chosen, strict=True):
        if unknown := set(own) - set(labels):
            raise DataError(f"example '{example.id}': has the label '{min(unknown)}', which is none of its options")
    return torch.tensor([[int(label in own) for label in labels] for own in chosen])


def two(features: Features, label: int) -> Features:
    """The features with two options: a label's score, and before it the mean of all labels'."""
    both = [features.scores.mean(1), features.scores[:, label]]
    return Features(features.hidden, torch.stack(both, 1))
