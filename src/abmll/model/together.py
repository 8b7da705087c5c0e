"""Questions to many tasks answered together: one pass over the frozen model, in which each task has its own adapter.

What lies below the lowest adapted layer is the same for all and read once; then the first sample of every posterior
makes one pass, the second one the next, and so on. An answer is the one that its posterior gives by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.common.config import PredictConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, batches_of_like_length
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer, Pass
from abmll.language.wiring import by_name
from abmll.model.learned_task import TaskPosterior
from abmll.model.prediction import (
    MAX_TOKENS,
    Prediction,
    Tally,
    member_seeds,
    probabilities,
    sample_noise,
)
from abmll.posterior import LayerUpdate
from abmll.posterior.grouped import grouped
from abmll.tasks import Example
from abmll.tasks.types import are_written


@dataclass(frozen=True)
class Request:
    """Examples whose options a task's posterior is asked about."""

    posterior: TaskPosterior
    examples: Sequence[Example]


@torch.no_grad()
def predict_together(requests: Sequence[Request], how: PredictConfig | None = None, seed: int = 0) -> list[Prediction]:
    """What ``posterior.predict(examples, how, seed=seed)`` gives for each request, up to rounding.

    All posteriors share a scorer. Those with adapters are answered together where a sample of the weights is one for
    all examples; heads, demonstrations, linearized predictions and noise that is drawn for a batch or a token are
    answered one after the other. Raises ``ConfigError`` for posteriors of several scorers, otherwise as ``predict``.
    """
    how = how or PredictConfig()
    if len({id(request.posterior.scorer) for request in requests}) > 1:
        raise ConfigError("these posteriors have models of their own; load them with one scorer (from_pretrained)")
    together = [number for number, request in enumerate(requests) if _can_join(request, how)]
    if len(together) < 2:
        together = []
    jobs = [_Job.of(requests[number], how, seed) for number in together]
    _answer(jobs)
    found = {number: job.tally.prediction() for number, job in zip(together, jobs, strict=True)}
    for number, request in enumerate(requests):
        if number not in found:
            found[number] = request.posterior.predict(request.examples, how, seed=seed)
    return [found[number] for number in range(len(requests))]


def _can_join(request: Request, how: PredictConfig) -> bool:
    """Whether its samples are functions that do not depend on what else is in a batch, and its prompts its own."""
    posterior, space = request.posterior, request.posterior.scorer.space
    if posterior.head is not None or posterior.demonstrations or any(member is None for member in posterior.members):
        return False
    if not request.examples or are_written(request.examples):
        return False  # which predict refuses
    how, _ = posterior.settled(request.examples, how)
    is_of_weights = how.prediction_noise == "shared" and how.prediction_noise_rank > 0 and not space.per_activation
    return how.predictive == "samples" and (how.num_samples == 0 or is_of_weights)


@dataclass(frozen=True)
class _Job:
    """A request on its way: its passes are all samples of its first member, then those of the next."""

    scorer: OptionScorer
    members: Sequence[Adapter]
    encoded: Sequence[Encoded]
    how: PredictConfig
    seeds: Sequence[int]
    tally: Tally

    @classmethod
    def of(cls, request: Request, how: PredictConfig, seed: int) -> "_Job":
        posterior = request.posterior
        encoded = posterior.scorer.encode(request.examples, posterior.task_name)
        how, calibrate = posterior.settled(request.examples, how)
        tally = Tally(len(posterior.members), encoded, calibrate)
        seeds = member_seeds(seed, len(posterior.members))
        return cls(posterior.scorer, posterior.adapters, encoded, how, seeds, tally)

    @property
    def each(self) -> int:
        """Passes of each member."""
        return max(1, self.how.num_samples)

    @property
    def passes(self) -> int:
        return self.each * len(self.members)

    def updates(self, number: int) -> dict[str, LayerUpdate]:
        """Of every adapted layer, in pass ``number``."""
        member, sample = divmod(number, self.each)
        noise = None
        if self.how.num_samples:
            noise = sample_noise(self.how, self.seeds[member], sample, self.scorer.device, None)
        phi, space = self.members[member], self.scorer.space
        return by_name(phi, lambda shape: space.layers(phi.stacks[shape], noise))

    def take(self, index: Sequence[int], probs: Sequence[Tensor]) -> None:
        """All passes' probabilities of the M examples ``index``, each (M, C) or wider with zeros."""
        width = max(len(self.encoded[number].options) for number in index)
        samples = torch.stack([part[:, :width] for part in probs])
        for member, own in enumerate(samples.split(self.each)):
            self.tally.add(member, torch.tensor(index), own)


def _answer(jobs: Sequence[_Job]) -> None:
    """Fill the jobs' tallies."""
    asked = [(number, index) for number, job in enumerate(jobs) for index in range(len(job.encoded))]
    encoded = [jobs[number].encoded[index] for number, index in asked]
    for chosen in batches_of_like_length(encoded, MAX_TOKENS):
        parts: dict[int, list[int]] = {}
        for number, index in (asked[place] for place in chosen):
            parts.setdefault(number, []).append(index)
        _answer_batch([jobs[number] for number in parts], list(parts.values()))


def _answer_batch(jobs: Sequence[_Job], parts: Sequence[Sequence[int]]) -> None:
    """Read these examples of each job, in as many passes as the job with most of them has."""
    scorer = jobs[0].scorer
    order = sorted(range(len(jobs)), key=lambda number: -jobs[number].passes)  # who has no more leaves at the end
    jobs, parts = [jobs[number] for number in order], [parts[number] for number in order]
    groups = [[job.encoded[index] for index in part] for job, part in zip(jobs, parts, strict=True)]
    examples = [example for group in groups for example in group]
    lower = scorer.lower_blocks.read_together(examples) if scorer.lower_blocks.blocks else None
    found: list[list[Tensor]] = [[] for _ in jobs]
    batch, counts = None, []
    for number in range(jobs[0].passes):
        here = [job for job in jobs if job.passes > number]
        if batch is None or len(here) < len(counts):
            counts = [len(part) for part in parts[: len(here)]]
            batch = scorer.batch(examples[: sum(counts)], share_prefix=False)
            batch = batch if lower is None else batch.with_lower(lower[: sum(counts)])
        probs = probabilities(scorer.scores(batch, None, Pass(updates=_joined(here, number, batch, counts))).options)
        for own, part in zip(found, probs.split(counts), strict=False):
            own.append(part)
    for job, part, own in zip(jobs, parts, found, strict=True):
        job.take(part, own)


def _joined(jobs: Sequence[_Job], number: int, batch: Batch, counts: Sequence[int]) -> Mapping[str, LayerUpdate]:
    """Of every adapted layer the update of all jobs' pass ``number``."""
    each, runs = [job.updates(number) for job in jobs], batch.runs(counts)
    return {name: grouped([updates[name] for updates in each], runs) for name in each[0]}
