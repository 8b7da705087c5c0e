"""The scorer: a frozen causal language model with Gaussian LoRA layers, which scores the options of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.config import AdapterConfig, PromptConfig
from abmll.common.errors import ConfigError
from abmll.common.settings import flatten
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.base import Base
from abmll.language.batch import Batch, make_batch
from abmll.language.check import check_scoring
from abmll.language.compilation import Compilation
from abmll.language.encoding import Encoded, Encoder
from abmll.language.forward import LastMLP, collected, hidden_states, logits
from abmll.language.lower_blocks import LowerBlocks
from abmll.language.packing import install_packing, remove_packing
from abmll.language.passes import Passes
from abmll.language.recomputed import Scene, recomputed
from abmll.language.targets import decoder_blocks
from abmll.language.wiring import ActivationTerms, Trace, Wiring, adapt_linears
from abmll.posterior import LayerUpdate, Noise, build_space
from abmll.tasks import Example

TOGETHER = 16_384  # positions, padding included, of the batches whose lower blocks are read together


class Scores(NamedTuple):
    """What a forward pass says of N examples with at most C options."""

    options: Tensor  # (N, C) log-probability of each option's text (length-normalised if so set), -inf where none
    sums: Tensor  # (N, C) the same before any normalisation; 0 where there is no option
    answer_tokens: Tensor  # (N,) log-probability of the right answer's tokens, summed; 0 where unknown
    terms: ActivationTerms | None  # output space: divergence and prior of this pass
    written: Tensor | None = None  # (N,) whether the likeliest tokens are a written answer's; None: chosen


@dataclass(frozen=True)
class Pass:
    """How a forward pass samples and what it collects: at the mean and nothing, by default."""

    noise: Noise | None = None
    theta: Adapter | None = None
    trace: Trace | None = None
    hidden: dict[int, Tensor] | None = None  # by number of blocks: filled with the hidden states (R, L, d) behind them
    updates: Mapping[str, LayerUpdate] | None = None  # by layer, in the place of an adapter's own: noise is in them


class OptionScorer:
    """A frozen language model whose target layers add the Gaussian LoRA adapter that is passed in.

    The model itself has no trainable state: theta, phi and every task posterior are ``Adapter`` objects.
    Where ``gradient_checkpointing`` is set, passes with gradients keep the inputs of the upper blocks alone. Where
    ``compilation`` is, learning rules compile their steps.
    Raises ``ConfigError`` for settings that fit no layer of the model, and for a model that cannot be scored this way.
    """

    def __init__(self, base: Base, adapter: AdapterConfig, prompt: PromptConfig) -> None:
        self.base = base
        self.adapter_config = adapter
        self.prompt = prompt
        self.encoder = Encoder(base.tokenizer, prompt, base.context)
        self.space = build_space(adapter)
        self.wiring = Wiring(self.space)
        self.adapted = adapt_linears(base.model, adapter.target_modules, adapter.layers_to_transform, self.wiring)
        targets = [layer.target for layer in self.adapted.values()]
        self.shapes = {target.name: (target.d_out, target.d_in) for target in targets}
        self.num_blocks = len(decoder_blocks(base.model))
        self.last_mlp = LastMLP(base.model)
        self.packed = install_packing(base.model)
        self.gradient_checkpointing = False
        self.compilation: Compilation | None = None
        with self.wiring.readers.watching(self.adapted):
            self._check()
        self.lower_blocks = LowerBlocks(base.model, min(target.block for target in targets), self.packed)
        self.passes = Passes()
        self.passes.watch(base.model)

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

    def batch(
        self, examples: Sequence[Encoded], cache: ActivationCache | None = None, share_prefix: bool = True
    ) -> Batch:
        """The examples as one batch on the model's device, with the lower blocks' output where a ``cache`` keeps it."""
        batch = make_batch(self.base.model, examples, self.packed, share_prefix)
        if cache is None or not self.lower_blocks.blocks:
            return batch
        return batch.with_lower(cache.rows(examples, self.lower_blocks.rows, self.device))

    def batches(self, groups: Sequence[Sequence[Encoded]]) -> Iterator[Batch]:
        """Each group of examples as a batch; the lower blocks read ``TOGETHER`` positions of them together."""
        for portion in _portions(groups):
            yield from self.lower_blocks.fill_together([self.batch(group) for group in portion], portion)

    def scores(self, batch: Batch, phi: Adapter | None, how: Pass | None = None) -> Scores:
        """Score every option of a batch with adapter ``phi`` (None: the bare model)."""
        how = how or Pass()
        with ExitStack() as bound:
            if how.updates is not None:
                terms = bound.enter_context(self.wiring.use_updates(how.updates))
            else:
                terms = bound.enter_context(self.wiring.use(phi, batch, how.noise, how.theta, how.trace))
            if batch.lower is not None:
                bound.enter_context(self.lower_blocks.skipped(batch.lower))
            if how.hidden is None and batch.mask is None and terms is None and how.trace is None:
                bound.enter_context(self.last_mlp.only(batch.rows))
            if self.gradient_checkpointing and torch.is_grad_enabled() and how.trace is None:
                generator = None if how.noise is None else how.noise.generator
                lowest = len(self.lower_blocks.blocks)
                bound.enter_context(recomputed(self.base.model, lowest, self._scene(), generator))
            if how.hidden is not None:  # the last, so that it sees what those blocks give
                bound.enter_context(collected(self.base.model, how.hidden))
            hidden = hidden_states(self.base.model, batch)
        if how.hidden is not None and self.num_blocks in how.hidden:
            how.hidden[self.num_blocks] = hidden  # behind the final norm
        values = logits(self.base.model, hidden.flatten(0, 1)[batch.rows]).float()
        tokens = values[batch.token_row, batch.token_id] - torch.logsumexp(values, -1)[batch.token_row]
        lengths = batch.option_lengths
        sums = tokens.new_zeros(lengths.numel()).index_add(0, batch.token_option, tokens).view(lengths.shape)
        answer_tokens = sums.gather(1, batch.answers.clamp(min=0)[:, None])[:, 0] * (batch.answers >= 0)
        options = sums / lengths.clamp(min=1) if self.prompt.length_normalize else sums
        written = None
        if batch.is_written:
            wrong = values.argmax(-1)[batch.token_row] != batch.token_id
            written = sums.new_zeros(len(sums)).index_add(0, batch.token_option, wrong.to(sums.dtype)) == 0
        return Scores(options.masked_fill(lengths == 0, -torch.inf), sums, answer_tokens, terms, written)

    def settings(self) -> dict[str, Any]:
        """The settings that an adapter of this model depends on, flat and JSON-ready."""
        dtype, quantization = "bf16" if self.base.model.dtype == torch.bfloat16 else "fp32", self.base.quantization
        loaded = {"model": self.base.name, "dtype": dtype} | ({} if quantization is None else {quantization: True})
        return loaded | flatten(self.adapter_config, self.prompt)

    def _scene(self) -> Scene:
        """What the blocks of this pass read besides their inputs, for later when the pass is over."""
        bound, rows = self.wiring.bound, self.last_mlp.rows
        again = None if bound is None else bound.again()

        @contextmanager
        def scene() -> Iterator[None]:
            with self.wiring.bind(again), self.last_mlp.only(rows):
                yield

        return scene

    def _check(self) -> None:
        """Refuse a model that cannot be scored this way; one that only packing disagrees with is read padded."""
        if self.packed:
            try:
                return check_scoring(self.base.model, self.base.name, self._bare_answers)
            except ConfigError:
                remove_packing(self.base.model)
                self.packed = False
        check_scoring(self.base.model, self.base.name, self._bare_answers)

    def _bare_answers(self, examples: Sequence[Encoded]) -> Tensor:
        return self.scores(self.batch(examples), None).answer_tokens


def _portions(groups: Sequence[Sequence[Encoded]]) -> Iterator[list[Sequence[Encoded]]]:
    """The groups in their order, as many at once as have at most ``TOGETHER`` positions, and at least one."""
    portion: list[Sequence[Encoded]] = []
    for group in groups:
        examples = list(chain(*portion, group))
        if portion and len(examples) * max(map(len, examples)) > TOGETHER:
            yield portion
            portion = []
        portion.append(group)
    if portion:
        yield portion


def nll(scores: Scores, answers: Tensor, loss: str) -> Tensor:
    """Negative log-likelihood of the right answers, summed over the batch (nats).

    ``options``: softmax over the option scores, which is what prediction reports. ``tokens``: the answer's tokens
    over the whole vocabulary, as the paper's code trains. An answer that is written competes with every other text:
    its tokens count in either case.
    """
    if loss == "tokens" or scores.written is not None:
        return -scores.answer_tokens.sum()
    return F.cross_entropy(scores.options, answers, reduction="sum")
