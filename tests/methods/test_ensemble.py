"""LoRA ensembles: where members start, what they read, and that each is plain LoRA from there."""

from collections.abc import Callable

import torch

from abmll.common.config import ContinuedConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import Support, make_rule
from abmll.methods.ensemble import Ensemble


def test_members_are_plain_lora_from_their_own_start_and_order(
    make_scorer: Callable[..., OptionScorer],
    make_theta: Callable[..., Adapter],
    draw_examples: Callable[..., list[Encoded]],
) -> None:
    scorer = make_scorer()
    theta, support = make_theta(scorer), Support(scorer, draw_examples(6), steps=2, batch_size=2, seed=7)
    rule = make_rule(scorer, ContinuedConfig(method="ensemble", ensemble_size=3, ensemble_spread=0.5), 1)
    assert isinstance(rule, Ensemble)
    assert rule.num_batches(support) == 6
    members = rule.adapt(theta, support)
    assert len(members) == 3
    assert len(support.losses) == 2  # the first member's
    assert support.order(0) != support.order(1) != support.order(2)
    plain = make_rule(scorer, ContinuedConfig(method="structured-lora"), 1)
    for number, member in enumerate(members):
        start = rule.start(theta, 7, number)
        for shape, stack in start.stacks.items():
            moved = stack.mean_A - theta.stacks[shape].mean_A
            bound = 0.5 / stack.mean_A.shape[-1] ** 0.5  # the spread times the fresh A's range
            assert 0.8 * bound < moved.abs().max() <= 1.001 * bound
            assert torch.equal(stack.mean_B, theta.stacks[shape].mean_B)
        expected = plain.learn(plain.init(start), support, number)
        for one, other in zip(member.mean_tensors(), expected.mean_tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    firsts = [member.mean_tensors()[0] for member in members]
    assert not any(torch.equal(firsts[0], other) for other in firsts[1:])
