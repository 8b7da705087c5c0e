"""Questions to many tasks answered together: one pass over the frozen model, in which each task has its own adapter.

An answer is the one that its posterior gives by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.common.config import PredictConfig
from abmll.common.errors import ConfigError
from abmll.language.batch import batches_of_like_length
from abmll.language.packing import KeysAndValues
from abmll.language.scorer import Pass
from abmll.model.beginnings import Beginnings, beside
from abmll.model.joint_passes import Job, joint_passes
from abmll.model.learned_task import TaskPosterior
from abmll.model.prediction import MAX_TOKENS, Prediction, Tally, member_seeds, probabilities
from abmll.tasks import Example
from abmll.tasks.types import are_written

WORTHWHILE = 8  # tokens of a beginning from which on it is read apart


@dataclass(frozen=True)
class Request:
    """Examples whose options a task's posterior is asked about."""

    posterior: TaskPosterior
    examples: Sequence[Example]


@torch.no_grad()
def predict_together(
    requests: Sequence[Request],
    how: PredictConfig | None = None,
    seed: int = 0,
    beginnings: Beginnings | None = None,
) -> list[Prediction]:
    """What ``posterior.predict(examples, how, seed=seed)`` gives for each request, up to rounding.

    All posteriors share a scorer. Those with adapters are answered together where a sample of the weights is one for
    all examples; heads, demonstrations, linearized predictions and noise that is drawn for a batch or a token are
    answered one after the other. ``beginnings`` keeps what a task's prompts begin with, so that the next call need not
    read it. Raises ``ConfigError`` for posteriors of several scorers, otherwise as ``predict``.
    """
    how = how or PredictConfig()
    if len({id(request.posterior.scorer) for request in requests}) > 1:
        raise ConfigError("these posteriors have models of their own; load them with one scorer (from_pretrained)")
    together = [number for number, request in enumerate(requests) if _can_join(request, how)]
    if len(together) < 2:
        together = []
    jobs = [_job(requests[number], how, seed) for number in together]
    _answer(jobs, beginnings)
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


def _job(request: Request, how: PredictConfig, seed: int) -> Job:
    posterior = request.posterior
    encoded = posterior.scorer.encode(request.examples, posterior.task_name)
    how, calibrate = posterior.settled(request.examples, how)
    tally = Tally(len(posterior.members), encoded, calibrate)
    seeds = member_seeds(seed, len(posterior.members))
    return Job(posterior.scorer, posterior.adapters, encoded, how, seeds, tally)


def _answer(jobs: Sequence[Job], beginnings: Beginnings | None) -> None:
    """Fill the jobs' tallies."""
    asked = [(number, index) for number, job in enumerate(jobs) for index in range(len(job.encoded))]
    encoded = [jobs[number].encoded[index] for number, index in asked]
    size = min((len(job.beginning) for job in jobs if job.scorer.packed), default=0)
    size = 0 if beginnings is None or size < WORTHWHILE else size
    for chosen in batches_of_like_length(encoded, MAX_TOKENS, size):
        parts: dict[int, list[int]] = {}
        for number, index in (asked[place] for place in chosen):
            parts.setdefault(number, []).append(index)
        order = sorted(parts, key=lambda number: -jobs[number].passes)  # who has no more passes leaves at the end
        here = [jobs[number] for number in order]
        begun = beginnings.of(here) if beginnings is not None and size else None
        _answer_batch(here, [parts[number] for number in order], begun, size)


def _answer_batch(
    jobs: Sequence[Job], parts: Sequence[Sequence[int]], begun: Sequence[Sequence[KeysAndValues]] | None, size: int
) -> None:
    """Read these examples of each job; the first ``size`` tokens are ``begun`` already, by job and pass."""
    groups = [[job.encoded[index] for index in part] for job, part in zip(jobs, parts, strict=True)]
    found: list[list[Tensor]] = [[] for _ in jobs]
    for number, counts, batch, updates in joint_passes(jobs, groups, size):
        if begun is not None:
            before = beside([own[number] for own in begun[: len(counts)]], size)
            batch = replace(batch, packing=replace(batch.places, before=before))
        probs = probabilities(jobs[0].scorer.scores(batch, None, Pass(updates=updates)).options)
        for own, part in zip(found, probs.split(counts), strict=False):
            own.append(part)
    for job, part, own in zip(jobs, parts, found, strict=True):
        job.take(part, own)
