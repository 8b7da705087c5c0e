"""AbmllModel and TaskPosterior: adapting, keeping, and how little it costs."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from abmll import AbmllModel, MetaTrainer, TaskPosterior, TrainConfig
from abmll.common.config import AdapterConfig, LearningConfig, ModelConfig, PromptConfig
from abmll.common.errors import CheckpointError, ConfigError, DataError, TrainingError
from abmll.language.activation_cache import ActivationCache
from abmll.language.base import load_base
from abmll.language.scorer import OptionScorer
from abmll.model.prediction import Prediction
from abmll.tasks import Example, Task
from abmll.training.outer_step import mean_log_sigma
from tests.language.folders import flip_bit

STAND_INS = FakeTensor, FunctionalTensor  # which a compiled step of an earlier test may leave: they have no memory


def same_prediction(one: Prediction, other: Prediction) -> bool:
    pairs = [(one.probs, other.probs), (one.entropy, other.entropy), (one.expected_entropy, other.expected_entropy)]
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_from_base_refuses_unknown_adapter_settings(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"AbmllModel.from_base: unknown setting 'lora_rank'"):
        AbmllModel.from_base(str(tiny_llama), lora_rank=3)
    with pytest.raises(ConfigError, match="r is 0; use a whole number of 1 or more"):
        AbmllModel.from_base(str(tiny_llama), r=0)


def test_from_base_takes_target_modules_as_list_or_name(tiny_llama: Path) -> None:
    assert AbmllModel.from_base(str(tiny_llama), target_modules=["q_proj"]).scorer.adapter_config.r == 8
    assert len(AbmllModel.from_base(str(tiny_llama), target_modules="all-linear").scorer.shapes) == 14


def test_a_seed_determines_theta(tiny_llama: Path) -> None:
    def mean_A(seed: int) -> torch.Tensor:
        return AbmllModel.from_base(str(tiny_llama), seed=seed).theta.mean_tensors()[0]

    assert torch.equal(mean_A(1), mean_A(1))
    assert not torch.equal(mean_A(1), mean_A(2))


def test_adapting_is_a_pure_function_of_its_seed(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    def phi(seed: int) -> list[torch.Tensor]:
        adapted = tiny_model.adapt(toy_tasks[0].train[:5], steps=3, batch_size=2, seed=seed).phi
        return [tensor for _, tensor in adapted.named_tensors()]

    assert all(torch.equal(one, other) for one, other in zip(phi(1), phi(1), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(phi(1), phi(2), strict=True))


def test_examples_that_are_met_again_are_read_by_the_lower_blocks_once(
    tiny_model: AbmllModel, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = tiny_model.scorer.lower_blocks.rows
    monkeypatch.setattr(
        tiny_model.scorer.lower_blocks, "rows", lambda missing: read.append(len(missing)) or rows(missing)
    )
    tiny_model.adapt(toy_tasks[0].train[:5], steps=2, batch_size=2)
    assert sum(read) == 0
    tiny_model.continue_as("abmll-mixture", ensemble_size=3).adapt(toy_tasks[0].train[:5], steps=4, batch_size=2)
    assert sum(read) == 5


def test_a_activation_cache_changes_nothing_but_rounding(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    cache = ActivationCache(10**8)
    examples = toy_tasks[0].train[:5]
    without = tiny_model.adapt(examples, steps=3, batch_size=2)  # too few are met again for a cache of its own
    for kept in (0, 5):
        assert len(cache.kept) == kept
        found = tiny_model.adapt(examples, steps=3, batch_size=2, cache=cache)
        for (_, one), (_, other) in zip(found.phi.named_tensors(), without.phi.named_tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_adapting_leaves_theta_bit_for_bit(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.theta.named_tensors()}
    posterior = tiny_model.adapt(toy_tasks[0].train, steps=3)
    posterior.predict(toy_tasks[0].test, samples=2)
    for name, tensor in tiny_model.theta.named_tensors():
        assert torch.equal(tensor, before[name])
        assert not torch.equal(dict(posterior.phi.named_tensors())[name], before[name])


def test_adapting_is_refused_without_answers(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    with pytest.raises(DataError, match="task 'new': no examples to adapt to"):
        tiny_model.adapt([], task_name="new")
    unknown = Example("17", "ab", ("yes", "no"), None)
    with pytest.raises(DataError, match="task 'new', example '17': has no answer to learn from"):
        tiny_model.adapt([*toy_tasks[0].train, unknown], task_name="new")


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("batch_size", 0)])
def test_adapting_refuses_impossible_numbers(
    tiny_model: AbmllModel, toy_tasks: list[Task], name: str, value: int
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {value}; use a whole number"):
        tiny_model.adapt(toy_tasks[0].train, **{name: value})  # pyright: ignore[reportArgumentType]


def test_no_steps_leave_phi_at_theta(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    posterior = tiny_model.adapt(toy_tasks[0].train, steps=0)
    before = tiny_model.theta_as_posterior("task")
    for (_, one), (_, other) in zip(posterior.phi.named_tensors(), before.phi.named_tensors(), strict=True):
        assert torch.equal(one, other)


def test_a_broken_adaptation_names_task_and_step(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    tiny_model.learned(tiny_model.theta, LearningConfig(learning_rate=1e15), 1)
    with pytest.raises(TrainingError, match=r"^adapting to 'new', step 3: the loss term '\w+' is (nan|inf)"):
        tiny_model.adapt(toy_tasks[0].train, task_name="new")


def test_untrained_standard_deviations_are_not_sampled(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    tiny_model.learned(tiny_model.theta, LearningConfig(method="structured-lora"), 1)
    posterior = tiny_model.adapt(toy_tasks[0].train, steps=2)
    questions = toy_tasks[0].test
    assert same_prediction(posterior.predict(questions, samples=4), posterior.predict(questions, samples=0))


def test_prediction_defaults_to_shared_samples(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    posterior, questions = tiny_model.adapt(toy_tasks[0].train, steps=2), toy_tasks[0].test
    assert same_prediction(posterior.predict(questions), posterior.predict(questions, samples=4, noise="shared"))
    others: list[dict[str, Any]] = [{"samples": 0}, {"samples": 5}, {"noise": "local"}, {"seed": 1}]
    for other in others:
        assert not same_prediction(posterior.predict(questions), posterior.predict(questions, **other))


@pytest.mark.parametrize(
    ("how", "words"),
    [({"samples": -1}, "num_samples is -1; use"), ({"noise": "foo"}, "prediction_noise is 'foo'; use 'local' or")],
)
def test_prediction_refuses_what_cannot_be(
    tiny_model: AbmllModel, toy_tasks: list[Task], how: dict[str, Any], words: str
) -> None:
    posterior = tiny_model.theta_as_posterior("task")
    with pytest.raises(ConfigError, match=words):
        posterior.predict(toy_tasks[0].test, **how)
    with pytest.raises(DataError, match="task 'task': no examples to predict"):
        posterior.predict([])


# -- memory -------------------------------------------------------------------------------------------------------


def live() -> tuple[int, int]:
    """Number and bytes of all tensors that anything still holds, without the collector's help."""
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    tensors = [one for one in found if not issubclass(type(one), STAND_INS)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return len(tensors), sum(storages.values())


def test_each_adapted_task_costs_one_adapter(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    examples = toy_tasks[0].train[:4]
    adapter_tensors = list(tiny_model.theta.named_tensors())
    adapter_bytes = sum(tensor.nbytes for _, tensor in adapter_tensors)
    tiny_model.adapt(examples, steps=2).predict(examples)  # whatever is made once
    gc.collect()
    gc.disable()  # nothing may wait for the collector
    try:
        tensors, num_bytes = live()
        posteriors = []
        for count in range(1, 6):
            posteriors.append(tiny_model.adapt(examples, task_name=str(count), steps=2))
            posteriors[-1].predict(examples, samples=2)
            answers = posteriors[-1].prequential
            evidence = [answers.log_probs, answers.answers]  # a number an option and one an example
            more = len(adapter_tensors) + len(evidence), adapter_bytes + sum(tensor.nbytes for tensor in evidence)
            del answers, evidence
            assert live() == (tensors + count * more[0], num_bytes + count * more[1])
        posteriors.clear()
        assert live() == (tensors, num_bytes)
    finally:
        gc.enable()


def test_all_posteriors_share_one_language_model(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    one, other = (tiny_model.adapt(task.train, steps=1) for task in toy_tasks[:2])
    assert one.scorer is other.scorer is tiny_model.scorer


# -- on disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> tuple[TaskPosterior, Path]:
    posterior = tiny_model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=3)
    posterior.save_pretrained(tmp_path / "posterior")
    return posterior, tmp_path / "posterior"


@pytest.mark.parametrize("samples", [0, 3])
def test_a_saved_posterior_predicts_the_same(
    saved: tuple[TaskPosterior, Path], toy_tasks: list[Task], samples: int
) -> None:
    posterior, folder = saved
    questions = toy_tasks[0].test
    wanted = posterior.predict(questions, samples=samples)
    afresh = TaskPosterior.from_pretrained(folder)
    shared = TaskPosterior.from_pretrained(folder, scorer=posterior.scorer)
    for loaded in (afresh, shared):
        assert same_prediction(loaded.predict(questions, samples=samples), wanted)
        assert (loaded.task_name, loaded.is_posterior) == ("toy", True)
        assert loaded.settings == posterior.settings | posterior.scorer.settings()
    assert shared.scorer is posterior.scorer


def test_a_posterior_is_two_files_and_a_manifest(saved: tuple[TaskPosterior, Path]) -> None:
    posterior, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "phi.safetensors", "posterior.json"]
    with pytest.raises(Exception, match="exists already"):
        posterior.save_pretrained(folder)
    posterior.save_pretrained(folder, overwrite=True)


@pytest.fixture
def other_llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """The model with one bit changed of one weight."""
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    flip_bit(folder, 20)
    return folder


def test_a_posterior_refuses_another_base(saved: tuple[TaskPosterior, Path], other_llama: Path) -> None:
    folder = saved[1]
    with pytest.raises(CheckpointError, match=f"{folder}: was learned on .* has other weights; name the right one"):
        TaskPosterior.from_pretrained(folder, model=ModelConfig(str(other_llama)))


@pytest.mark.parametrize(
    ("adapter", "prompt", "words"),
    [
        ({"r": 3}, {}, "was learned with r = 2, the scorer has 3"),
        ({"lora_alpha": 4.0}, {}, r"was learned with lora_alpha = 16\.0, the scorer has 4\.0"),
        ({}, {"instruction": True}, "was learned with instruction = False, the scorer has True"),
    ],
)
def test_a_shared_scorer_must_have_the_same_settings(
    saved: tuple[TaskPosterior, Path],
    tiny_llama: Path,
    adapter: dict[str, Any],
    prompt: dict[str, Any],
    words: str,
) -> None:
    posterior, folder = saved
    base = load_base(ModelConfig(str(tiny_llama)), lambda line: None)
    config: AdapterConfig = replace(posterior.scorer.adapter_config, **adapter)
    other = OptionScorer(base, config, replace(posterior.scorer.prompt, **prompt))
    with pytest.raises(CheckpointError, match=words):
        TaskPosterior.from_pretrained(folder, scorer=other)


@pytest.mark.parametrize("name", ["phi.safetensors", "posterior.json", "manifest.json"])
def test_a_damaged_posterior_is_refused(saved: tuple[TaskPosterior, Path], name: str) -> None:
    path = saved[1] / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=f"{path}: .*; adapt to the task again"):
        TaskPosterior.from_pretrained(saved[1])


@pytest.fixture
def run(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> Path:
    config = TrainConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        inner_steps=2,
        per_device_train_batch_size=2,
        beta=2e-6,
    )
    MetaTrainer(tiny_model, toy_tasks, config).train()
    return tmp_path / "run"


def test_a_run_comes_back_as_the_model_it_left(run: Path, tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    loaded = AbmllModel.from_pretrained(run)
    assert loaded.learning == tiny_model.learning
    assert type(loaded.learning) is type(tiny_model.learning) is LearningConfig
    assert loaded.learning.beta == 2e-6
    assert (loaded.num_tasks, tiny_model.num_tasks) == (3, 3)
    for (_, one), (_, other) in zip(loaded.theta.named_tensors(), tiny_model.theta.named_tensors(), strict=True):
        assert torch.equal(one, other)
    predictions = [
        model.adapt(toy_tasks[0].train[:4], steps=2).predict(toy_tasks[0].test, samples=2)
        for model in (loaded, tiny_model)
    ]
    assert same_prediction(*predictions)


def test_a_run_refuses_another_base(run: Path, other_llama: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint-2: was learned on .* has other weights"):
        AbmllModel.from_pretrained(run, model=ModelConfig(str(other_llama)))


def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_serves_once_it_is_gone(run: Path) -> None:
    broken = run / "checkpoint-2" / "theta.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{broken}: .*; delete the folder to fall back on an older one"):
        AbmllModel.from_pretrained(run)
    shutil.rmtree(run / "checkpoint-2")
    AbmllModel.from_pretrained(run)


def test_log_sigma_weighs_layers_not_stacks(tiny_llama: Path) -> None:
    """Two layers of one shape and one of another: the mean is over the three."""
    model = AbmllModel.from_base(
        str(tiny_llama), target_modules=["q_proj", "o_proj", "up_proj"], layers_to_transform="1", prompt=PromptConfig()
    )
    scales = {"32x32": -1.0, "48x32": -4.0}
    for shape, value in scales.items():
        model.theta.stacks[shape].scale_A.fill_(value)
        model.theta.stacks[shape].scale_B.fill_(0.0)
    assert mean_log_sigma(model.scorer.space, model.theta) == pytest.approx(-2.0)
