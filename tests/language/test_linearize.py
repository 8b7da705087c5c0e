"""Scores to first order in the weights, against autograd's Jacobian with respect to the dense weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from abmll.language.batch import collate
from abmll.language.encoding import Encoded
from abmll.language.linearize import linearize
from abmll.language.scorer import OptionScorer

HIDDEN = 32


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("form", [{}, {"sigma_rank": 2}])
def test_covariance_equals_the_dense_jacobian_s(
    family: str, form: Any, make_scorer: Callable[..., OptionScorer], ragged: list[Encoded]
) -> None:
    """With A the identity and s = 1, the derivative by B is that by the weights themselves."""
    modules = {"llama": ("q_proj", "o_proj"), "gpt2": ("c_attn",)}[family]
    scorer = make_scorer(
        family, r=HIDDEN, lora_alpha=float(HIDDEN), init_log_sigma=-2.0, target_modules=modules, **form
    )
    phi = scorer.new_adapter(0)
    generator = torch.Generator().manual_seed(0)
    for factors in phi.stacks.values():
        factors.mean_A.copy_(torch.eye(HIDDEN))
        factors.scale_A.add_(0.3 * torch.randn(factors.scale_A.shape, generator=generator))
        factors.scale_B.add_(0.3 * torch.randn(factors.scale_B.shape, generator=generator))
    batch = scorer.batch(ragged[:3], share_prefix=False)
    scores, covariance = linearize(scorer, phi, batch)
    torch.testing.assert_close(scores, scorer.scores(batch, phi).options)

    learned = phi.clone().requires_grad_()
    for n, example in enumerate(ragged[:3]):
        options = scorer.scores(scorer.batch([example]), learned).options[0]
        weights = [factors.mean_B for factors in learned.stacks.values()]
        rows = [torch.autograd.grad(option - options[0], weights, retain_graph=True) for option in options[1:]]
        expected = torch.zeros(len(rows), len(rows))
        for stack, factors in enumerate(phi.stacks.values()):
            sigma = factors.scale_B.exp() @ factors.scale_A.exp()
            jacobian = torch.stack([(row[stack] * sigma).flatten() for row in rows])
            expected += jacobian @ jacobian.mT
        size = len(rows)
        torch.testing.assert_close(covariance[n, :size, :size].float(), expected, rtol=2e-4, atol=1e-6)
        assert not covariance[n, size:].any()
        assert expected.diagonal().min() > 1e-6


def test_packed_padded_and_replayed_batches_agree(
    make_scorer: Callable[..., OptionScorer], deep_llama: Any, ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer(deep_llama, layers_to_transform="2-3")
    phi = randomize(scorer.new_adapter(0))
    packed = scorer.batch(ragged, share_prefix=False)
    wanted = linearize(scorer, phi, collate(ragged, 0))[1]
    assert wanted.abs().max() > 1e-6
    for batch in (packed, scorer.lower_blocks.fill(packed)):
        torch.testing.assert_close(linearize(scorer, phi, batch)[1], wanted, rtol=1e-3, atol=1e-8)


def test_a_shared_prefix_is_refused(make_scorer: Callable[..., OptionScorer], ragged: list[Encoded]) -> None:
    scorer = make_scorer("llama")
    with pytest.raises(ValueError, match="share a prefix"):
        linearize(scorer, scorer.new_adapter(0), scorer.batch([ragged[1], ragged[1]]))
