"""From a run of regular LoRA to blob, laplace, ensemble and mc-dropout: adapting, predicting, keeping, exporting."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from abmll import AbmllModel, TaskPosterior
from abmll.common.config import ContinuedConfig, LearningConfig
from abmll.common.errors import CheckpointError, ConfigError
from abmll.model.interchange import average_update
from abmll.model.prediction import Prediction, entropy
from abmll.tasks import Task

# One of laplace-torch's own dependencies (asdl) still compiles a function by the old way while it is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    # PEFT asks transformers by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

METHODS = ["blob", "laplace", "ensemble", "mc-dropout"]


@pytest.fixture
def regular(tiny_model: AbmllModel) -> AbmllModel:
    """What a run of regular LoRA leaves, B away from zero."""
    theta = tiny_model.theta.clone()
    generator = torch.Generator().manual_seed(3)
    for stack in theta.stacks.values():
        stack.mean_B.copy_(0.1 * torch.randn(stack.mean_B.shape, generator=generator))
    tiny_model.learned(theta, LearningConfig(method="regular-lora", learning_rate=2e-2), 3)
    return tiny_model


def same(one: Prediction, other: Prediction) -> bool:
    pairs = [(one.probs, other.probs), (one.entropy, other.entropy), (one.expected_entropy, other.expected_entropy)]
    return all(torch.allclose(mine, theirs, atol=1e-6) for mine, theirs in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_starts_at_the_run_s_means(regular: AbmllModel, toy_tasks: list[Task], method: str) -> None:
    before = regular.theta_as_posterior("toy").predict(toy_tasks[0].test)
    model = regular.continue_as(method)
    assert model.learning.method == method
    assert model.learning.learning_rate == 2e-2
    assert isinstance(model.learning, ContinuedConfig)
    assert (regular.learning.method, model.num_tasks) == ("regular-lora", 3)
    for one, other in zip(model.theta.mean_tensors(), regular.theta.mean_tensors(), strict=True):
        assert torch.equal(one, other)
    assert same(model.theta_as_posterior("toy").predict(toy_tasks[0].test, samples=0), before)
    assert same(regular.theta_as_posterior("toy").predict(toy_tasks[0].test), before)
    weights = [{one.data_ptr() for one in each.scorer.base.model.parameters()} for each in (model, regular)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("method", METHODS)
def test_what_it_learns_is_kept_and_differs_from_the_mean(
    regular: AbmllModel, toy_tasks: list[Task], tmp_path: Path, method: str
) -> None:
    if method == "laplace":
        pytest.importorskip("laplace")
    model = regular.continue_as(
        method, ensemble_size=3, ensemble_spread=0.5, dropout_rate=0.3, blob_init_log_sigma=-2.0
    )
    posterior = model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=3)
    again = model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=3)
    questions = toy_tasks[0].test[:8]
    prediction = posterior.predict(questions, samples=3)
    assert same(again.predict(questions, samples=3), prediction)
    assert prediction.mutual_information.max() > 1e-6
    assert len(posterior.members) == (3 if method == "ensemble" else 1)

    posterior.save_pretrained(tmp_path / "kept")
    for loaded in (
        TaskPosterior.from_pretrained(tmp_path / "kept"),
        TaskPosterior.from_pretrained(tmp_path / "kept", scorer=model.scorer),
    ):
        assert same(loaded.predict(questions, samples=3), prediction)
        assert loaded.settings["method"] == method
    if method != "ensemble":
        linearized = posterior.predict(questions, predictive="linearized")
        assert linearized.mutual_information.max() > 1e-6
        assert not same(linearized, prediction)


@pytest.fixture
def ensemble(regular: AbmllModel, toy_tasks: list[Task]) -> TaskPosterior:
    model = regular.continue_as("ensemble", ensemble_size=3, ensemble_spread=0.5)
    return model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=3)


def test_an_ensemble_is_the_average_of_its_members(ensemble: TaskPosterior, toy_tasks: list[Task]) -> None:
    """As TaskPosteriors of their own, and as the definitions of entropy and expected entropy say."""
    questions = toy_tasks[0].test
    singles = [TaskPosterior(ensemble.scorer, (phi,), "toy", False, {}).predict(questions) for phi in ensemble.members]
    mixed = ensemble.predict(questions)
    probs = sum(single.probs for single in singles) / 3
    torch.testing.assert_close(mixed.probs, probs)
    torch.testing.assert_close(mixed.entropy, entropy(mixed.probs))
    torch.testing.assert_close(mixed.expected_entropy, sum(single.entropy for single in singles) / 3)
    assert not torch.allclose(singles[0].probs, singles[1].probs)


def test_members_differ_by_the_order_of_the_data_alone(regular: AbmllModel, toy_tasks: list[Task]) -> None:
    """The first in the order of the run's own method."""
    examples = toy_tasks[0].train[:6]
    model = regular.continue_as("ensemble", ensemble_size=3, ensemble_spread=0.0)
    members = model.adapt(examples, steps=3, seed=5).adapters
    plain = regular.adapt(examples, steps=3, seed=5).phi
    tensors = [member.mean_tensors()[0] for member in members]
    assert torch.equal(tensors[0], plain.mean_tensors()[0])
    assert not any(torch.equal(tensors[one], tensors[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_an_ensemble_exports_one_member(ensemble: TaskPosterior, tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="has 3 adapters; name one with member"):
        _ = ensemble.phi
    with pytest.raises(ConfigError, match="member is 3; this posterior has 3, counted from 0"):
        ensemble.export_merged(tmp_path / "merged", member=3)
    assert not list(tmp_path.iterdir())
    ensemble.export_peft(tmp_path / "peft", member=1)
    wrapped = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "peft")
    found = {name: tensor for name, tensor in wrapped.named_parameters() if "lora_" in name}
    for name, layer in ensemble.adapters[1].by_layer().items():
        assert torch.equal(found[f"base_model.model.{name}.lora_A.default.weight"], layer.mean_A)
        assert torch.equal(found[f"base_model.model.{name}.lora_B.default.weight"], layer.mean_B)


@torch.no_grad()
def test_an_ensemble_exports_the_average_of_its_members_updates(
    ensemble: TaskPosterior, tmp_path: Path, tiny_llama: Path
) -> None:
    """PEFT's reading of it, and the merged weights: W0 plus what the average adapter adds."""
    ensemble.export_peft(tmp_path / "peft")
    ensemble.export_merged(tmp_path / "merged")
    bare = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=ensemble.scorer.base.model.dtype).float()
    wanted = {name: tensor.clone() for name, tensor in bare.state_dict().items()}
    for name, layer in average_update(ensemble.adapters)[0].by_layer().items():
        wanted[f"{name}.weight"] += ensemble.scorer.space.scaling * layer.mean_B @ layer.mean_A
    for found in (
        peft.PeftModel.from_pretrained(bare, tmp_path / "peft").merge_and_unload(),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    ):
        for name, tensor in found.state_dict().items():
            torch.testing.assert_close(tensor, wanted[name].to(tensor.dtype))


def test_a_member_that_is_missing_is_named(ensemble: TaskPosterior, tmp_path: Path) -> None:
    ensemble.save_pretrained(tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").glob("*.safetensors")} == {
        "phi.safetensors",
        "phi_2.safetensors",
        "phi_3.safetensors",
    }
    (tmp_path / "kept" / "phi_3.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"phi_3.safetensors: .*adapt to the task again"):
        TaskPosterior.from_pretrained(tmp_path / "kept")


def test_a_posterior_of_an_older_version_fits_a_scorer_with_new_settings_at_their_defaults(
    regular: AbmllModel, toy_tasks: list[Task], tmp_path: Path
) -> None:
    posterior = regular.adapt(toy_tasks[0].train[:6], steps=1)
    known = regular.scorer.settings
    older = {name: value for name, value in known().items() if name != "dropout_rate"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regular.scorer, "settings", lambda: older)
        posterior.save_pretrained(tmp_path / "kept")
    loaded = TaskPosterior.from_pretrained(tmp_path / "kept", scorer=regular.scorer)
    assert "dropout_rate" not in loaded.settings


@pytest.mark.parametrize(
    ("own", "method", "words"),
    [
        ("regular-lora", "reptile", "'reptile' does not continue another method's run; those that do are blob, lap"),
        ("maml", "reptile", "'reptile' does not continue another method's run; no method continues one of 'maml'"),
        ("abmll", "reptile", "'reptile' does not continue another method's run; those that do are abmll-mixture"),
        ("abmll", "blob", "'blob' continues a run of 'regular-lora', and this one is of 'abmll'; train that one fi"),
        ("regular-lora", "blub", "unknown 'blub'; Did you mean 'blob'"),
    ],
)
def test_what_does_not_continue_is_refused(tiny_model: AbmllModel, own: str, method: str, words: str) -> None:
    tiny_model.learned(tiny_model.theta, LearningConfig(method=own), 1)
    with pytest.raises(ConfigError, match=f"^method: {words}"):
        tiny_model.continue_as(method)


def test_settings_are_checked(regular: AbmllModel) -> None:
    with pytest.raises(ConfigError, match=r"AbmllModel\.continue_as: unknown setting 'ensemble_siz'"):
        regular.continue_as("ensemble", ensemble_siz=3)
    with pytest.raises(ConfigError, match="ensemble_size is 1; use a whole number of 2 or more"):
        regular.continue_as("ensemble", ensemble_size=1)
    with pytest.raises(ConfigError, match=r"dropout_rate is 1\.5; use a finite number of 0 or more and below 1"):
        regular.continue_as("mc-dropout", dropout_rate=1.5)


def test_its_own_method_with_another_setting(regular: AbmllModel, toy_tasks: list[Task]) -> None:
    model = regular.continue_as("regular-lora", learning_rate=0.0)
    assert model.scorer is regular.scorer
    phi = model.adapt(toy_tasks[0].train[:4], steps=2).phi
    for one, other in zip(phi.mean_tensors(), regular.theta.mean_tensors(), strict=True):
        assert torch.equal(one, other)
