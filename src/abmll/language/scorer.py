"""The engine: a frozen causal language model with Gaussian LoRA layers, scoring the options of a batch."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.config import AdapterConfig, PromptConfig
from abmll.common.errors import CheckpointError, ConfigError
from abmll.common.settings import flatten
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.base import Base
from abmll.language.batch import Batch, batches_of_like_length, collate, shared_prefix
from abmll.language.check import check_scoring, probe_example
from abmll.language.encoding import Encoded, Encoder
from abmll.language.lower_blocks import LowerBlocks
from abmll.language.packing import install_packing, remove_packing
from abmll.language.scored_rows import ScoredRows
from abmll.language.wiring import ActivationTerms, Trace, Wiring, adapt_linears
from abmll.posterior import Noise, build_space
from abmll.tasks import Example

TOGETHER = 16_384  # positions, padding included, of the batches whose lower_blocks is read together
READ_AT_ONCE = 768  # of their tokens behind the shared ones in a pass: of like length, since attention pads


class Scores(NamedTuple):
    """What a forward pass says of N examples with at most C options."""

    options: Tensor  # (N, C) log-probability of each option's text (length-normalised if so set), -inf where none
    answer_tokens: Tensor  # (N,) log-probability of the right answer's tokens, summed; 0 where unknown
    terms: ActivationTerms | None  # output space: divergence and prior of this pass


@dataclass(frozen=True)
class Pass:
    """How a forward pass samples and what it collects: at the mean and nothing, by default."""

    noise: Noise | None = None
    theta: Adapter | None = None
    trace: Trace | None = None


class OptionScorer:
    """A frozen language model whose target layers add a Gaussian LoRA adapter, whichever is passed in.

    The model itself has no trainable state: theta, phi and every task posterior are ``Adapter`` objects.
    Raises ``ConfigError`` for settings that fit no layer of the model, and for a model that cannot be scored this way.
    """

    def __init__(self, base: Base, adapter: AdapterConfig, prompt: PromptConfig) -> None:
        self.base = base
        self.adapter_config = adapter
        self.encoder = Encoder(base.tokenizer, prompt, base.context)
        self.prompt = prompt
        self.space = build_space(adapter)
        self.wiring = Wiring(self.space)
        targets = adapt_linears(base.model, adapter.target_modules, adapter.layers_to_transform, self.wiring)
        self.adapted = {target.name: base.model.get_submodule(target.name) for target in targets}
        self.shapes = {target.name: (target.d_out, target.d_in) for target in targets}
        lowest = min(target.block for target in targets)
        self.lower_blocks = None
        self.packed = install_packing(base.model)
        self.last_mlp = ScoredRows(base.model)
        self._check()
        can_pack = self.packed and base.model.dtype == torch.bfloat16 and self.device.type == "cpu"
        self._packs_lower = None if can_pack else False  # None: not known yet
        if lowest:
            self.lower_blocks = self._skippable(LowerBlocks(base.model, lowest))

    @property
    def device(self) -> torch.device:
        """Where the frozen model lies; batches and adapters follow it."""
        return self.base.model.device

    def new_adapter(self, seed: int) -> Adapter:
        """A fresh adapter whose mean is zero and whose standard deviation is the configured one."""
        return Adapter.create(self.shapes, self.adapter_config.r, self.space, seed).to(self.device)

    def encode(self, examples: Sequence[Example], task_name: str) -> list[Encoded]:
        """The examples in tokens, under this model's prompt settings."""
        return list(self.encoder.encode_all(examples, task_name))

    def _check(self) -> None:
        """Refuse a model that cannot be scored this way; one that only packing disagrees with is read padded."""
        check = partial(check_scoring, self.base.model, self.base.name, self._bare_answers)
        if self.packed:
            try:
                return check()
            except ConfigError:
                remove_packing(self.base.model)
                self.packed = False
        check()

    def _bare_answers(self, examples: Sequence[Encoded]) -> Tensor:
        return self.scores(self.batch(examples), None).answer_tokens

    def batch(
        self, examples: Sequence[Encoded], cache: ActivationCache | None = None, share_prefix: bool = True
    ) -> Batch:
        """The examples as one batch on the model's device, with the lower blocks's activations where ``cache`` keeps them."""
        batch = collate(examples, self._pad_id, self.packed, share_prefix).to(self.device)
        if cache is None or self.lower_blocks is None:
            return batch
        return cache.attach(batch, examples, self._lower_rows)

    def batches(self, groups: Sequence[Sequence[Encoded]]) -> Iterator[Batch]:
        """Each group of examples as a batch, those of a portion of ``TOGETHER`` positions at once.

        What a portion's prompts begin with is not read again by the lower blocks for every batch, but for every
        ``READ_AT_ONCE`` tokens that follow it.
        """
        portion: list[Sequence[Encoded]] = []
        for group in groups:
            examples = list(chain(*portion, group))
            if portion and len(examples) * max(map(len, examples)) > TOGETHER:
                yield from self._read_together(portion)
                portion = []
            portion.append(group)
        if portion:
            yield from self._read_together(portion)

    def _read_together(self, groups: Sequence[Sequence[Encoded]]) -> list[Batch]:
        batches = [self.batch(group) for group in groups]
        if self.lower_blocks is None:
            return batches
        examples, activations = list(chain(*groups)), dict[int, Tensor]()
        prefix = shared_prefix([example.prompt for example in examples]) if self.packed else 0
        for chosen in batches_of_like_length(examples, prefix + READ_AT_ONCE, prefix):
            activations |= zip(chosen, self._lower_outputs([examples[index] for index in chosen]), strict=True)
        rows = (activations[index] for index in range(len(examples)))
        return [batch.with_lower(list(islice(rows, len(group)))) for batch, group in zip(batches, groups, strict=True)]

    def _lower_outputs(self, examples: Sequence[Encoded], share_prefix: bool = True) -> list[Tensor]:
        """The lower blocks (T, d) of each example in one pass; ``share_prefix``: what they begin with is read once."""
        batch, lengths = self.batch(examples, share_prefix=share_prefix), list(map(len, examples))
        output = self.lower_output(batch)
        if batch.packing is None:
            return [row[:length] for row, length in zip(output, lengths, strict=True)]
        return batch.packing.take_apart(output[0], lengths)

    def _lower_rows(self, examples: Sequence[Encoded]) -> list[Tensor]:
        """The lower blocks (T, d) of each example, to the bit what it is alone, so that a resumed run sees the same.

        One packed row is half the work of a row each. In bf16, whose sums are rounded to 8 bits, packing was seen to
        change none of them on a CPU. The first batch is computed both ways; if it differs here, rows stay alone.
        """

        def alone() -> list[Tensor]:
            return [self.lower_output(self.batch([one]))[0] for one in examples]

        if len(examples) == 1 or self._packs_lower is False:
            return alone()
        packed = self._lower_outputs(examples, share_prefix=False)
        if self._packs_lower is None:
            exact = alone()
            self._packs_lower = all(map(torch.equal, exact, packed))
            return exact
        return packed

    @property
    def _pad_id(self) -> int:
        return self.base.model.config.get_text_config().pad_token_id or 0

    @torch.no_grad()
    def lower_output(self, batch: Batch) -> Tensor:
        """Activations (N, T, d) below the lowest adapted layer. Raises ``ValueError`` where there is no lower_blocks."""
        output = None if self.lower_blocks is None else self.lower_blocks.output(lambda: self._hidden(batch))
        if output is None:
            raise ValueError(
                "this model has no lower_blocks: its first layer is adapted, or its blocks cannot be skipped"
            )
        return output

    def with_lower(self, batch: Batch) -> Batch:
        """The batch with its lower_blocks computed, so that several passes over it share it; unchanged without a lower_blocks."""
        if self.lower_blocks is None or batch.lower is not None:
            return batch
        return replace(batch, lower=self.lower_output(batch))

    @torch.no_grad()
    def _skippable(self, lower_blocks: LowerBlocks) -> LowerBlocks | None:
        """The lower blocks, or None where this model's blocks cannot be skipped and it is read from its first layer on."""
        probe = self.batch([probe_example(self.base.model)])
        return None if lower_blocks.output(lambda: self._hidden(probe)) is None else lower_blocks

    def scores(self, batch: Batch, phi: Adapter | None, how: Pass | None = None) -> Scores:
        """Score every option of a batch with adapter ``phi`` (None: the bare model)."""
        how = how or Pass()
        with ExitStack() as bound:
            terms = bound.enter_context(self.wiring.use(phi, batch, how.noise, how.theta, how.trace))
            if self.lower_blocks is not None and batch.lower is not None:
                bound.enter_context(self.lower_blocks.replayed(batch.lower))
            if batch.mask is None and terms is None and how.trace is None:
                bound.enter_context(self.last_mlp.only(batch.rows))
            hidden = self._hidden(batch)
        return self._score(batch, hidden, terms)

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (N, T, d) after the final norm."""
        dtype = self.base.model.dtype
        additive = torch.zeros_like(batch.visible, dtype=dtype).masked_fill(~batch.visible, torch.finfo(dtype).min)
        packing = {} if batch.packing is None else {"packing": batch.packing}
        output = self.base.model.base_model(
            input_ids=batch.input_ids,
            attention_mask=additive,
            position_ids=batch.position_ids,
            use_cache=False,
            **packing,
        )
        return output.last_hidden_state

    def _score(self, batch: Batch, hidden: Tensor, terms: ActivationTerms | None) -> Scores:
        logits = self._head(hidden.flatten(0, 1)[batch.rows]).float()
        tokens = logits[batch.token_row, batch.token_id] - torch.logsumexp(logits, -1)[batch.token_row]
        lengths = batch.option_lengths
        sums = tokens.new_zeros(lengths.numel()).index_add(0, batch.token_option, tokens).view(lengths.shape)
        answer_tokens = sums.gather(1, batch.answers.clamp(min=0)[:, None])[:, 0] * (batch.answers >= 0)
        if self.prompt.length_normalize:
            sums = sums / lengths.clamp(min=1)
        return Scores(sums.masked_fill(lengths == 0, -torch.inf), answer_tokens, terms)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits (H, V) of hidden states (H, d): only the positions that are scored, unlike the model's own head.

        Cohere multiplies its logits by a number, Granite divides them by one, Gemma 2 and 3 cap them.
        """
        config = self.base.model.config.get_text_config()
        head: Any = self.base.model.get_output_embeddings()
        logits = head(hidden)
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        logits = logits if factor == 1.0 else logits * factor
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def settings(self) -> dict[str, Any]:
        """The settings that an adapter of this model depends on, flat and JSON-ready."""
        dtype = "bf16" if self.base.model.dtype == torch.bfloat16 else "fp32"
        return {"model": self.base.name, "dtype": dtype} | flatten(self.adapter_config, self.prompt)

    def refuse_other_base(self, fingerprint: str, name: str, where: str) -> None:
        """Raise ``CheckpointError`` where something saved belongs to a base model with another fingerprint."""
        if fingerprint != self.base.fingerprint:
            raise CheckpointError(
                f"{where}: was learned on {name}, but the model loaded from {self.base.name} has other weights; "
                "name the right one with --model"
            )


def nll(scores: Scores, answers: Tensor, loss: str) -> Tensor:
    """Negative log-likelihood of the right answers, summed over the batch (nats).

    ``options``: softmax over the option scores, which is what prediction reports. ``tokens``: the answer's tokens
    over the whole vocabulary, as the paper's code trains.
    """
    if loss == "tokens":
        return -scores.answer_tokens.sum()
    return F.cross_entropy(scores.options, answers, reduction="sum")
