"""Features: what the frozen model makes of an example in one pass, for a head to learn from.

Of each example: the hidden states behind chosen decoder blocks, averaged over the tokens of its input and of what
follows it in the prompt, and the scores of its options. Its prompt without the input is read like an example: a score
says little of an option that is likely anyway. No gradient is needed, so an example is read once, and kept.
"""

import copy
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from abmll.common.errors import DataError
from abmll.common.progress import progress
from abmll.common.recent import Recent
from abmll.language.activation_cache import identity
from abmll.language.activation_store import ActivationStore
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.common_prompts import grouped_by_prompt, join_common_prompts
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer, Pass

Read = tuple[Tensor, Tensor]  # of one example: hidden states (K, d), and its options' first two scores (C, 2)
MAX_TOKENS = 2048  # of a pass
MAX_SCORED = 32  # options; to score 150 of them takes 30 times as long as to read the question
MAX_KEPT = 256_000_000  # bytes of features kept in memory


class Features(NamedTuple):
    """What the model says of N examples with at most C options: on the CPU, K depths of d numbers."""

    hidden: Tensor  # (N, K, d) fp32
    scores: Tensor  # (N, C, 3) float64: log-probability per token, summed, and summed less what it is without the
    # input (Holtzman et al., arXiv 2104.08315); -inf where there is no option. 0 for all options of an example that has
    # too many to score

    def of(self, scores: int) -> "Features":
        """With the first so many of the scores: a head of version 0.2 has two."""
        return self._replace(scores=self.scores[..., :scores])


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
        self.kept: Recent[str, Read] = Recent(MAX_KEPT)
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
        """The features of ``examples``: each that is not kept is read once, and each prompt without its input.

        Raises ``DataError`` where the model gives numbers that are not finite, of which nothing is kept.
        """
        asked = with_unasked(examples)
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
            for key in found:
                self.kept.put(key, found[key], _num_bytes(found[key]))
        return assembled(examples, found)

    def _lookup(self, key: str, example: Encoded) -> Read | None:
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
    def _compute(self, examples: Sequence[Encoded], quiet: bool) -> list[Read]:
        """Of each example the hidden states (K, d) and the scores of its options (C, 2)."""
        rows: dict[int, Read] = {}
        joined, places = join_common_prompts(examples, MAX_SCORED)
        with progress(len(joined), "reading", "example", quiet=quiet) as bar:
            for chosen in grouped_by_prompt(list(map(_scored, joined)), self.max_tokens, self.scorer.packed):
                read = read_pass(self.scorer, [joined[index] for index in chosen], self.blocks, self.phi)
                if not all(bool(part.isfinite().all()) for row in read for part in row):
                    raise DataError(
                        "the model's answers are not finite numbers: its weights or its adapter are damaged, or too "
                        "large for its precision; try dtype fp32"
                    )
                rows |= {index: (state.clone(), own.clone()) for index, (state, own) in zip(chosen, read, strict=True)}
                bar.update(len(chosen))
        return [(rows[own[0][0]][0], torch.stack([rows[number][1][place] for number, place in own])) for own in places]


def read_pass(
    scorer: OptionScorer, examples: Sequence[Encoded], blocks: Sequence[int], phi: Adapter | None
) -> list[Read]:
    """One pass over ``examples`` with ``phi``, with a gradient where that is wanted: what is read of each."""
    batch, hidden = scorer.batch(list(map(_scored, examples))), dict.fromkeys(blocks, torch.empty(0))
    sums = scorer.scores(batch, phi, Pass(hidden=hidden)).sums
    both = torch.stack([sums / batch.option_lengths.clamp(min=1), sums], -1).double().cpu()
    states = torch.stack([pooled(state, batch) for state in hidden.values()], 1).cpu()
    return [
        (state, own[:count] if count <= MAX_SCORED else own.new_zeros(count, 2))
        for state, own, count in zip(states, both, (len(example.options) for example in examples), strict=True)
    ]


def assembled(examples: Sequence[Encoded], read: Mapping[str, Read]) -> Features:
    """The features of ``examples``; ``read``, by their keys, is what was read of them and of their ``unasked``."""
    width, rows = max(len(example.options) for example in examples), []
    for example in examples:
        (state, own), (_, before) = read[read_key(example)], read[read_key(example.unasked)]
        scores = torch.cat([own, own[:, 1:] - before[:, 1:]], -1)
        rows.append((state, pad(scores, (0, 0, 0, width - len(own)), value=-torch.inf)))
    return Features(*map(torch.stack, zip(*rows, strict=True)))


def with_unasked(examples: Sequence[Encoded]) -> dict[str, Encoded]:
    """All that is to be read of ``examples``, each once, by its key."""
    return {read_key(one): one for example in examples for one in (example, example.unasked)}


def pooled(hidden: Tensor, batch: Batch) -> Tensor:
    """(N, d) fp32: the hidden states (R, L, d) of a batch, averaged over each prompt from its input on."""
    flat, length = hidden.flatten(0, 1), hidden.shape[1]
    rows = []
    for number, example in enumerate(batch.examples):
        places = torch.arange(example.start, len(example.prompt), device=flat.device)
        places = number * length + places if batch.packing is None else batch.packing.spread[number, places]
        rows.append(flat[places].float().mean(0))
    return torch.stack(rows)


def _scored(example: Encoded) -> Encoded:
    """The example, with the first of its options alone where they are too many to score."""
    few = len(example.options) <= MAX_SCORED
    return example if few else replace(example, options=example.options[:1], answer=None)


def _num_bytes(kept: Read) -> int:
    return sum(part.nbytes for part in kept)


def read_key(example: Encoded) -> str:
    """A hash of all that is read of an example: its answer plays no part."""
    return hashlib.sha256(repr((example.prompt, example.options, example.start)).encode()).hexdigest()
