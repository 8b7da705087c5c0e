"""Settings refuse what cannot be, by the field's name, before anything is loaded."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from abmll.common import config
from abmll.common.errors import ConfigError
from abmll.common.settings import Checked

GROUPS: list[type[Checked]] = [
    kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Checked) and kind != Checked
]


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_are_valid_and_explained(group: type[Checked]) -> None:
    group()
    assert all(field.metadata["help"] for field in fields(group))


REFUSED: list[tuple[type[Checked], str, Any, str]] = [
    (config.AdapterConfig, "r", 0, "a whole number of 1 or more"),
    (config.AdapterConfig, "r", -2, "a whole number of 1 or more"),
    (config.AdapterConfig, "r", 2.0, "a whole number of 1 or more"),
    (config.AdapterConfig, "r", True, "a whole number of 1 or more"),
    (config.AdapterConfig, "r", "8", "a whole number of 1 or more"),
    (config.WriteConfig, "num_answers", 0, "a whole number of 1 or more"),
    (config.WriteConfig, "max_new_tokens", 0, "a whole number of 1 or more"),
    (config.WriteConfig, "temperature", 0.0, "a finite number above 0"),
    (config.AdapterConfig, "lora_alpha", 0, "a finite number above 0"),
    (config.AdapterConfig, "lora_alpha", -16.0, "a finite number above 0"),
    (config.AdapterConfig, "target_modules", ["q_proj"], "a tuple of names"),
    (config.AdapterConfig, "target_modules", "q_proj", "a tuple of names"),
    (config.AdapterConfig, "target_modules", (), "a tuple of names"),
    (config.AdapterConfig, "target_modules", ("q_proj", ""), "a tuple of names"),
    (config.AdapterConfig, "layers_to_transform", 3, "none or a text"),
    (
        config.AdapterConfig,
        "space",
        "wieght",
        "'weight', 'output', 'factor', 'factor-a' or 'dropout'. Did you mean 'weight'?",
    ),
    (config.AdapterConfig, "dropout_rate", -0.1, "a finite number of 0 or more and below 1"),
    (config.AdapterConfig, "dropout_rate", 1.0, "a finite number of 0 or more and below 1"),
    (config.AdapterConfig, "sigma_rank", 0, "a whole number of 1 or more"),
    (config.AdapterConfig, "sigma_floor", -0.1, "a finite number of 0 or more"),
    (config.AdapterConfig, "init_log_sigma", float("inf"), "a finite number"),
    (config.PromptConfig, "answer", "number", "'letter' or 'text'"),
    (config.PromptConfig, "instruction", 1, "true or false"),
    (config.PromptConfig, "max_length", 0, "none or a whole number of 1 or more"),
    (config.LearningConfig, "method", "", "a text"),
    (config.LearningConfig, "inner_steps", 0, "a whole number of 1 or more"),
    (config.LearningConfig, "per_device_train_batch_size", 0, "a whole number of 1 or more"),
    (config.LearningConfig, "gradient_accumulation_steps", 0, "a whole number of 1 or more"),
    (config.LearningConfig, "learning_rate", -1e-4, "a finite number of 0 or more"),
    (config.LearningConfig, "scale_learning_rate", -1e-4, "a finite number of 0 or more"),
    (config.LearningConfig, "outer_learning_rate", float("nan"), "a finite number of 0 or more"),
    (config.LearningConfig, "outer_scale_learning_rate", -1e-4, "a finite number of 0 or more"),
    (config.LearningConfig, "weight_decay", -0.1, "a finite number of 0 or more"),
    (config.LearningConfig, "beta", -1e-6, "a finite number of 0 or more"),
    (config.LearningConfig, "gamma", -1e-6, "a finite number of 0 or more"),
    (config.LearningConfig, "prior_std", 0.0, "a finite number above 0"),
    (config.LearningConfig, "gamma_shape", 0.0, "a finite number above 0"),
    (config.LearningConfig, "gamma_rate", 0.0, "a finite number above 0"),
    (config.LearningConfig, "noise", "foo", "'local' or 'shared'"),
    (config.LearningConfig, "noise_rank", -1, "a whole number of 0 or more"),
    (config.LearningConfig, "loss", "token", "'options' or 'tokens'. Did you mean 'tokens'?"),
    (config.LearningConfig, "meta_batch", 0, "a whole number of 1 or more"),
    (config.LearningConfig, "inner_sgd_rate", -0.1, "a finite number of 0 or more"),
    (config.LearningConfig, "inner_sgd_scale_rate", -0.1, "a finite number of 0 or more"),
    (config.LearningConfig, "reptile_epsilon", 0.0, "a finite number above 0"),
    (config.LearningConfig, "num_demonstrations", 0, "a whole number of 1 or more"),
    (config.LearningConfig, "calibration_tasks", -1, "a whole number of 0 or more"),
    (config.LearningConfig, "calibration_examples", 0, "a whole number of 1 or more"),
    (config.LearningConfig, "lr_scheduler_type", "step", "'constant', 'linear' or 'cosine'"),
    (config.LearningConfig, "warmup_steps", -1, "a whole number of 0 or more"),
    (config.LearningConfig, "max_grad_norm", -1.0, "a finite number of 0 or more"),
    (config.LearningConfig, "seed", 0.5, "a whole number"),
    (config.ContinueConfig, "blob_prior_std", 0.0, "a finite number above 0"),
    (config.ContinueConfig, "blob_init_log_sigma", float("nan"), "a finite number"),
    (config.ContinueConfig, "blob_kl_weight", -1.0, "a finite number of 0 or more"),
    (config.ContinueConfig, "laplace_prior_precision", 0.0, "none or a finite number above 0"),
    (config.ContinueConfig, "ensemble_size", 1, "a whole number of 2 or more"),
    (config.ContinueConfig, "members_at_once", 0, "none or a whole number of 1 or more"),
    (config.ContinueConfig, "ensemble_spread", -0.1, "a finite number of 0 or more"),
    (config.ContinueConfig, "dropout_rate", -0.1, "a finite number of 0 or more and below 1"),
    (config.ContinueConfig, "dropout_rate", 1.5, "a finite number of 0 or more and below 1"),
    (config.RunConfig, "max_steps", 0, "a whole number of 1 or more"),
    (config.RunConfig, "save_steps", 0, "a whole number of 1 or more"),
    (config.RunConfig, "save_total_limit", 0, "a whole number of 1 or more"),
    (config.RunConfig, "report_to", "mlflow", "'none', 'tensorboard', 'wandb' or 'trackio'"),
    (config.RunConfig, "activation_cache_gb", -1.0, "a finite number of 0 or more"),
    (config.ActivationCacheConfig, "activation_cache_dir", "", "none or a text"),
    (config.ActivationCacheConfig, "activation_cache_disk_gb", -1.0, "a finite number of 0 or more"),
    (config.ValidationConfig, "eval_steps", 0, "none or a whole number of 1 or more"),
    (config.ValidationConfig, "eval_examples", 0, "a whole number of 1 or more"),
    (config.ValidationConfig, "eval_test_examples", 0, "none or a whole number of 1 or more"),
    (config.ValidationConfig, "eval_adapt_steps", -1, "a whole number of 0 or more"),
    (config.ValidationConfig, "metric_for_best_model", "loss", "'nll' or 'accuracy'"),
    (config.ValidationConfig, "early_stopping_patience", 0, "none or a whole number of 1 or more"),
    (config.ValidationConfig, "early_stopping_threshold", -0.1, "a finite number of 0 or more"),
    (config.TrainConfig, "output_dir", "", "a text"),
    (config.TrainConfig, "beta", -1.0, "a finite number of 0 or more"),
    (config.TrainConfig, "save_steps", 0, "a whole number of 1 or more"),
    (config.AdaptConfig, "steps", -1, "a whole number of 0 or more"),
    (config.AdaptConfig, "batch_size", 0, "a whole number of 1 or more"),
    (config.PredictConfig, "num_samples", -1, "a whole number of 0 or more"),
    (config.PredictConfig, "prediction_noise", "locl", "'local' or 'shared'. Did you mean 'local'?"),
    (config.PredictConfig, "prediction_noise_rank", -1, "a whole number of 0 or more"),
    (config.PredictConfig, "predictive", "linearised", "'samples' or 'linearized'. Did you mean 'linearized'?"),
    (config.EvaluateConfig, "adapt_examples", 0, "none or a whole number of 1 or more"),
    (config.EvaluateConfig, "test_examples", -1, "none or a whole number of 1 or more"),
    (config.EvaluateConfig, "batch_size", 0, "a whole number of 1 or more"),
    (config.EstimateConfig, "model_config", "", "a text"),
    (config.EstimateConfig, "sequence_length", 1, "a whole number of 2 or more"),
    (config.EstimateConfig, "option_tokens", 0, "a whole number of 1 or more"),
    (config.EstimateConfig, "attention", "flash", "'sdpa' or 'eager'"),
    (config.EstimateConfig, "gpu", "", "a text"),
    (config.EstimateConfig, "peak_tflops", 0.0, "none or a finite number above 0"),
    (config.EstimateConfig, "efficiency", 0.0, "a finite number above 0"),
    (config.TableConfig, "labels", (), "none or a tuple of names"),
    (config.TableConfig, "max_examples", 3, "a whole number of 4 or more"),
    (config.ModelConfig, "model", "", "a text"),
    (config.ModelConfig, "dtype", "fp16", "'auto', 'bf16' or 'fp32'"),
    (config.ModelConfig, "device_map", "cuda", "none or 'auto', 'balanced' or 'sequential'"),
    (config.PlaceConfig, "dtype", "f32", "'auto', 'bf16' or 'fp32'"),
]


@pytest.mark.parametrize(("group", "name", "value", "wanted"), REFUSED)
def test_impossible_values_are_refused_by_name(group: type[Checked], name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        group(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}; use {wanted}")
    assert "\n" not in str(caught.value)


def test_every_bounded_or_chosen_setting_has_a_case() -> None:
    tested = {name for _, name, _, _ in REFUSED}
    free = {
        "list_options",
        "chat_template",
        "length_normalize",
        "use_calibration",
        "load_best_model_at_end",
        "device",
        "do_sample",
        "gradient_checkpointing",
        "compile",
        "load_in_4bit",
        "load_in_8bit",
        "load_in_int8_torchao",
        "shard_base",
        "text",
        "label",
        "multi_label",
        "ordinal",
    }  # plain true or false, and text
    assert {field.name for group in GROUPS for field in fields(group)} - tested == free


ACCEPTED: list[tuple[type[Checked], dict[str, Any]]] = [
    (config.AdapterConfig, {"lora_alpha": 16, "target_modules": ("all-linear",), "layers_to_transform": "top-2"}),
    (config.LearningConfig, {"beta": 0, "gamma": 0.0, "learning_rate": 0, "seed": -3, "max_grad_norm": 1}),
    (config.EvaluateConfig, {"adapt_examples": None, "test_examples": 1, "steps": 0, "num_samples": 0}),
    (config.PromptConfig, {"max_length": None}),
    (config.RunConfig, {"activation_cache_gb": 0}),
]


@pytest.mark.parametrize(("group", "values"), ACCEPTED)
def test_values_at_the_bounds_are_accepted(group: type[Checked], values: dict[str, Any]) -> None:
    made = group(**values)
    assert {name: getattr(made, name) for name in values} == values


def test_checking_needs_no_torch() -> None:
    code = "import sys, abmll.common.config; sys.exit(bool({'torch', 'numpy', 'transformers'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
