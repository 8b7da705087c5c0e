"""Passes over the frozen model in which many tasks take part, each with its own adapters on its own examples.

What lies below the lowest adapted layer is the same for all and read once; then the first sample of every posterior
makes one pass, the second one the next, and so on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.common.config import PredictConfig
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, shared_prefix
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.language.wiring import by_name
from abmll.model.prediction import Tally, sample_noise
from abmll.posterior import Factors, LayerUpdate, Noise, WeightSpace
from abmll.posterior.grouped import Runs, grouped
from abmll.posterior.run_samples import run_samples

NoiseKey = tuple[int, int]  # a member's seed, and which of its samples


@dataclass(frozen=True)
class Job:
    """What one task is asked: its passes are all samples of its first member, then those of the next."""

    scorer: OptionScorer
    members: Sequence[Adapter]
    encoded: Sequence[Encoded]
    how: PredictConfig
    seeds: Sequence[int]
    tally: Tally

    @property
    def each(self) -> int:
        """Passes of each member."""
        return max(1, self.how.num_samples)

    @property
    def passes(self) -> int:
        return self.each * len(self.members)

    @cached_property
    def layers(self) -> Sequence[Mapping[str, Factors]]:
        """Each member's factors by layer."""
        return [phi.by_layer() for phi in self.members]

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The tokens before the input, as far as all prompts have them."""
        prompts = [example.prompt for example in self.encoded]
        return prompts[0][: min(shared_prefix(prompts), *(example.start for example in self.encoded))]

    def noise(self, number: int, drawn: dict[NoiseKey, Noise]) -> Noise | None:
        """Of pass ``number``: the one in ``drawn`` where another job has the same, else it is put there."""
        member, sample = divmod(number, self.each)
        if not self.how.num_samples:
            return None
        key = self.seeds[member], sample
        if key not in drawn:
            drawn[key] = sample_noise(self.how, *key, self.scorer.device, None)
        return drawn[key]

    def updates(self, number: int) -> dict[str, LayerUpdate]:
        """Of every adapted layer, in pass ``number``."""
        phi, space, noise = self.members[number // self.each], self.scorer.space, self.noise(number, {})
        return by_name(phi, lambda shape: space.layers(phi.stacks[shape], noise))

    def take(self, index: Sequence[int], probs: Sequence[Tensor]) -> None:
        """All passes' probabilities of the M examples ``index``, each (M, C) or wider with zeros."""
        width = max(len(self.encoded[number].options) for number in index)
        samples = torch.stack([part[:, :width] for part in probs])
        for member, own in enumerate(samples.split(self.each)):
            self.tally.add(member, torch.tensor(index), own)


class JointPass(NamedTuple):
    """One pass: its number, how many examples each job has that takes part (the first ones do), and what is read."""

    number: int
    counts: Sequence[int]
    batch: Batch
    updates: Mapping[str, LayerUpdate]  # of every adapted layer


def joint_passes(jobs: Sequence[Job], groups: Sequence[Sequence[Encoded]], size: int = 0) -> Iterator[JointPass]:
    """As many passes over each job's examples as the job with most of them has.

    Jobs with more passes come first. Without the first ``size`` tokens of every example: see ``Batch.behind``.
    """
    scorer, examples = jobs[0].scorer, [example for group in groups for example in group]
    lower = scorer.lower_blocks.read_together(examples) if scorer.lower_blocks.blocks else None
    batch, counts, runs = None, [], {}
    for number in range(jobs[0].passes):
        here = [job for job in jobs if job.passes > number]
        if batch is None or len(here) < len(counts):
            counts = [len(group) for group in groups[: len(here)]]
            batch = scorer.batch(examples[: sum(counts)], share_prefix=False)
            batch = batch if lower is None else batch.with_lower(lower[: sum(counts)])
            batch = batch.behind(size, counts) if size else batch
            runs = batch.runs(counts)
        yield JointPass(number, counts, batch, _updates(here, number, runs))


def _updates(jobs: Sequence[Job], number: int, runs: Runs) -> Mapping[str, LayerUpdate]:
    """Of every adapted layer the update of all jobs' pass ``number``, each on its run."""
    if len(jobs) == 1:
        return jobs[0].updates(number)
    scorer, phi, drawn = jobs[0].scorer, jobs[0].members[0], dict[NoiseKey, Noise]()
    noises = [job.noise(number, drawn) for job in jobs]
    if isinstance(scorer.space, WeightSpace) and drawn and all(map(scorer.space.has_low_rank_samples, drawn.values())):
        groups, _ = scorer.wiring.groups(phi)
        layers = [job.layers[number // job.each] for job in jobs]
        return run_samples(scorer.space, layers, phi.layers.values(), groups, noises, runs)
    each = [job.updates(number) for job in jobs]
    return {name: grouped([updates[name] for updates in each], runs) for name in each[0]}
