"""The published settings, as docstring and paper have them."""

from dataclasses import fields

import pytest

from abmll.common import config
from abmll.common.errors import ConfigError
from abmll.common.presets import PRESETS, preset
from abmll.common.settings import Checked, pick

KINDS: list[type[Checked]] = [
    config.AdapterConfig,
    config.PromptConfig,
    config.TrainConfig,
    config.AdaptConfig,
    config.PredictConfig,
]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_made_of_real_and_valid_settings(name: str) -> None:
    known = {field.name for kind in KINDS for field in fields(kind)}
    assert preset(name).keys() <= known
    for kind in KINDS:
        pick(kind, preset(name))


@pytest.mark.parametrize(
    ("name", "beta", "gamma", "steps"), [("paper-v1", 5e-10, 1e-6, 10), ("paper-v3", 1e-8, 1e-8, 5)]
)
def test_published_values(name: str, beta: float, gamma: float, steps: int) -> None:
    learning, adapter = pick(config.LearningConfig, preset(name)), pick(config.AdapterConfig, preset(name))
    assert (learning.beta, learning.gamma) == (beta, gamma)
    assert (learning.gamma_shape, learning.gamma_rate, learning.prior_std) == (1.0, 0.01, 1.0)
    assert (learning.inner_steps, learning.per_device_train_batch_size) == (5, 2)
    assert (learning.learning_rate, learning.scale_learning_rate) == (1e-5, 1e-5)
    assert (learning.outer_learning_rate, learning.outer_scale_learning_rate) == (5e-5, 5e-5)
    assert (learning.lr_scheduler_type, learning.warmup_steps, learning.max_grad_norm) == ("constant", 0, 0.0)
    assert (learning.noise, learning.loss) == ("local", "tokens")
    assert (adapter.r, adapter.lora_alpha, adapter.space) == (8, 16.0, "output")
    assert 2 * adapter.init_log_sigma == -20.0  # log sigma^2(x) = s B' A' x - 20
    assert set(adapter.target_modules) == {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapter.layers_to_transform is None
    assert pick(config.PromptConfig, preset(name)).answer == "letter"
    assert pick(config.AdaptConfig, preset(name)) == config.AdaptConfig(steps=steps, batch_size=2)
    assert pick(config.PredictConfig, preset(name)).num_samples == 0  # at the posterior mean


def test_default_changes_nothing() -> None:
    assert preset("default") == {}


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown 'paper-v2'; Did you mean 'paper-v3'\? known are default, weights"):
        preset("paper-v2")
