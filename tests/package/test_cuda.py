"""What a CPU computes, a CUDA device computes too; every method learns there. Skipped where there is no such device."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.checkpoint import PREFIX
from abmll.common.config import LearningConfig, PredictConfig, PromptConfig
from abmll.methods import REGISTRY, find_rule
from abmll.posterior.calibration import CalibrationPrior
from abmll.tasks import Task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PROMPT = PromptConfig(instruction=False, list_options=False, answer="text")
DEVICES = ("cpu", "cuda")
RECORDED, SKIPPED = "cudagraph_recorded_non_static_inputs", "cudagraph_skips"  # what torch counts of CUDA graphs
TRAINED = [name for name, rule in REGISTRY.items() if rule.is_trained]


def make(folder: Path, device: str, **adapter: Any) -> AbmllModel:
    """The tiny Llama in full precision, its adapter away from zero and the same on every device."""
    modules = ["q_proj", "v_proj", "up_proj"]
    own: dict[str, Any] = {"r": 2, "layers_to_transform": "1", "target_modules": modules, **adapter}
    model = AbmllModel.from_base(str(folder), prompt=PROMPT, device=device, dtype="fp32", **own)
    generator = torch.Generator().manual_seed(4)
    state = {name: 0.1 * torch.randn(one.shape, generator=generator) for name, one in model.theta.state_dict().items()}
    model.theta.load_state_dict({name: one.to(device) for name, one in state.items()}, "made up")
    return model


@pytest.mark.parametrize("adapter", [{}, {"space": "output"}, {"layers_to_transform": None}])
def test_both_devices_learn_and_predict_the_same(
    tiny_llama: Path, toy_tasks: list[Task], adapter: dict[str, Any]
) -> None:
    """Without noise: plain steps, the posterior's mean and its linearized predictive."""
    found = []
    for device in DEVICES:
        model = make(tiny_llama, device, **adapter)
        model.learned(model.theta, LearningConfig(method="structured-lora", learning_rate=1e-2), 3)
        posterior = model.adapt(toy_tasks[0].train[:6], steps=4, batch_size=2)
        assert all(one.device.type == device for one in posterior.phi.mean_tensors())
        mean = posterior.predict(toy_tasks[0].test[:8])
        model.learned(model.theta, LearningConfig(), 3, CalibrationPrior(0.4, 0.5, 0.6))
        linear = model.theta_as_posterior("toy").predict(toy_tasks[0].test[:8], PredictConfig(predictive="linearized"))
        found.append((mean.probs.cpu(), linear.probs.cpu(), linear.mutual_information.cpu()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("space", ["weight", "output"])
def test_activations_that_are_computed_anew(tiny_llama: Path, toy_tasks: list[Task], space: str) -> None:
    """A GPU's backward pass runs in a thread of its own, and its generators have states of another kind."""
    learned = []
    for checkpointed in (False, True):
        model = make(tiny_llama, "cuda", space=space, layers_to_transform=None)
        model.learned(model.theta, LearningConfig(), 3)
        if checkpointed:
            model.gradient_checkpointing_enable()
        learned.append(model.adapt(toy_tasks[0].train[:6], steps=2, batch_size=3).phi)
    for (_, one), (_, other) in zip(*(phi.named_tensors() for phi in learned), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # what a compiler thinks of the device
def test_cuda_graphs_learn_what_plain_graphs_do(tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> None:
    """Of each graph one call warms it up, one records it, and the others replay it; a step in training is of two."""
    pytest.importorskip("triton")
    steps: dict[str, Any] = {"inner_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    learned = []
    for backend in ("eager", "inductor"):
        model = make(tiny_llama, "cuda")
        model.compile(backend)
        before = counters["inductor"].copy()
        config = TrainConfig(
            output_dir=str(tmp_path / backend), compile=True, calibration_tasks=0, max_steps=3, **steps
        )
        MetaTrainer(model, toy_tasks, config).train()
        posterior = model.adapt(toy_tasks[0].train[:6], steps=6, batch_size=3)
        learned.append([tensor for one in (model.theta, posterior.phi) for _, tensor in one.named_tensors()])
        recorded, skipped = (counters["inductor"][name] - before[name] for name in (RECORDED, SKIPPED))
        assert (recorded > 0, skipped) == (backend == "inductor", 0)
    for one, other in zip(*learned, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rank", [0, 8])
def test_both_devices_sample_the_same_law(tiny_llama: Path, toy_tasks: list[Task], rank: int) -> None:
    how = PredictConfig(num_samples=800, prediction_noise="shared", prediction_noise_rank=rank)
    one, other = (make(tiny_llama, device).theta_as_posterior("toy") for device in DEVICES)
    probs = [each.predict(toy_tasks[0].test[:4], how).probs.cpu() for each in (one, other)]
    torch.testing.assert_close(probs[0], probs[1], atol=6e-3, rtol=0)
    at_mean = one.predict(toy_tasks[0].test[:4], how, samples=0)
    assert (at_mean.probs - probs[0]).abs().max() > 1e-2  # a device that drew nothing would be told


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_trains_adapts_and_goes_on(
    tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path, method: str
) -> None:
    """An interrupted run ends where one that was not interrupted does."""
    space = find_rule(method).space
    model = make(tiny_llama, "cuda", **({} if space is None else {"space": space}))
    settings: dict[str, Any] = {"inner_steps": 2, "per_device_train_batch_size": 2, "calibration_tasks": 2}
    config = TrainConfig(method=method, output_dir=str(tmp_path), max_steps=4, save_steps=2, **settings)
    MetaTrainer(model, toy_tasks, config).train()
    whole = model.theta.state_dict()
    shutil.rmtree(tmp_path / f"{PREFIX}4")
    MetaTrainer(model, toy_tasks, config).train(resume=True)
    for name, tensor in model.theta.state_dict().items():
        torch.testing.assert_close(tensor, whole[name])
    posterior = model.adapt(toy_tasks[0].train[:6], steps=2, batch_size=2)
    assert posterior.predict(toy_tasks[0].test[:8], samples=2).probs.isfinite().all()


@pytest.mark.parametrize("method", [name for name, rule in REGISTRY.items() if rule.base_method])
def test_every_method_continues_a_run(tiny_llama: Path, toy_tasks: list[Task], method: str) -> None:
    if method == "laplace":
        pytest.importorskip("laplace")
    model = make(tiny_llama, "cuda")
    other = find_rule(method).base_method
    assert other is not None
    model.learned(model.theta, LearningConfig(method=other), 3)
    posterior = model.continue_as(method).adapt(toy_tasks[0].train[:6], steps=2, batch_size=2)
    assert posterior.predict(toy_tasks[0].test[:8], samples=2).probs.isfinite().all()
