"""Laplace-LoRA against dense matrices: curvature, marginal likelihood and linearised predictive."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from abmll.common.config import ContinuedConfig, LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.linearize import linearize
from abmll.language.scorer import OptionScorer
from abmll.methods import Support, make_rule
from abmll.methods.laplace import write_variances

# One of laplace-torch's own dependencies (asdl) still compiles a function by the old way while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

MakeScorer = Callable[..., OptionScorer]


@pytest.fixture
def case(
    make_scorer: MakeScorer, make_theta: Callable[..., Adapter], draw_examples: Callable[..., list[Encoded]]
) -> tuple[OptionScorer, Adapter, Support]:
    """A mode, and examples with three options and with two."""
    pytest.importorskip("laplace")
    scorer = make_scorer(space="factor", target_modules=["q_proj", "up_proj"], layers_to_transform="1")
    with torch.no_grad():  # scores far apart: a flat model would have no curvature beside the prior
        dict(scorer.base.model.named_parameters())["model.norm.weight"].mul_(50.0)
    examples = draw_examples(5)
    examples.append(Encoded(examples[0].prompt[1:], examples[0].options[:2], 1))
    return scorer, make_theta(scorer), Support(scorer, examples, steps=3, batch_size=2)


def jacobian(scorer: OptionScorer, phi: Adapter, example: Encoded) -> tuple[Tensor, Tensor]:
    """(C, P) and (C,): of the scores by all mean factors, by torch's own means, and the scores."""
    means = tuple(phi.mean_tensors())

    def scores(*tensors: Tensor) -> Tensor:
        parts = iter(tensors)
        stacks = {shape: stack._replace(mean_A=next(parts), mean_B=next(parts)) for shape, stack in phi.stacks.items()}
        return scorer.scores(scorer.batch([example]), Adapter(stacks, phi.layers)).options[0]

    rows = torch.autograd.functional.jacobian(scores, means)
    return torch.cat([row.flatten(1) for row in rows], dim=1).double(), scores(*means).double()


def dense_ggn(scorer: OptionScorer, phi: Adapter, support: Support) -> Tensor:
    """(P, P): the sum over the examples of J^T (diag(p) - p p^T) J."""
    ggn = torch.zeros(())
    for example in support.encoded:
        rows, scores = jacobian(scorer, phi, example)
        p = torch.softmax(scores, -1)
        ggn = ggn + rows.T @ (p.diag() - p.outer(p)) @ rows
    return ggn


def test_variances_are_the_dense_curvature_s(case: tuple[OptionScorer, Adapter, Support]) -> None:
    from abmll.methods.curvature import diagonal_laplace

    scorer, phi, support = case
    posterior = diagonal_laplace(phi, support)
    curvature = dense_ggn(scorer, phi, support).diagonal()
    precision = float(posterior.prior_precision)
    assert curvature.max() > precision  # the examples say something about some entries
    torch.testing.assert_close(posterior.H.double(), curvature, rtol=2e-3, atol=1e-6)
    expected = 1 / (curvature + precision)
    torch.testing.assert_close(posterior.posterior_variance.double(), expected, rtol=2e-3, atol=0)

    square = sum(float(tensor.double().square().sum()) for tensor in phi.mean_tensors())

    def evidence(precision: float) -> float:
        """What of the log marginal likelihood depends on the prior's precision."""
        ratio = torch.log1p(curvature / precision).sum()
        return -0.5 * (float(ratio) + precision * square)

    assert evidence(precision) > max(evidence(0.98 * precision), evidence(1.02 * precision))
    own = [float(posterior.log_marginal_likelihood(torch.tensor(one * precision))) for one in (1.0, 0.5, 2.0)]
    assert own[0] > max(own[1:])
    differences = [evidence(precision) - evidence(one * precision) for one in (0.5, 2.0)]
    assert [own[0] - one for one in own[1:]] == pytest.approx(differences, rel=1e-2)


@pytest.mark.parametrize("determined", [1e-3, 1.0, 1e4])
def test_the_precision_is_found_wherever_it_lies(determined: float) -> None:
    """A hundred thousand entries of which ten are curved: q = gamma / |mode|^2, gamma = sum h / (h + q)."""
    pytest.importorskip("laplace")
    from abmll.methods.curvature import best_precision

    curvature = torch.zeros(100_000)
    curvature[:10] = determined
    mode = torch.full((100_000,), 0.02)
    q = best_precision(curvature, mode)
    assert q == pytest.approx(10 * determined / (determined + q) / (100_000 * 0.02**2), rel=1e-4)


def test_the_linearised_predictive_is_laplace_torch_s(case: tuple[OptionScorer, Adapter, Support]) -> None:
    """``linearize`` with the variances in the scale factors against laplace-torch's GLM; leads over option 0."""
    from abmll.methods.curvature import diagonal_laplace

    scorer, phi, support = case
    posterior = diagonal_laplace(phi, support)
    write_variances(phi, posterior.posterior_variance)
    jacobians, scores = posterior.backend.jacobians(torch.arange(5))
    covariance = posterior.functional_variance(jacobians).double()
    leads = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    found_scores, found = linearize(scorer, phi, scorer.batch(support.encoded[:5], share_prefix=False))
    torch.testing.assert_close(found_scores, scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, leads @ covariance @ leads.T, rtol=2e-3, atol=1e-8)
    assert covariance.diagonal(dim1=1, dim2=2).min() > 1e-4


def test_a_fit_is_plain_lora_s_mode_with_those_variances(case: tuple[OptionScorer, Adapter, Support]) -> None:
    from abmll.methods.curvature import diagonal_laplace

    scorer, theta, support = case
    rule = make_rule(scorer, LearningConfig(method="laplace"), 1)
    [phi] = rule.adapt(theta, support)
    [mode] = make_rule(scorer, LearningConfig(method="structured-lora"), 1).adapt(theta, support)
    for one, other in zip(phi.mean_tensors(), mode.mean_tensors(), strict=True):
        assert torch.equal(one, other)
    variances = diagonal_laplace(mode, support).posterior_variance
    given = make_rule(scorer, ContinuedConfig(method="laplace", laplace_prior_precision=50.0), 1)
    narrow = torch.cat([scale.exp().flatten() for scale in given.adapt(theta, support)[0].scale_tensors()])
    assert narrow.max() == pytest.approx(50**-0.5, rel=1e-3)
    stds = [tensor.exp().flatten() for stack in phi.stacks.values() for tensor in (stack.scale_A, stack.scale_B)]
    torch.testing.assert_close(torch.cat(stds).square(), variances, rtol=1e-4, atol=0)
    assert not any(tensor.requires_grad for _, tensor in phi.named_tensors())
    for before, after in zip(theta.mean_tensors(), phi.mean_tensors(), strict=True):
        assert not torch.equal(before, after)


def test_a_missing_library_is_named(
    case: tuple[OptionScorer, Adapter, Support], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "laplace", None)
    monkeypatch.delitem(sys.modules, "abmll.methods.curvature", raising=False)
    scorer, theta, support = case
    rule = make_rule(scorer, LearningConfig(method="laplace"), 1)
    with pytest.raises(ConfigError, match=r"needs laplace-torch .* pip install 'abmll\[laplace\]'"):
        rule.adapt(theta, support)
