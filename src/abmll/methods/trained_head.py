"""A head whose features are trained: theta is the adapter with which the model is read, learned through the head.

    theta <- theta - AdamW(d loss / d theta)
    loss = - sum over the episode's batches  log p(batch | the episode's other batches; theta)      (nats)

p is the head's own predictive probability (``posterior/head_learning.py``), whose gradient goes through its mode to the
features, and through the model to theta's mean factors. Every batch is predicted from the others, so that each example
that is read teaches as a question and as evidence. Of an unseen task the head alone is learned.

Deep kernel transfer (Patacchiola et al., arXiv 1910.05199) learns a network by the evidence of its Gaussian process;
the loss here is that of held-out examples (ML-PIP, Gordon et al., arXiv 1805.09921).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError, TrainingError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.features import Features, Read, assembled, read_pass, with_unasked
from abmll.language.scorer import OptionScorer
from abmll.methods.lora import WithoutSteps
from abmll.methods.loss import NO_NORMS, Loss
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import THETA, Rule, State
from abmll.posterior.head_learning import Episode, predictive_nll
from abmll.posterior.hypotheses import HeadPrior, Hypotheses, Known
from abmll.posterior.tempering import TemperedHead
from abmll.posterior.threads import one_thread


@dataclass
class EpisodeState(State):
    """Theta and phi are the same adapter; beside it what the episode has read, batch by batch."""

    optimizer: AdapterOptimizer
    batches: list[list[Encoded]] = field(default_factory=list)
    read: dict[str, Read] = field(default_factory=dict)  # by key, with the graph behind it

    def optimizers(self) -> dict[str, AdapterOptimizer]:
        """Theta's."""
        return {THETA: self.optimizer}


class TrainedHead(WithoutSteps, Rule[EpisodeState]):
    """Features of a theta that was trained for the head."""

    name = "trained-head"
    label = "Head, trained features"
    accumulates = False
    needs_query = True
    classifier = TemperedHead
    start = HeadPrior()

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        super().__init__(scorer, config, num_tasks)
        if scorer.prompt.answer == "letter":
            raise ConfigError(f"answer: {self.name} knows a label by its text, and letters stand for others; use text")

    def init(self, theta: Adapter) -> EpisodeState:
        """One adapter in both roles; only its mean factors learn."""
        adapter = theta.clone()
        for tensor in adapter.mean_tensors():
            tensor.requires_grad_()
        return EpisodeState(adapter, adapter, self.theta_optimizer(adapter))

    def begin_episode(self, state: EpisodeState, done: float) -> None:
        """Nothing is read yet."""
        state.batches, state.read = [], {}

    def inner_step(self, state: EpisodeState, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """Read a batch, without a step. The loss is that of theta's own answers, by their score per token."""
        examples = list(map(with_sorted_options, batch.examples))
        rows = {key: one for key, one in with_unasked(examples).items() if key not in state.read}
        if rows:
            blocks = self.start.blocks(self.scorer.num_blocks)
            state.read |= zip(rows, read_pass(self.scorer, list(rows.values()), blocks, state.theta), strict=True)
        state.batches.append(examples)
        scores = assembled(examples, state.read).scores[..., 0].detach()
        answers = torch.tensor([example.answer for example in examples])
        nll = cross_entropy(scores, answers, reduction="sum").to(self.scorer.device)
        tokens = sum(map(len, rows.values()))
        correct, zero = (scores.argmax(-1) == answers).sum().to(nll.device), torch.zeros_like(nll)
        return Loss(nll, nll, zero, zero, correct, len(examples), tokens, passes=int(bool(rows)))

    def share(self, state: EpisodeState, batch: Batch, generator: torch.Generator) -> tuple[Loss, dict[str, Tensor]]:
        """The gradient of the loss with respect to theta; ``batch`` is the episode's last."""
        last = self.inner_step(state, batch, generator, rate=1.0)
        folds, examples = folded(state.batches)
        features = assembled(examples, state.read)
        if not bool(features.hidden.isfinite().all()) or bool(features.scores.isnan().any()):
            raise TrainingError("the features are not finite; lower the learning rates")
        leaves = Features(*(part.detach().requires_grad_() for part in features))
        nll = held_out_nll(self.start, leaves, examples, folds).to(self.scorer.device)
        learned = {name: tensor for name, tensor in state.theta.named_tensors() if tensor.requires_grad}
        reached = [(part, leaf.grad) for part, leaf in zip(features, leaves, strict=True) if part.requires_grad]
        parts, slopes = zip(*reached, strict=True)
        gradients = torch.autograd.grad(parts, list(learned.values()), slopes, materialize_grads=True)
        state.read = {}
        return last._replace(total=nll, nll=nll).stepped(NO_NORMS), dict(zip(learned, gradients, strict=True))

    def take(self, state: EpisodeState, mean: Mapping[str, Tensor], rate: float) -> Mapping[str, Tensor]:
        """One AdamW step on theta."""
        return state.optimizer.follow(mean, rate, self.config.max_grad_norm)


def with_sorted_options(example: Encoded) -> Encoded:
    """The example with its options in an order of their own, so that labels are the same columns in all examples."""
    options = tuple(sorted(example.options))
    assert example.answer is not None
    return replace(example, options=options, answer=options.index(example.options[example.answer]))


def folded(batches: Sequence[Sequence[Encoded]]) -> tuple[list[slice], list[Encoded]]:
    """The examples of all ``batches``, each once, and where those of each batch are that has new ones.

    A task of few examples has some of them in several batches; where one batch has them all, each is a fold.
    """
    examples: dict[Encoded, None] = {}
    folds = []
    for batch in batches:
        before = len(examples)
        examples.update(dict.fromkeys(batch))
        if len(examples) > before:
            folds.append(slice(before, len(examples)))
    if len(folds) == 1:
        folds = [slice(place, place + 1) for place in range(len(examples))]
    return folds, list(examples)


@one_thread()
def held_out_nll(prior: HeadPrior, features: Features, examples: Sequence[Encoded], folds: Sequence[slice]) -> Tensor:
    """-log p(fold | the other folds) of the head, summed over the folds (nats); the ``features`` get its gradient."""
    is_labelled = all(example.options == examples[0].options for example in examples)
    hypotheses = Hypotheses.of_task(prior, Known(features.hidden, features.scores, is_labelled))
    answers = torch.tensor([example.answer for example in examples])
    total = torch.zeros((), dtype=torch.float64)
    for fold in folds:
        others = torch.ones(len(examples), dtype=torch.bool)
        others[fold] = False
        support, query = (
            Known(features.hidden[rows], features.scores[rows], is_labelled) for rows in (others, ~others)
        )
        loss = predictive_nll(hypotheses, Episode(support, answers[others], query, answers[fold]))
        loss.backward()
        total += loss.detach()
    return total
