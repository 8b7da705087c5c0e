"""Features: what the frozen model makes of an example in one pass, for a head to learn from.

Of each example: the hidden states behind chosen decoder blocks, averaged over the tokens of its input and of what
follows it in the prompt, and the scores of its options. No gradient is needed, so an example is read once, and kept.
"""

import copy
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.common.progress import progress
from abmll.common.recent import Recent
from abmll.language.activation_cache import identity
from abmll.language.activation_store import ActivationStore
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, batches_of_like_length, shared_prefix
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer, Pass

MAX_TOKENS = 2048  # of a pass
MAX_SCORED = 32  # options; to score 150 of them takes 30 times as long as to read the question
MAX_KEPT = 256_000_000  # bytes of features kept in memory


class Features(NamedTuple):
    """What the model says of N examples with at most C options: on the CPU, K depths of d numbers."""

    hidden: Tensor  # (N, K, d) fp32
    scores: Tensor  # (N, C, 2) float64: log-probability per token, and summed; -inf where there is no option. 0 for all
    # options of an example that has too many to score


class FeatureReader:
    """Reads examples behind so many decoder ``blocks`` (all of them: behind the final norm), and keeps what it read.

    ``phi`` is the adapter that the model is read with, None: the bare model. The longest unused features leave first.
    ``beside``, a store of activations on disk, has features kept in the same place for other processes.
    """

    def __init__(
        self,
        scorer: OptionScorer,
        blocks: Sequence[int],
        phi: Adapter | None = None,
        beside: ActivationStore | None = None,
    ) -> None:
        self.scorer = scorer
        self.store = None
        if beside is not None:
            about = identity(scorer.base, blocks) | {"adapter": None if phi is None else phi.digest()}
            self.store = ActivationStore(beside.root, about, beside.max_bytes, beside.announce)
        self.blocks = tuple(blocks)
        self.phi = phi
        self.kept: Recent[str, tuple[Tensor, Tensor]] = Recent(MAX_KEPT)
        self.lock = threading.Lock()  # of what is kept
        self.max_tokens = MAX_TOKENS

    def on_twin(self, scorer: OptionScorer, max_tokens: int) -> "FeatureReader":
        """A reader for another thread, with modules of its own around the same model, which keeps in the same place.

        Its passes have so many tokens at most.
        """
        twin = copy.copy(self)
        twin.scorer, twin.max_tokens = scorer, max_tokens
        return twin

    def read(self, examples: Sequence[Encoded], quiet: bool = True) -> Features:
        """The features of ``examples``; one pass over each that is not kept."""
        keys = [_key(example) for example in examples]
        asked = dict(zip(keys, examples, strict=True))
        with self.lock:
            found = {key: own for key, one in asked.items() if (own := self._lookup(key, one)) is not None}
        missing = {key: one for key, one in asked.items() if key not in found}
        if missing:
            order = sorted(missing)  # so that no batch depends on the order of the examples
            found |= zip(order, self._compute([missing[key] for key in order], quiet), strict=True)
        if self.store is not None:
            for key in missing:
                self.store.put(key, torch.cat([part.flatten().float() for part in found[key]]))
        with self.lock:
            for key in keys:
                self.kept.put(key, found[key], _num_bytes(found[key]))
        width = max(len(example.options) for example in examples)
        scores = torch.full((len(examples), width, 2), -torch.inf, dtype=torch.float64)
        for row, key in zip(scores, keys, strict=True):
            row[: len(found[key][1])] = found[key][1]
        return Features(torch.stack([found[key][0] for key in keys]), scores)

    def _lookup(self, key: str, example: Encoded) -> tuple[Tensor, Tensor] | None:
        """What is kept of an example, in memory or on disk."""
        found = self.kept.get(key)
        if found is not None or self.store is None:
            return found
        row = self.store.get(key)
        if row is None:
            return None
        count = 2 * len(example.options)
        return row[:-count].view(len(self.blocks), -1).clone(), row[-count:].view(-1, 2).double()

    @torch.no_grad()
    def _compute(self, examples: Sequence[Encoded], quiet: bool) -> list[tuple[Tensor, Tensor]]:
        """Of each example the hidden states (K, d) and the scores of its options (C, 2)."""
        counts = [len(example.options) for example in examples]
        examples = [_scored(example) for example in examples]
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        prefix = shared_prefix([one.prompt for one in examples]) if self.scorer.packed else 0
        with progress(len(examples), "reading", "example", quiet=quiet) as bar:
            for chosen in batches_of_like_length(examples, self.max_tokens, prefix):
                group = [examples[index] for index in chosen]
                batch, hidden = self.scorer.batch(group), dict.fromkeys(self.blocks, torch.empty(0))
                sums = self.scorer.scores(batch, self.phi, Pass(hidden=hidden)).sums
                means = sums / batch.option_lengths.clamp(min=1)
                both = torch.stack([means, sums], -1).float().double().cpu()  # as a store has it, too
                states = torch.stack([pooled(state, batch, group) for state in hidden.values()], 1).cpu()
                for index, example, state, scores in zip(chosen, group, states, both, strict=True):
                    number = counts[index]
                    own = scores[:number] if len(example.options) == number else scores.new_zeros(number, 2)
                    rows[index] = state.clone(), own.clone()
                bar.update(len(chosen))
        return [rows[index] for index in range(len(examples))]


def pooled(hidden: Tensor, batch: Batch, examples: Sequence[Encoded]) -> Tensor:
    """(N, d) fp32: the hidden states (R, L, d) of a batch, averaged over each prompt from its input on."""
    flat, length = hidden.flatten(0, 1), hidden.shape[1]
    rows = []
    for number, example in enumerate(examples):
        places = torch.arange(example.start, len(example.prompt), device=flat.device)
        places = number * length + places if batch.packing is None else batch.packing.spread[number, places]
        rows.append(flat[places].float().mean(0))
    return torch.stack(rows)


def _scored(example: Encoded) -> Encoded:
    """The example, with the first of its options alone where they are too many to score."""
    few = len(example.options) <= MAX_SCORED
    return example if few else replace(example, options=example.options[:1], answer=None)


def _num_bytes(kept: tuple[Tensor, Tensor]) -> int:
    return sum(part.nbytes for part in kept)


def _key(example: Encoded) -> str:
    """A hash of all that is read of an example: its answer plays no part."""
    return hashlib.sha256(repr((example.prompt, example.options, example.start)).encode()).hexdigest()
