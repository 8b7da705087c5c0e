"""Predicting with adapters: at the mean, averaged over samples of the posterior, or to first order in the weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.common.config import PredictConfig
from abmll.common.errors import DataError
from abmll.common.progress import progress
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, batches_of_like_length, shared_prefix
from abmll.language.encoding import Encoded
from abmll.language.joined import joined, stack, stacked_updates
from abmll.language.linearize import linearize
from abmll.language.scorer import OptionScorer, Pass
from abmll.posterior import Noise
from abmll.posterior.numerics import normal_points
from abmll.posterior.stacked import can_stack
from abmll.tasks.order import sample_seed

POINTS = 1024
MAX_TOKENS = 2048
POSITIONS = 16_384  # of all samples that read a batch side by side, at most
POSITIONS_CPU = 1024  # where more are not faster
LOGITS = 2**28  # that a pass may compute: numbers of 4 bytes
Calibrate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """The probabilities of N examples with at most C options; all in float64, entropies in nats.

    At the mean the expected entropy equals the entropy and the mutual information is zero: a single set of weights
    has nothing to disagree with. Samples are of the weights, and of the calibration where there is one.
    """

    probs: Tensor  # (N, C), zero where an example has fewer options
    num_options: Tensor  # (N,)
    entropy: Tensor  # (N,) of the averaged probabilities: total uncertainty
    expected_entropy: Tensor  # (N,) mean entropy of the samples: the uncertainty of each by itself
    truncated: int = 0  # examples whose input was too long and lost its middle
    left_out: int = 0  # demonstrations that did not fit before an example, over all of them

    @property
    def answers(self) -> Tensor:
        """(N,) index of the most probable option; the first of equals."""
        return self.probs.argmax(-1)

    @property
    def mutual_information(self) -> Tensor:
        """(N,) entropy minus expected entropy: how far the samples disagree. Never below zero but for rounding."""
        return (self.entropy - self.expected_entropy).clamp(min=0.0)

    def lists(self) -> list[list[float]]:
        """The probabilities of each example's own options."""
        return [row[:count].tolist() for row, count in zip(self.probs, self.num_options.tolist(), strict=True)]


@torch.no_grad()
def predict(
    scorer: OptionScorer,
    members: Sequence[Adapter | None],
    examples: Sequence[Encoded],
    how: PredictConfig | None = None,
    *,
    seed: int = 0,
    cache: ActivationCache | None = None,
    max_tokens: int = MAX_TOKENS,
    max_positions: int | None = None,
    quiet: bool = True,
    calibrate: Calibrate | None = None,
) -> Prediction:
    """Probabilities of every example's options: the equal mixture of several adapters' predictions, or one's own.

    Args:
        members: the adapters; None is the bare model. The lower blocks are computed once for all of them.
        how: average each member over samples or linearize it; None predicts at the mean. A weight sample of rank above
            0 is the same for all examples, whatever batch they come in.
        seed: of the noise, which is each member's own.
        cache: activations kept from earlier passes over the same examples.
        max_tokens: tokens per batch, a prefix that is read once for all prompts counted once; examples of like length
            share a batch. A quarter of it where gradients are needed.
        max_positions: tokens, padding included, that samples and members may have together that read a batch side by
            side; None: as many as a device of this kind does best with.
        calibrate: what becomes of the samples' probabilities (S, N, C) of the examples at these N indices; there may
            be more samples after it than before.

    Raises ``DataError`` without examples, and where probabilities are not numbers.
    """
    if not examples:
        raise DataError("there are no examples to predict")
    how = how or PredictConfig(num_samples=0)
    linearized = how.predictive == "linearized" and any(phi is not None for phi in members)
    if max_positions is None:
        max_positions = POSITIONS_CPU if scorer.device.type == "cpu" else POSITIONS
    seeds, tally = member_seeds(seed, len(members)), Tally(len(members), examples, calibrate)
    is_read_once = scorer.packed and cache is None and not linearized  # a cache keeps every example by itself
    prefix = shared_prefix([one.prompt for one in examples]) if is_read_once else 0
    with progress(len(members) * len(examples), "predicting", "example", quiet=quiet) as bar:
        for chosen in batches_of_like_length(examples, max_tokens // 4 if linearized else max_tokens, prefix):
            batch = scorer.batch([examples[i] for i in chosen], cache, share_prefix=not linearized)
            batch = scorer.lower_blocks.fill(batch) if len(members) > 1 else batch
            for number, sampled in enumerate(_member_probs(scorer, members, batch, how, seeds, max_positions)):
                tally.add(number, torch.tensor(chosen), sampled)
                bar.update(len(chosen))
    return tally.prediction()


class Tally:
    """The answers to N ``examples`` as they come in, by member and batch, and what they come to."""

    def __init__(self, num_members: int, examples: Sequence[Encoded], calibrate: Calibrate | None) -> None:
        self.calibrate = calibrate
        self.counts = torch.tensor([len(example.options) for example in examples])
        self.truncated = sum(example.truncated > 0 for example in examples)
        shape = num_members, len(examples), int(self.counts.max())
        self.probs = torch.zeros(shape, dtype=torch.float64)
        self.expected_entropy = torch.zeros(shape[:2], dtype=torch.float64)

    def add(self, number: int, index: Tensor, sampled: Tensor) -> None:
        """Member ``number``'s samples (S, M, C) of the options' probabilities, for the examples ``index`` (M,)."""
        sampled = sampled if self.calibrate is None else self.calibrate(sampled, index)
        self.probs[number, index, : sampled.shape[-1]] = sampled.mean(0)
        self.expected_entropy[number, index] = entropy(sampled).mean(0)

    def prediction(self) -> Prediction:
        """The equal mixture of all members. Raises ``DataError`` where probabilities are not numbers."""
        if not bool(torch.isfinite(self.probs).all()):
            raise DataError(
                "some probabilities are not numbers: the adapter's values are too large; adapt with lower rates"
            )
        mixed = self.probs.mean(0)
        return Prediction(mixed, self.counts, entropy(mixed), self.expected_entropy.mean(0), self.truncated)


def member_seeds(seed: int, count: int) -> list[int]:
    """The seeds of each member's noise."""
    return [sample_seed(seed, "member", number) if number else seed for number in range(count)]


def sample_noise(how: PredictConfig, seed: int, number: int, device: torch.device, mask: Tensor | None) -> Noise:
    """The noise of a member's sample ``number``, for the member's ``seed`` and inputs on ``device``."""
    generator = torch.Generator(device).manual_seed(sample_seed(seed, "prediction", number))
    return Noise(how.prediction_noise, generator, mask, how.prediction_noise_rank)


def batch_calibrated(prediction: Prediction) -> Prediction:
    """Each option's probability over its mean on all questions, normalised (batch calibration, arXiv 2309.17249).

    Options count by their place: this is for questions that all have the same options in the same order.
    """
    present = prediction.probs > 0
    mean = prediction.probs.sum(0) / present.sum(0).clamp(min=1)
    probs = prediction.probs / mean.clamp(min=1e-12)
    probs = probs / probs.sum(-1, keepdim=True)
    return replace(prediction, probs=probs, entropy=entropy(probs), expected_entropy=entropy(probs))


def _member_probs(
    scorer: OptionScorer,
    members: Sequence[Adapter | None],
    batch: Batch,
    how: PredictConfig,
    seeds: Sequence[int],
    max_positions: int,
) -> Iterator[Tensor]:
    """Each member's option probabilities (S, N, C) of one batch."""
    adapters = [phi for phi in members if phi is not None]
    if how.predictive == "samples" and len(adapters) == len(members):
        passes = len(members) * max(1, how.num_samples)
        drawn = Noise(how.prediction_noise, torch.Generator(), rank=how.prediction_noise_rank)
        count = min(passes, _passes_at_once(scorer, batch, max_positions))
        if count > 1 and can_stack(scorer.space, drawn if how.num_samples else None):
            yield from _stacked_probs(scorer, adapters, batch, how, seeds, count)
            return
    for phi, seed in zip(members, seeds, strict=True):
        if how.predictive == "linearized" and phi is not None:
            yield _linearized_probs(scorer, phi, batch)
        else:
            yield _sampled_probs(scorer, phi, batch, how, seed)


def _passes_at_once(scorer: OptionScorer, batch: Batch, max_positions: int) -> int:
    """How many passes over a batch become one."""
    vocabulary = scorer.base.model.config.get_text_config().vocab_size
    return min(max_positions // batch.input_ids.numel(), LOGITS // (len(batch.rows) * vocabulary))


def _stacked_probs(
    scorer: OptionScorer,
    members: Sequence[Adapter],
    batch: Batch,
    how: PredictConfig,
    seeds: Sequence[int],
    count: int,
) -> Iterator[Tensor]:
    """``_sampled_probs`` of each member, ``count`` samples a pass: those of a member, then those of the next."""
    batch, each = scorer.lower_blocks.fill(batch), max(1, how.num_samples)
    passes = [(member, sample) for member in range(len(members)) for sample in range(each)]
    found: list[Tensor] = []
    side_by_side, layout = batch, None
    for first in range(0, len(passes), count):
        chosen = passes[first : first + count]
        if layout is None or len(chosen) < count:
            side_by_side, layout = joined([batch] * len(chosen))
        noises = [
            sample_noise(how, seeds[member], sample, scorer.device, batch.mask) if how.num_samples else None
            for member, sample in chosen
        ]
        whole = stack([members[member] for member, _ in chosen])
        updates = stacked_updates(scorer.wiring, whole, noises, layout)
        scores = scorer.scores(side_by_side, None, Pass(updates=updates)).options
        found += probabilities(scores).split(len(batch.answers))
    yield from torch.stack(found).split(each)


def _sampled_probs(scorer: OptionScorer, phi: Adapter | None, batch: Batch, how: PredictConfig, seed: int) -> Tensor:
    """Option probabilities (S, N, C) of one batch; the lower blocks are computed once."""
    if how.num_samples == 0 or phi is None:
        return probabilities(scorer.scores(batch, phi).options)[None]
    batch = scorer.lower_blocks.fill(batch)
    sampled = []
    for number in range(how.num_samples):
        noise = sample_noise(how, seed, number, scorer.device, batch.mask)
        sampled.append(probabilities(scorer.scores(batch, phi, Pass(noise)).options))
    return torch.stack(sampled)


def _linearized_probs(scorer: OptionScorer, phi: Adapter, batch: Batch) -> Tensor:
    """Option probabilities (P, N, C) at ``POINTS`` places of the scores' Gaussian, spread evenly over it."""
    scores, covariance = linearize(scorer, phi, scorer.lower_blocks.fill(batch))
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0.0).sqrt()[:, None, :]
    leads = normal_points(covariance.shape[-1], POINTS).to(root) @ root.mT
    first = leads.new_zeros(*leads.shape[:2], 1)
    return probabilities(scores + torch.cat([first, leads], dim=-1).transpose(0, 1))


def probabilities(scores: Tensor) -> Tensor:
    """Of the options' log-probabilities (..., C), in float64 on the CPU."""
    return torch.softmax(scores.double(), -1).cpu()


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis; zero probabilities contribute nothing."""
    return torch.special.entr(probs).sum(-1)
