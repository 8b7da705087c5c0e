"""Training the features through the head: its gradient against finite differences, and what predicts what."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel
from abmll.common.config import LearningConfig, PromptConfig
from abmll.common.errors import ConfigError, TrainingError
from abmll.language.adapter import Adapter
from abmll.language.compilation import Compilation
from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader
from abmll.language.meter import counted
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule
from abmll.methods.trained_head import EpisodeState, TrainedHead, folded
from abmll.posterior.head_learning import Episode, predictive_nll
from abmll.posterior.hypotheses import HeadPrior, Hypotheses, Known

MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[[OptionScorer], Adapter]
Draw = Callable[..., list[Encoded]]
LABELS = ((20,), (7, 9), (31,))  # not in the order in which they are sorted
NOISE = torch.Generator()


def labelled(examples: list[Encoded]) -> list[Encoded]:
    """The examples with the same options, in turn in another order."""
    return [replace(one, options=LABELS[n % 3 :] + LABELS[: n % 3], answer=n * n % 3) for n, one in enumerate(examples)]


def by_hand(scorer: OptionScorer, theta: Adapter, batches: list[list[Encoded]], is_labelled: bool) -> Tensor:
    """The loss: each batch predicted from all others, by features that are read without a gradient."""
    prior = HeadPrior()
    examples = [one for batch in batches for one in batch]
    hidden, scores = FeatureReader(scorer, prior.blocks(scorer.num_blocks), theta).read(examples)
    columns = torch.tensor([[one.options.index(option) for option in sorted(one.options)] for one in examples])
    scores = scores.gather(1, columns[..., None].expand_as(scores))
    answers = torch.tensor([sorted(one.options).index(one.options[one.answer or 0]) for one in examples])
    total, start = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        query = [number for number in range(len(examples)) if start <= number < start + len(batch)]
        support = [number for number in range(len(examples)) if number not in query]
        start += len(batch)
        one = Episode(
            Known(hidden[support], scores[support], is_labelled),
            answers[support],
            Known(hidden[query], scores[query], is_labelled),
            answers[query],
        )
        total += predictive_nll(Hypotheses.of(prior, is_labelled), one)
    return total


def read(
    rule: TrainedHead, scorer: OptionScorer, theta: Adapter, batches: list[list[Encoded]]
) -> tuple[EpisodeState, float, dict[str, Tensor]]:
    """The state behind an episode of these batches, its loss, and theta's gradient."""
    state = rule.init(theta)
    rule.begin_episode(state, 0.0)
    for batch in batches[:-1]:
        rule.inner_step(state, scorer.batch(batch), NOISE, 1.0)
    loss, share = rule.share(state, scorer.batch(batches[-1]), NOISE)
    return state, float(loss.total), share


@pytest.mark.parametrize("is_labelled", [True, False])
def test_loss_and_gradient_against_finite_differences(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, is_labelled: bool
) -> None:
    scorer = make_scorer()
    rule, theta = TrainedHead(scorer, LearningConfig(method="trained-head"), 1), make_theta(scorer)
    examples = draw_examples(7)
    examples = labelled(examples) if is_labelled else examples
    batches = [examples[:3], examples[3:5], examples[5:]]
    _, loss, share = read(rule, scorer, theta, batches)
    assert loss == pytest.approx(float(by_hand(scorer, theta, batches, is_labelled)), rel=1e-4)
    assert share.keys() == {name for name, _ in theta.named_tensors() if "mean" in name}
    moved, size = theta.clone(), 2e-3
    slope = sum(float(one.double().square().sum()) for one in share.values())  # along the gradient itself
    unit = slope**0.5
    ends = []
    for sign in (1, -1):
        for (name, tensor), (_, start) in zip(moved.named_tensors(), theta.named_tensors(), strict=True):
            tensor.copy_(start + sign * size * share[name] / unit if name in share else start)
        ends.append(float(by_hand(scorer, moved, batches, is_labelled)))
    assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(unit, rel=0.02)


def test_steps_lower_the_loss(make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw) -> None:
    scorer = make_scorer()
    rule = make_rule(scorer, LearningConfig(method="trained-head", outer_learning_rate=0.01), 1)
    examples = labelled(draw_examples(8))
    state, losses = rule.init(make_theta(scorer)), []
    for _ in range(6):
        rule.begin_episode(state, 0.0)
        rule.inner_step(state, scorer.batch(examples[:4]), NOISE, 1.0)
        loss, share = rule.share(state, scorer.batch(examples[4:]), NOISE)
        rule.take(state, share, 1.0)
        assert loss is not None
        losses.append(float(loss.total))
    assert losses[-1] < 0.9 * losses[0]


def test_an_example_of_two_batches_is_read_once_and_never_predicted_from_itself(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorer = make_scorer()
    rule, theta, examples = TrainedHead(scorer, LearningConfig(), 1), make_theta(scorer), labelled(draw_examples(5))
    with counted(scorer) as once:
        _, loss, _ = read(rule, scorer, theta, [examples[:3], examples[3:]])
    again = [examples[:3], [examples[1], examples[0]], [examples[2], *examples[3:]]]
    with counted(scorer) as twice:
        _, repeated, _ = read(rule, scorer, theta, again)
    assert loss == pytest.approx(repeated, rel=1e-6)
    assert once.tokens == twice.tokens
    assert folded(again) == ([slice(0, 3), slice(3, 5)], examples)


def test_the_graph_is_let_go(make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw) -> None:
    scorer = make_scorer()
    rule = TrainedHead(scorer, LearningConfig(), 1)
    examples = draw_examples(4)
    state, _, share = read(rule, scorer, make_theta(scorer), [examples[:2], examples[2:]])
    assert not state.read
    assert not any(one.requires_grad for one in share.values())


def test_a_batch_that_has_all_examples_is_predicted_one_by_one(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorer = make_scorer()
    rule, theta, examples = TrainedHead(scorer, LearningConfig(), 1), make_theta(scorer), labelled(draw_examples(3))
    _, loss, _ = read(rule, scorer, theta, [examples, examples[:1]])
    assert loss == pytest.approx(float(by_hand(scorer, theta, [[one] for one in examples], True)), rel=1e-4)


def test_adapters_above_the_features_learn_from_the_scores(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainedHead, "start", HeadPrior(depths=(0.5,)))  # of two blocks
    scorer = make_scorer(layers_to_transform="top-1")
    examples = draw_examples(6)
    _, _, share = read(
        TrainedHead(scorer, LearningConfig(), 1), scorer, make_theta(scorer), [examples[:3], examples[3:]]
    )
    assert all(float(one.abs().max()) > 0 for one in share.values())


def test_features_that_are_not_finite_are_named(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorer, examples = make_scorer(), draw_examples(4)
    theta = make_theta(scorer)
    for tensor in theta.mean_tensors():
        tensor.fill_(1e30)
    with pytest.raises(TrainingError, match=r"^the features are not finite; lower the learning rates$"):
        read(TrainedHead(scorer, LearningConfig(), 1), scorer, theta, [examples[:2], examples[2:]])


def test_letters_are_refused(tiny_llama: Path) -> None:
    scorer = AbmllModel.from_base(str(tiny_llama), prompt=PromptConfig(answer="letter"), dtype="fp32").scorer
    with pytest.raises(ConfigError, match=r"^answer: trained-head knows a label by its text, and letters stand for"):
        make_rule(scorer, LearningConfig(method="trained-head"), 1)


def test_compiling_is_refused(make_scorer: MakeScorer) -> None:
    scorer = make_scorer()
    scorer.compilation = Compilation()
    with pytest.raises(ConfigError, match=r"^compile: "):
        make_rule(scorer, LearningConfig(method="trained-head"), 1)
