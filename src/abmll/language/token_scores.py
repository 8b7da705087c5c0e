"""What a language model says of a text token by token: how likely each was, and what was likeliest in its place.

Unlike options of an example, nothing here is a prompt of ours and nothing is cut: a text is its token ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.common.errors import DataError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, batches_of_like_length
from abmll.language.encoding import Encoded
from abmll.language.forward import hidden_states, logits
from abmll.language.scorer import OptionScorer

MAX_TOKENS = 2_048  # of one pass
AT_ONCE = 512  # places whose logits, of the whole vocabulary, are in memory together


@dataclass(frozen=True)
class Wanted:
    """What is to be known of each text."""

    every: bool = False  # every token of the text; otherwise only the one that would follow
    top: int = 0  # how many of the likeliest tokens in each place
    chosen: tuple[int, ...] = ()  # tokens that may follow, to be known instead of the likeliest


class Place(NamedTuple):
    """A token in its place, behind the tokens before it; log-probabilities are of the whole vocabulary, in nats."""

    token: int
    log_prob: float
    others: dict[int, float]  # by token, the likeliest first, or those that were chosen


class TokenScores(NamedTuple):
    """Of a text of T tokens."""

    text: tuple[Place, ...]  # (T - 1,) all but its first token, which nothing comes before; empty unless asked for
    following: Place  # the likeliest token behind it


@torch.no_grad()
def token_scores(
    scorer: OptionScorer, texts: Sequence[Sequence[int]], phi: Adapter | None, wanted: Wanted
) -> list[TokenScores]:
    """The scores of each text, in token ids, by the bare model or with ``phi`` at its mean.

    Raises ``DataError`` for a text without tokens or longer than the model's context, and for ids that are no token.
    """
    check_tokens(scorer, texts, wanted)
    # An option of one token is only ever predicted: the model reads the prompt and nothing else.
    examples = [Encoded(tuple(text), ((0,),), None) for text in texts]
    found: dict[int, TokenScores] = {}
    for chosen in batches_of_like_length(examples, MAX_TOKENS):
        batch = scorer.batch([examples[index] for index in chosen])
        with scorer.wiring.use(phi, batch):
            hidden = hidden_states(scorer.base.model, batch)
        parts = [texts[index] for index in chosen]
        found |= zip(chosen, _of_batch(scorer, parts, _rows(batch, hidden, parts), wanted), strict=True)
    return [found[index] for index in range(len(texts))]


def check_tokens(scorer: OptionScorer, texts: Sequence[Sequence[int]], wanted: Wanted) -> None:
    """Raise ``DataError`` for what the model cannot read; on a GPU a wrong id would end all that is computed there.

    It costs next to nothing, so that it can be done before a text waits for its turn.
    """
    limit, size = scorer.base.context, scorer.base.model.config.get_text_config().vocab_size
    if any(not 0 <= token < size for token in wanted.chosen):
        raise DataError(f"logprob_token_ids: the model's tokens are 0 to {size - 1}")
    for number, text in enumerate(texts):
        if not text:
            raise DataError(f"prompt[{number}]: is empty; give at least one token")
        if len(text) > limit:
            raise DataError(f"prompt[{number}]: has {len(text):,} tokens, more than the model's {limit:,}; shorten it")
        if not 0 <= min(text) <= max(text) < size:
            raise DataError(f"prompt[{number}]: the model's tokens are 0 to {size - 1}")


def _rows(batch: Batch, hidden: Tensor, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The hidden states (T, d) of each text."""
    lengths = [len(text) for text in texts]
    if batch.packing is not None:
        return batch.packing.take_apart(hidden[0], lengths)
    return [row[:length] for row, length in zip(hidden, lengths, strict=True)]


def _of_batch(
    scorer: OptionScorer, texts: Sequence[Sequence[int]], rows: Sequence[Tensor], wanted: Wanted
) -> Iterator[TokenScores]:
    """The scores of texts with the hidden states ``rows``, (T, d) each."""
    known = [list(text[1:]) if wanted.every else [] for text in texts]
    tokens = [token for own in known for token in (*own, None)]
    hidden = torch.cat([row[-len(own) - 1 :] for row, own in zip(rows, known, strict=True)])
    places: list[Place] = []
    for start in range(0, len(tokens), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        places += _places(scorer, hidden[part], tokens[part], wanted)
    remaining = iter(places)
    for own in known:
        yield TokenScores(tuple(next(remaining) for _ in own), next(remaining))


def _places(scorer: OptionScorer, hidden: Tensor, tokens: Sequence[int | None], wanted: Wanted) -> Iterator[Place]:
    """Each of these tokens behind its hidden state (d,); None stands for the likeliest one."""
    logs = torch.log_softmax(logits(scorer.base.model, hidden).float(), -1)
    best = logs.topk(max(1, min(wanted.top, logs.shape[-1])))
    rows = range(len(tokens))
    likeliest, values = best.indices.tolist(), best.values.tolist()
    ids = [row[0] if token is None else token for row, token in zip(likeliest, tokens, strict=True)]
    own = logs[rows, ids].tolist()
    chosen = logs[:, list(wanted.chosen)].tolist()
    for row, token, given in zip(rows, ids, tokens, strict=True):
        if given is None and wanted.chosen:
            others = dict(zip(wanted.chosen, chosen[row], strict=True))
        else:
            others = dict(list(zip(likeliest[row], values[row], strict=True))[: wanted.top])
        yield Place(token, own[row], others)
