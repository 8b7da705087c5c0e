"""Answers that are written: one at the posterior mean, or many, of which the commonest is given.

Each of many answers is written with a posterior sample of its own. Answers that are the same but for case, punctuation,
articles and space (``abmll.tasks.written``) are one cluster. How large the largest is, and how many there are, says how
far the answer can be trusted: semantic entropy (Farquhar et al., Nature 630, 2024) with equality in the place of
entailment, so that two wordings of one answer count as two answers.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from abmll.common.config import WriteConfig
from abmll.common.errors import ConfigError, DataError
from abmll.common.progress import progress
from abmll.language.adapter import Adapter
from abmll.language.batch import batches_of_like_length
from abmll.language.wiring import by_name
from abmll.language.writing import written
from abmll.model.interchange import average_update
from abmll.posterior.fixed import fixed_layers
from abmll.posterior.space import LayerUpdate
from abmll.tasks.order import sample_seed
from abmll.tasks.records import Data, listed, texts_of
from abmll.tasks.types import WrittenExample
from abmll.tasks.written import same_answer

if TYPE_CHECKING:
    from abmll.model.learned_task import TaskPosterior

MAX_TOKENS = 4096  # of a batch's prompts, padding included
Updates = dict[str, LayerUpdate]


@dataclass(frozen=True)
class WrittenAnswer:
    """The answer to one question: the first text of the largest cluster of ``samples``; of equals the earliest.

    With one sample nothing disagrees: the agreement is 1 and the entropy 0, and they mean nothing.
    """

    output: str
    samples: tuple[str, ...]
    truncated: int = 0  # tokens cut out of the input

    @property
    def clusters(self) -> Counter[str]:
        """How many samples say the same, by what they say."""
        return Counter(map(same_answer, self.samples))

    @property
    def agreement(self) -> float:
        """The share of the samples that say what ``output`` says."""
        return self.clusters[same_answer(self.output)] / len(self.samples)

    @property
    def entropy(self) -> float:
        """The entropy of the clusters' shares in nats: 0 where all samples say the same, log N where no two do."""
        shares = [count / len(self.samples) for count in self.clusters.values()]
        return sum(-share * math.log(share) for share in shares)

    @classmethod
    def of(cls, samples: Sequence[str], truncated: int) -> "WrittenAnswer":
        """The answer that most of the samples give."""
        [(commonest, _)] = Counter(map(same_answer, samples)).most_common(1)  # of equals the first that was met
        return cls(next(one for one in samples if same_answer(one) == commonest), tuple(samples), truncated)


def questions_of(data: Data) -> list[WrittenExample]:
    """The questions of examples whose answers are written, or of texts; answers are left out.

    Raises ``DataError`` where there is no question, or one that cannot be read.
    """
    rows = listed(data, "questions")
    if not rows:
        raise DataError("questions: there are none; give at least one text")
    if all(isinstance(row, WrittenExample) for row in rows):
        return [WrittenExample.of(row.id, row.input, None) for row in rows]
    return [WrittenExample.of(str(number), text, None) for number, text in enumerate(texts_of(rows, "questions"))]


def write_answers(
    posterior: "TaskPosterior", data: Data, how: WriteConfig, seed: int, quiet: bool
) -> list[WrittenAnswer]:
    """The answers of a posterior; see ``TaskPosterior.generate``."""
    scorer = posterior.scorer
    _refuse_unfit(posterior, how)
    questions = questions_of(data)
    encoded = list(scorer.encoder.with_room(how.max_new_tokens).encode_all(questions, posterior.task_name))
    batches = batches_of_like_length(encoded, MAX_TOKENS)
    samples: list[list[str]] = [[] for _ in questions]
    with progress(how.num_answers * len(batches), "writing answers", "batch", quiet=quiet) as bar:
        for draw, updates in enumerate(_draws(posterior, how.num_answers, seed)):
            with scorer.wiring.use_updates(updates):
                for number, batch in enumerate(batches):
                    own = sample_seed(seed, "written tokens", draw, number)
                    texts = written(scorer, [encoded[index] for index in batch], how, own)
                    for index, text in zip(batch, texts, strict=True):
                        samples[index].append(text)
                    bar.update()
    return [WrittenAnswer.of(texts, one.truncated) for texts, one in zip(samples, encoded, strict=True)]


def _refuse_unfit(posterior: "TaskPosterior", how: WriteConfig) -> None:
    if posterior.head is not None or posterior.demonstrations:
        raise ConfigError("generate: this posterior chooses between options; learn a task whose answers are written")
    alike = not posterior.is_posterior and len(posterior.members) == 1 and not how.do_sample
    if how.num_answers > 1 and alike:
        raise ConfigError(
            f"num_answers is {how.num_answers}, but this method has learned no standard deviations, so all answers "
            "would be the same; use do_sample, or num_answers 1"
        )


@torch.no_grad()
def _draws(posterior: "TaskPosterior", number: int, seed: int) -> Iterator[Updates]:
    """What the adapted layers add, for each of so many answers.

    One answer is written at the mean, of several members at their average update: what an export has. Of more each has
    a sample of a member of its own, in turn; or the member's mean, where no standard deviations were learned.
    """
    space, members = posterior.scorer.space, posterior.adapters
    if number == 1:
        yield _at_mean(posterior, average_update(members)[0])
        return
    for draw in range(number):
        phi = members[draw % len(members)]
        if not posterior.is_posterior:
            yield _at_mean(posterior, phi)
            continue
        noise = torch.Generator(posterior.scorer.device).manual_seed(sample_seed(seed, "written answers", draw))
        yield by_name(phi, lambda shape, phi=phi, noise=noise: fixed_layers(space, phi.stacks[shape], noise))


def _at_mean(posterior: "TaskPosterior", phi: Adapter) -> Updates:
    return by_name(phi, lambda shape: posterior.scorer.space.layers(phi.stacks[shape], None))
