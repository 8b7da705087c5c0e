"""ABMLL's mixture of orders: its components, its samples, and what it takes over from the run it continues."""

from pathlib import Path

import pytest
import torch

from abmll import AbmllModel, TaskPosterior
from abmll.common.config import LearningConfig, PredictConfig
from abmll.common.errors import ConfigError
from abmll.model import prediction
from abmll.model.prediction import entropy, predict
from abmll.posterior import Noise
from abmll.posterior.calibration import CalibrationPrior
from abmll.tasks import Task

PRIOR = CalibrationPrior(0.4, 0.5, 0.6)


@pytest.fixture
def trained(tiny_model: AbmllModel) -> AbmllModel:
    """What a run of ABMLL leaves: B away from zero, a sigma that matters, a calibration."""
    theta = tiny_model.theta.clone()
    generator = torch.Generator().manual_seed(3)
    for stack in theta.stacks.values():
        stack.mean_B.copy_(torch.randn(stack.mean_B.shape, generator=generator))
        stack.scale_A.fill_(0.0)
        stack.scale_B.fill_(0.0)
    tiny_model.learned(theta, LearningConfig(learning_rate=0.1), 3, PRIOR)
    return tiny_model


@pytest.fixture
def posterior(trained: AbmllModel, toy_tasks: list[Task]) -> TaskPosterior:
    model = trained.continue_as("abmll-mixture", ensemble_size=3)
    return model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=3, batch_size=2, seed=5)


def test_theta_and_calibration_are_the_run_s_own(trained: AbmllModel) -> None:
    model = trained.continue_as("abmll-mixture")
    assert model.scorer is trained.scorer
    assert model.calibration_prior == PRIOR
    for (_, one), (_, other) in zip(model.theta.named_tensors(), trained.theta.named_tensors(), strict=True):
        assert torch.equal(one, other)


def test_the_first_component_is_abmll_s_posterior_and_the_others_have_other_orders(
    trained: AbmllModel, posterior: TaskPosterior, toy_tasks: list[Task]
) -> None:
    alone = trained.adapt(toy_tasks[0].train[:6], task_name="toy", steps=3, batch_size=2, seed=5)
    assert len(posterior.members) == 3
    for (_, one), (_, other) in zip(posterior.member(0).named_tensors(), alone.phi.named_tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    tensors = [member.mean_tensors()[0] for member in posterior.adapters]
    assert not any(torch.equal(tensors[one], tensors[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert posterior.calibration is not None
    assert alone.calibration is not None
    torch.testing.assert_close(posterior.calibration.mean, alone.calibration.mean, rtol=0, atol=1e-5)


def test_its_probabilities_are_the_average_over_components_that_differ(
    posterior: TaskPosterior, toy_tasks: list[Task]
) -> None:
    """Sampled by hand, one component after the other; no component and no mean alone would do."""
    questions, how = (
        toy_tasks[0].test[:6],
        PredictConfig(num_samples=400, prediction_noise="shared", use_calibration=False),
    )
    encoded = posterior.scorer.encode(questions, "toy")
    each = [predict(posterior.scorer, [phi], encoded, how, seed=seed) for seed, phi in enumerate(posterior.members)]
    expected = torch.stack([one.probs for one in each]).mean(0)
    mixed = posterior.predict(questions, how, samples=1200, seed=77)
    torch.testing.assert_close(mixed.probs, expected, atol=1.5e-3, rtol=0)
    at_mean = posterior.predict(questions, how, samples=0)
    for other in (*each, at_mean):
        assert (other.probs - mixed.probs).abs().max() > 2.5e-3
    torch.testing.assert_close(mixed.entropy, entropy(mixed.probs))
    within = torch.stack([one.mutual_information for one in each]).mean(0)
    assert (mixed.mutual_information - within).max() > 1e-4  # the components disagree on top of it


@pytest.mark.parametrize(("asked", "each"), [(0, 0), (1, 1), (3, 1), (4, 2), (9, 3)])
def test_samples_are_spread_over_the_components(
    posterior: TaskPosterior, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch, asked: int, each: int
) -> None:
    drawn: dict[int, list[int]] = {}
    sample_noise = prediction.sample_noise

    def spy(how: PredictConfig, seed: int, number: int, device: torch.device, mask: torch.Tensor | None) -> Noise:
        drawn.setdefault(seed, []).append(number)
        return sample_noise(how, seed, number, device, mask)

    monkeypatch.setattr(prediction, "sample_noise", spy)
    posterior.predict(toy_tasks[0].test[:2], samples=asked, seed=9)
    assert [*drawn][:1] == [9] * (each > 0)
    assert [*drawn.values()] == [[*range(each)]] * (3 if each else 0)  # noise of their own


def test_it_is_kept_whole(posterior: TaskPosterior, toy_tasks: list[Task], tmp_path: Path) -> None:
    posterior.save_pretrained(tmp_path / "kept")
    loaded = TaskPosterior.from_pretrained(tmp_path / "kept", scorer=posterior.scorer)
    one, other = (each.predict(toy_tasks[0].test[:8], samples=3) for each in (posterior, loaded))
    torch.testing.assert_close(one.probs, other.probs)
    torch.testing.assert_close(one.mutual_information, other.mutual_information)


def test_it_continues_abmll_alone(trained: AbmllModel) -> None:
    trained.learned(trained.theta, LearningConfig(method="regular-lora"), 1)
    with pytest.raises(ConfigError, match="'abmll-mixture' continues a run of 'abmll', and this one is of 'regular-lo"):
        trained.continue_as("abmll-mixture")
