"""The language model in memory, once, in the roles that a server needs of it.

A model's layers keep what belongs to the pass that goes through them, so no two threads may use the same modules. Each
role has modules of its own around the same weights (``Base.twin``).
"""

from dataclasses import replace
from queue import SimpleQueue
from typing import NamedTuple

import torch

from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader, Features
from abmll.language.fingerprint import in_any_precision
from abmll.language.scorer import OptionScorer
from abmll.methods import find_rule, preferred
from abmll.model.learned_task import TaskPosterior
from abmll.model.meta_learner import AbmllModel
from abmll.tasks import Example

LANE_TOKENS = 1024  # of a lane's pass: what waits together has all lengths, and pads less in two halves


class Row(NamedTuple):
    """A text to be read for a head, in tokens; ``len`` is how many."""

    encoded: Encoded

    def __len__(self) -> int:
        return len(self.encoded)


class Read(NamedTuple):
    """What was read of one row: of K depths of d numbers, and of C options."""

    hidden: torch.Tensor  # (K, d)
    scores: torch.Tensor  # (C, 3)


class Resident:
    """A model that learns with heads, and where it has a theta that takes gradient steps, by those too.

    ``features`` of the texts that were read last are kept, in bytes.

    Attributes:
        reading: learns with heads, and scores tokens; features are read with twins of it where there are lanes.
        stepping: learns by gradient steps in a thread of its own; None where there is no such theta.
        answering: the modules with which the engine answers what ``stepping`` has learned.
    """

    def __init__(self, model: AbmllModel, features: float) -> None:
        self.threads = torch.get_num_threads()
        self.reading = model.with_head()
        self.reader: FeatureReader = self.reading.reader()
        self.reader.kept.max_bytes = features
        # More than two at a time would each have fewer rows to read, and activations besides.
        self.lanes = 2 if self.threads > 1 and self.reading.scorer.device.type == "cpu" else 1
        self.free: SimpleQueue[FeatureReader] = SimpleQueue()
        for _ in range(self.lanes):
            own = self.reader if self.lanes == 1 else self.reader.on_twin(self.reading.on_twin().scorer, LANE_TOKENS)
            self.free.put(own)
        self.stepping = _stepping(model)
        self.answering: OptionScorer | None = None if self.stepping is None else self.stepping.on_twin().scorer

    def begin(self, is_alone: bool = True) -> None:
        """Called first in a thread that computes, by itself or beside the other lanes: one that began while another
        computed alone (``posterior.threads``) would do so for good."""
        torch.set_num_threads(self.threads if is_alone else self.threads // self.lanes)

    @property
    def name(self) -> str:
        """The language model's."""
        return self.reading.scorer.base.name

    @property
    def belongs_to(self) -> dict[str, str]:
        """What a store of learned tasks depends on."""
        theta, model = self.reader.phi, self.reading
        return {
            "model": in_any_precision(model.scorer.base.fingerprint),
            "method": model.learning.method,
            "features": " ".join(map(str, self.reader.blocks)),
            "theta": "" if theta is None else theta.digest(),
        }

    @property
    def longest(self) -> int:
        """Tokens of a row at most."""
        return self.reading.scorer.encoder.limit

    def encode(self, examples: list[Example], task_name: str) -> list[Row]:
        """Examples as rows that can be read. Raises ``DataError`` for those that cannot."""
        return [Row(one) for one in self.reading.scorer.encode(examples, task_name)]

    def read(self, rows: list[Row]) -> list[Read]:
        """What the model makes of rows, of whatever tasks, in as few passes as can be.

        So many threads may ask at a time as there are ``lanes``.
        """
        reader = self.free.get()
        try:
            hidden, scores = reader.read([row.encoded for row in rows])
        finally:
            self.free.put(reader)
        return [Read(hidden[n], scores[n, : len(row.encoded.options)]) for n, row in enumerate(rows)]

    def sharing(self, posterior: TaskPosterior) -> TaskPosterior:
        """A posterior that was loaded, with this model's reader, whose features are kept for all tasks together."""
        assert posterior.head is not None
        head = replace(posterior.head, reader=self.reader)
        return replace(posterior, head=head, members=(self.reader.phi,))


def together(read: list[Read]) -> Features:
    """Rows that were read, as a head takes them."""
    width, kinds = max(len(one.scores) for one in read), read[0].scores.shape[1]
    scores = torch.full((len(read), width, kinds), -torch.inf, dtype=torch.float64)
    for row, one in zip(scores, read, strict=True):
        row[: len(one.scores)] = one.scores
    return Features(torch.stack([one.hidden for one in read]), scores)


def _stepping(model: AbmllModel) -> AbmllModel | None:
    """The model as it learns by steps, around modules of its own; None where it has no theta to start from."""
    rule = find_rule(model.learning.method)
    if rule.classifier is not None or not rule.is_trained:
        return None
    twin = model.on_twin()
    method = preferred(twin.learning.method, twin.scorer.adapter_config.space)
    return twin if method == twin.learning.method else twin.continue_as(method)
