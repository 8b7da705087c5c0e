"""Questions to many tasks answered together: one pass over the frozen model, in which each task has its own adapter.

What lies below the lowest adapted layer is the same for all and read once; then the first sample of every posterior
makes one pass, the second one the next, and so on. An answer is the one that its posterior gives by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from abmll.common.config import PredictConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, batches_of_like_length, shared_prefix
from abmll.language.encoding import Encoded
from abmll.language.packing import KeysAndValues
from abmll.language.scorer import OptionScorer, Pass
from abmll.language.wiring import by_name
from abmll.model.beginnings import Beginning, Beginnings, apart, beside
from abmll.model.learned_task import TaskPosterior
from abmll.model.prediction import (
    MAX_TOKENS,
    Prediction,
    Tally,
    member_seeds,
    probabilities,
    sample_noise,
)
from abmll.posterior import Factors, LayerUpdate, Noise, WeightSpace
from abmll.posterior.grouped import Runs, grouped
from abmll.posterior.run_samples import run_samples
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
    answered one after the other. In ``beginnings`` is kept what each task's prompts begin with, so that the next call need
    not read it. Raises ``ConfigError`` for posteriors of several scorers, otherwise as ``predict``.
    """
    how = how or PredictConfig()
    if len({id(request.posterior.scorer) for request in requests}) > 1:
        raise ConfigError("these posteriors have models of their own; load them with one scorer (from_pretrained)")
    together = [number for number, request in enumerate(requests) if _can_join(request, how)]
    if len(together) < 2:
        together = []
    jobs = [_Job.of(requests[number], how, seed) for number in together]
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


@dataclass(frozen=True)
class _Job:
    """A request on its way: its passes are all samples of its first member, then those of the next."""

    scorer: OptionScorer
    members: Sequence[Adapter]
    encoded: Sequence[Encoded]
    how: PredictConfig
    seeds: Sequence[int]
    tally: Tally

    @cached_property
    def by_layer(self) -> Sequence[Mapping[str, Factors]]:
        """Each member's factors by layer."""
        return [phi.by_layer() for phi in self.members]

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

    def noise(self, number: int, drawn: dict[tuple[int, int], Noise]) -> Noise | None:
        """Of pass ``number``; the one in ``drawn`` where another job has the same noise, else it is put there."""
        member, sample = divmod(number, self.each)
        if not self.how.num_samples:
            return None
        seed = self.seeds[member]
        if (seed, sample) not in drawn:
            drawn[seed, sample] = sample_noise(self.how, seed, sample, self.scorer.device, None)
        return drawn[seed, sample]

    def layers(self, number: int) -> Mapping[str, Factors]:
        """What pass ``number`` reads with."""
        return self.by_layer[number // self.each]

    def updates(self, number: int) -> dict[str, LayerUpdate]:
        """Of every adapted layer, in pass ``number``."""
        phi, space, noise = self.members[number // self.each], self.scorer.space, self.noise(number, {})
        return by_name(phi, lambda shape: space.layers(phi.stacks[shape], noise))

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The tokens that stand before the input in all its prompts."""
        prompts = [example.prompt for example in self.encoded]
        return prompts[0][: min(shared_prefix(prompts), *(example.start for example in self.encoded))]

    def begun(self, beginnings: Beginnings) -> Sequence[KeysAndValues] | None:
        """Keys and values of ``beginning`` in each pass; None where they are not kept of all of them."""
        members = enumerate(self.members)
        found = [beginnings.find(phi, self.noise_settings(number), self.beginning) for number, phi in members]
        kept = [own for own in found if own is not None]
        return list(chain(*kept)) if len(kept) == len(found) else None

    def noise_settings(self, member: int) -> tuple[Any, ...]:
        """What the noise of a member's passes follows from."""
        return (self.how.num_samples, self.how.prediction_noise, self.how.prediction_noise_rank, self.seeds[member])

    def take(self, index: Sequence[int], probs: Sequence[Tensor]) -> None:
        """All passes' probabilities of the M examples ``index``, each (M, C) or wider with zeros."""
        width = max(len(self.encoded[number].options) for number in index)
        samples = torch.stack([part[:, :width] for part in probs])
        for member, own in enumerate(samples.split(self.each)):
            self.tally.add(member, torch.tensor(index), own)


def _answer(jobs: Sequence[_Job], beginnings: Beginnings | None) -> None:
    """Fill the jobs' tallies."""
    asked = [(number, index) for number, job in enumerate(jobs) for index in range(len(job.encoded))]
    encoded = [jobs[number].encoded[index] for number, index in asked]
    for chosen in batches_of_like_length(encoded, MAX_TOKENS):
        parts: dict[int, list[int]] = {}
        for number, index in (asked[place] for place in chosen):
            parts.setdefault(number, []).append(index)
        order = sorted(parts, key=lambda number: -jobs[number].passes)  # who has no more passes leaves at the end
        _answer_batch([jobs[number] for number in order], [parts[number] for number in order], beginnings)


def _answer_batch(jobs: Sequence[_Job], parts: Sequence[Sequence[int]], beginnings: Beginnings | None) -> None:
    """Read these examples of each job, in as many passes as the job with most of them has."""
    groups = [[job.encoded[index] for index in part] for job, part in zip(jobs, parts, strict=True)]
    size = min(len(job.beginning) for job in jobs) if beginnings is not None and jobs[0].scorer.packed else 0
    begun = _begun(jobs, beginnings) if beginnings is not None and size >= WORTHWHILE else None
    found: list[list[Tensor]] = [[] for _ in jobs]
    for number, here, batch, updates in _passes(jobs, groups, 0 if begun is None else size):
        if begun is not None:
            before = beside([own[number] for own in begun[: len(here)]], size)
            batch = replace(batch, packing=replace(batch.places, before=before))
        probs = probabilities(here[0].scorer.scores(batch, None, Pass(updates=updates)).options)
        for own, part in zip(found, probs.split(list(map(len, groups[: len(here)]))), strict=False):
            own.append(part)
    for job, part, own in zip(jobs, parts, found, strict=True):
        job.take(part, own)


def _passes(
    jobs: Sequence[_Job], groups: Sequence[Sequence[Encoded]], size: int = 0
) -> Iterator[tuple[int, Sequence[_Job], Batch, Mapping[str, LayerUpdate]]]:
    """Of every pass its number, which jobs take part, their examples as one batch, and the updates of all layers.

    Jobs with more passes come first. The examples are without the first ``size`` tokens.
    """
    scorer, examples = jobs[0].scorer, [example for group in groups for example in group]
    lower = scorer.lower_blocks.read_together(examples) if scorer.lower_blocks.blocks else None
    batch, counts, runs = None, [], {}
    for number in range(jobs[0].passes):
        here = [job for job in jobs if job.passes > number]
        if batch is None or len(here) < len(counts):
            counts = list(map(len, groups[: len(here)]))
            batch = scorer.batch(examples[: sum(counts)], share_prefix=False)
            batch = batch if lower is None else batch.with_lower(lower[: sum(counts)])
            batch = batch.behind(size, counts) if size else batch
            runs = batch.runs(counts)
        yield number, here, batch, _joined(here, number, runs)


def _begun(jobs: Sequence[_Job], beginnings: Beginnings) -> list[Sequence[KeysAndValues]]:
    """Keys and values of each job's beginning, in each of its passes."""
    found = [job.begun(beginnings) for job in jobs]
    missing = [job for job, own in zip(jobs, found, strict=True) if own is None]
    read = iter(_read_beginnings(missing, beginnings) if missing else ())
    return [next(read) if own is None else own for own in found]


def _read_beginnings(jobs: Sequence[_Job], beginnings: Beginnings) -> list[Sequence[KeysAndValues]]:
    """``_begun`` of jobs of which it is not kept: passes over the beginnings alone."""
    groups, lengths = [[Encoded(job.beginning, ((0,),), None)] for job in jobs], [len(job.beginning) for job in jobs]
    found: list[list[KeysAndValues]] = [[] for _ in jobs]
    for _, here, batch, updates in _passes(jobs, groups):
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        batch = replace(batch, packing=replace(batch.places, seen=seen))
        here[0].scorer.scores(batch, None, Pass(updates=updates))
        for own, part in zip(found, apart(seen, lengths[: len(here)]), strict=False):
            own.append(part)
    for job, own in zip(jobs, found, strict=True):
        for number, phi in enumerate(job.members):
            passes = tuple(own[number * job.each : (number + 1) * job.each])
            beginnings.keep(phi, Beginning(job.noise_settings(number), job.beginning, passes))
    return [*found]


def _joined(jobs: Sequence[_Job], number: int, runs: Runs) -> Mapping[str, LayerUpdate]:
    """Of every adapted layer the update of all jobs' pass ``number``, each on its run."""
    if len(jobs) == 1:
        return jobs[0].updates(number)
    drawn: dict[tuple[int, int], Noise] = {}
    noises, scorer, phi = [job.noise(number, drawn) for job in jobs], jobs[0].scorer, jobs[0].members[0]
    if isinstance(scorer.space, WeightSpace) and drawn and all(map(scorer.space.has_low_rank_samples, drawn.values())):
        groups, _ = scorer.wiring.groups(phi)
        layers = [job.layers(number) for job in jobs]
        return run_samples(scorer.space, layers, phi.layers.values(), groups, noises, runs)
    each = [job.updates(number) for job in jobs]
    return {name: grouped([updates[name] for updates in each], runs) for name in each[0]}
