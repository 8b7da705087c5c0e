import pytest

from abmll.common.config import AdapterConfig
from abmll.common.errors import ConfigError
from abmll.posterior import OutputSpace, WeightSpace, build_space


def test_settings_reach_their_space():
    weight = build_space(AdapterConfig(r=4, lora_alpha=8.0, sigma_rank=3, sigma_floor=0.1, init_log_sigma=-2.0))
    assert weight == WeightSpace(2.0, 3, 0.1, -2.0)
    assert build_space(AdapterConfig(r=4, lora_alpha=2.0, space="output", init_log_sigma=-10.0)) == OutputSpace(
        0.5, -10.0
    )


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": -3}, "r is -3"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0"),
        ({"space": "x"}, "space is 'x'"),
    ],
)
def test_impossible_settings_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        build_space(AdapterConfig(**settings))
