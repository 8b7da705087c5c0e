"""A training whose steps are compiled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TaskPosterior
from abmll.common.errors import ConfigError
from abmll.tasks import Task

MakeTrainer = Callable[..., MetaTrainer]

# torch's own tracing makes one where an autograd.Function is met.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def test_it_goes_on_to_the_bit_and_only_with_its_setting(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    tiny_model.compile("eager")
    short = {"compile": True, "calibration_tasks": 0}
    result = make_trainer(max_steps=2, **short).train()
    assert result.gradient_steps == 2 * 2 + 2  # the outer steps' too
    whole = [tensor.clone() for _, tensor in tiny_model.theta.named_tensors()]

    make_trainer(max_steps=1, **short).train(overwrite=True)
    make_trainer(max_steps=2, **short).train(resume=True)
    assert all(map(torch.equal, whole, [tensor for _, tensor in tiny_model.theta.named_tensors()]))

    tiny_model.scorer.compilation = None
    line = "--resume with compile = False, but the run has compile = True; use the run's settings"
    with pytest.raises(ConfigError, match=line):
        make_trainer(max_steps=4, **short | {"compile": False}).train(resume=True)


def test_a_run_says_that_its_steps_are_compiled(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    tiny_model.compile("eager")
    with pytest.raises(ConfigError, match=r"^compile: this model's steps are compiled, which the run's settings"):
        make_trainer()


def test_the_setting_alone_compiles(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    make_trainer(compile=True)
    assert tiny_model.scorer.compilation is not None
    assert tiny_model.scorer.compilation.backend == "inductor"
    twin = tiny_model.on_twin().scorer.compilation  # whose graphs are its own
    assert twin is not None
    assert twin is not tiny_model.scorer.compilation
    assert twin.backend == "inductor"
    tiny_model.compile(None)
    assert tiny_model.scorer.compilation is None


@pytest.mark.parametrize(
    ("device", "backend", "asked", "mode"),
    [
        ("cpu", "inductor", None, None),
        ("mps", "inductor", None, None),
        ("cuda:1", "inductor", None, "reduce-overhead"),
        ("cuda", "inductor", "default", "default"),
        ("cuda", "eager", None, None),
    ],
)
def test_cuda_graphs_are_for_cuda_devices_and_inductor(
    tiny_model: AbmllModel,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    backend: str,
    asked: str | None,
    mode: str | None,
) -> None:
    monkeypatch.setattr(type(tiny_model.scorer), "device", torch.device(device))
    tiny_model.compile(backend, asked)
    assert tiny_model.scorer.compilation is not None
    assert tiny_model.scorer.compilation.mode == mode


def test_an_adapted_posterior_says_so_and_predicts(
    tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path
) -> None:
    train, test = toy_tasks[0].train[:6], toy_tasks[0].train[6:10]
    plain = tiny_model.adapt(train, steps=2)
    tiny_model.compile("eager")
    compiled = tiny_model.adapt(train, steps=2)
    assert "adapt_compile" not in plain.settings
    assert compiled.settings["adapt_compile"] is True
    compiled.save_pretrained(tmp_path / "p")
    assert TaskPosterior.from_pretrained(tmp_path / "p").settings["adapt_compile"] is True
    assert compiled.predict(test).probs.shape == plain.predict(test).probs.shape
    assert not torch.equal(plain.phi.mean_tensors()[0], compiled.phi.mean_tensors()[0])  # other random numbers
