"""Between dataclasses and one flat mapping."""

import json

import pytest
import yaml

from abmll.common.config import AdaptConfig, AdapterConfig, LearningConfig, PromptConfig, TrainConfig
from abmll.common.errors import ConfigError
from abmll.common.settings import flatten, pick, refuse_unknown


def test_flat_settings_survive_yaml_and_json() -> None:
    configs = (AdapterConfig(target_modules=("a", "b")), PromptConfig(), TrainConfig(beta=5e-10, learning_rate=1e-5))
    flat = flatten(*configs)
    for again in (yaml.safe_load(yaml.safe_dump(flat)), json.loads(json.dumps(flat))):
        assert again == flat
        assert tuple(pick(type(config), again) for config in configs) == configs


def test_pick_takes_its_own_fields_and_leaves_the_rest() -> None:
    settings = flatten(TrainConfig(seed=3, max_steps=7)) | {"unknown": 1}
    assert pick(LearningConfig, settings) == LearningConfig(seed=3)
    assert pick(AdaptConfig, {}) == AdaptConfig()


def test_pick_refuses_what_its_dataclass_refuses() -> None:
    with pytest.raises(ConfigError, match="r is -1; use a whole number of 1 or more"):
        pick(AdapterConfig, {"r": -1})


def test_unknown_settings_name_the_nearest() -> None:
    refuse_unknown((AdaptConfig, AdapterConfig), {"steps": 1, "r": 2}, "here")
    with pytest.raises(ConfigError, match=r"here: unknown setting 'lora_alhpa'. Did you mean 'lora_alpha'\?"):
        refuse_unknown((AdaptConfig, AdapterConfig), {"steps": 1, "lora_alhpa": 2}, "here")
