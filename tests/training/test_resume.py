"""A run that was stopped and goes on computes the same bits as one that never stopped; what does not fit is refused."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.checkpoint import checkpoints
from abmll.common.errors import AbmllError, CheckpointError, ConfigError
from abmll.tasks import Task
from tests.language.folders import flip_bit
from tests.training.stopping import interrupt


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    """What two equal runs have in common to the bit: all but clock times, places and what carries these."""
    files = {name: data for name, data in contents(folder).items() if name.endswith((".safetensors", "metrics.jsonl"))}
    assert len(files) > 3
    return files


# -- a real process, really killed ----------------------------------------------------------------------------------

EPISODES, SAVE, KILL_AFTER = 18, 5, 7
SCRIPT = f"""
import sys, time
import torch
from abmll import AbmllModel, MetaTrainer, TrainConfig, load_tasks
from abmll.common.config import PromptConfig

torch.set_num_threads(1)
model_folder, tasks, output_dir, mode = sys.argv[1:]


class Slow(MetaTrainer):
    def _episode(self, *args):
        time.sleep(0.05)  # so that the signal finds it at work
        return super()._episode(*args)


prompt = PromptConfig(instruction=False, list_options=False, answer="text")
model = AbmllModel.from_base(model_folder, prompt=prompt, r=2, target_modules=["v_proj"], layers_to_transform="1")
config = TrainConfig(output_dir=output_dir, max_steps={EPISODES}, save_steps={SAVE}, inner_steps=2,
                     per_device_train_batch_size=2, activation_cache_gb=0.1)
trainer = (Slow if mode == "slow" else MetaTrainer)(model, load_tasks(tasks), config)
assert trainer.episodes.cache is not None and model.scorer.lower_blocks.blocks
trainer.train(resume=mode == "resume")
"""


@pytest.fixture
def command(tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> Callable[[str, str], list[str]]:
    """The training script's command line for an output folder and a mode."""
    for task in toy_tasks:
        rows = [
            json.dumps({"input": example.input, "options": example.options, "answer": example.answer})
            for example in task.examples
        ]
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{task.name}.jsonl").write_text("\n".join(rows) + "\n")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    return lambda name, mode: [str(script), str(tiny_llama), str(tmp_path / "tasks"), str(tmp_path / name), mode]


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_run_goes_on_bit_for_bit(
    command: Callable[[str, str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, *command("killed", "slow")], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 300
        while num_lines(killed / "metrics.jsonl") < KILL_AFTER and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        errors = child.communicate()[1].decode()
    assert child.returncode == -signal.SIGKILL, errors
    reached = num_lines(killed / "metrics.jsonl")
    assert KILL_AFTER <= reached < EPISODES, errors
    # The run was beyond its last checkpoint.
    assert max(checkpoints(killed)) < reached
    monkeypatch.setattr(sys, "argv", command("whole", "straight"))
    runpy.run_path(sys.argv[0])
    subprocess.run([sys.executable, *command("killed", "resume")], check=True, timeout=300, capture_output=True)
    whole = tmp_path / "whole"
    assert results(killed) == results(whole)
    assert num_lines(killed / "metrics.jsonl") == num_lines(killed / "timing.jsonl") == EPISODES
    states = [json.loads((run / f"checkpoint-{EPISODES}" / "state.json").read_text()) for run in (killed, whole)]
    for state in states:
        del state["settings"]["output_dir"]
    assert states[0] == states[1]
    assert not list(killed.glob(".*"))


# -- the same within one process, for other rules -------------------------------------------------------------------


@pytest.fixture
def make_trainer(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> Callable[..., MetaTrainer]:
    def make(name: str, **settings: Any) -> MetaTrainer:
        short: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "inner_steps": 2, "per_device_train_batch_size": 2}
        short["lr_scheduler_type"] = "constant"  # a finished run can be made longer
        return MetaTrainer(
            tiny_model, toy_tasks, TrainConfig(**{**short, "output_dir": str(tmp_path / name), **settings})
        )

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 2, "noise": "shared"},
        {"method": "structured-lora"},
        {"method": "regular-lora", "activation_cache_gb": 0.0},
        {"method": "reptile"},
        {"method": "fomaml", "meta_batch": 2, "weight_decay": 0.1},
        {"method": "maml", "meta_batch": 2},
        {"method": "abml"},
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    make_trainer: Callable[..., MetaTrainer], tmp_path: Path, settings: dict[str, Any]
) -> None:
    make_trainer("whole", **settings).train()
    interrupt(make_trainer("stopped", **settings), episode=4)
    done = make_trainer("stopped", **settings).train(resume=True)
    assert done.episodes == 6
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_a_finished_run_can_be_made_longer(make_trainer: Callable[..., MetaTrainer], tmp_path: Path) -> None:
    make_trainer("whole").train()
    make_trainer("longer", max_steps=4).train()
    make_trainer("longer", max_steps=4).train(resume=True)  # nothing left to do
    make_trainer("longer", max_steps=6).train(resume=True)
    assert results(tmp_path / "longer") == results(tmp_path / "whole")


# -- what does not fit ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs it leaves a stopped run for the others."""
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(make_trainer: Callable[..., MetaTrainer], stopped_once: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of episodes 2 and 4 and a line of episode 5."""
    if not stopped_once.exists():
        interrupt(make_trainer("made"), episode=6)
        shutil.move(tmp_path / "made", stopped_once)
    shutil.copytree(stopped_once, tmp_path / "run")
    return tmp_path / "run"


def refused(trainer: MetaTrainer, folder: Path, kind: type[AbmllError]) -> str:
    """The one line with which resuming is refused; nothing in the folder has changed."""
    before = contents(folder)
    with pytest.raises(kind) as caught:
        trainer.train(resume=True)
    assert contents(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_run_to_resume_is_there(make_trainer: Callable[..., MetaTrainer], stopped: Path, tmp_path: Path) -> None:
    assert list(checkpoints(stopped)) == [2, 4]
    assert num_lines(stopped / "metrics.jsonl") == 5
    with pytest.raises(CheckpointError, match="nothing: no such run folder"):
        make_trainer("nothing").train(resume=True)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 2e-6}, "--resume with beta = 2e-06, but the run has beta = 3e-05; use the run's settings"),
        ({"seed": 1}, "--resume with seed = 1, but the run has seed = 0"),
        ({"method": "structured-lora"}, "--resume with method = structured-lora, but the run has method = abmll"),
        (
            {"activation_cache_gb": 0.0},
            "--resume with activation_cache_gb = 0.0, but the run has activation_cache_gb = 2.0",
        ),
        ({"max_steps": 3}, "max_steps is 3, but"),
    ],
)
def test_changed_settings(
    make_trainer: Callable[..., MetaTrainer], stopped: Path, settings: dict[str, Any], words: str
) -> None:
    assert words in refused(make_trainer("run", **settings), stopped, ConfigError)


def test_an_edited_config_file_decides_nothing(make_trainer: Callable[..., MetaTrainer], stopped: Path) -> None:
    """The settings a run must keep are those in the hashed checkpoint."""
    text = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(text.replace("beta: 3.0e-05", "beta: 2.0e-06"))
    refused(make_trainer("run", beta=2e-6), stopped, ConfigError)
    make_trainer("run").train(resume=True)
    assert "beta: 3.0e-05" in (stopped / "config.yaml").read_text()


@pytest.mark.parametrize("adapter", [{"r": 3}, {"target_modules": ("v_proj",)}, {"space": "output"}])
def test_another_adapter(
    tiny_model: AbmllModel, tiny_llama: Path, toy_tasks: list[Task], stopped: Path, adapter: dict[str, Any]
) -> None:
    config = replace(tiny_model.scorer.adapter_config, **adapter)
    other = AbmllModel.from_base(str(tiny_llama), prompt=tiny_model.scorer.prompt, **vars(config))
    trainer = MetaTrainer(other, toy_tasks, TrainConfig(output_dir=str(stopped), inner_steps=2))
    [key] = adapter
    assert f"--resume with {key} = " in refused(trainer, stopped, ConfigError)


def test_another_base_under_the_same_name(
    tiny_model: AbmllModel, tiny_llama: Path, toy_tasks: list[Task], stopped: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "llama"
    shutil.copytree(tiny_llama, moved)
    settings: dict[str, Any] = {"prompt": tiny_model.scorer.prompt, "r": 2, "target_modules": ["v_proj"]}
    short: dict[str, Any] = {"inner_steps": 2, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}
    config = TrainConfig(output_dir=str(tmp_path / "other"), max_steps=1, **short)
    MetaTrainer(AbmllModel.from_base(str(moved), **settings), toy_tasks, config).train()
    flip_bit(moved, 20)
    trainer = MetaTrainer(AbmllModel.from_base(str(moved), **settings), toy_tasks, replace(config, max_steps=2))
    words = refused(trainer, tmp_path / "other", CheckpointError)
    assert words.startswith(f"{tmp_path / 'other' / 'checkpoint-1'}: was learned on {moved}, but the model loaded from")
    assert words.endswith("has other weights; name the right one with --model")


def test_other_tasks(tiny_model: AbmllModel, toy_tasks: list[Task], stopped: Path) -> None:
    short: dict[str, Any] = {"inner_steps": 2, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}
    config = TrainConfig(output_dir=str(stopped), max_steps=6, save_steps=2, **short)
    for tasks in (toy_tasks[:2], [*toy_tasks[:2], replace(toy_tasks[2], name="toy3")]):
        words = refused(MetaTrainer(tiny_model, tasks, config), stopped, CheckpointError)
        assert words.endswith("the training tasks are not those the run began with; give the same --tasks")


@pytest.mark.parametrize("name", ["theta.safetensors", "optimizer_phi.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint(make_trainer: Callable[..., MetaTrainer], stopped: Path, name: str, damage: str) -> None:
    path = stopped / "checkpoint-4" / name
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])
    else:
        path.unlink()
    words = refused(make_trainer("run"), stopped, CheckpointError)
    assert "checkpoint-4" in words
    assert "delete the folder to fall back on an older one" in words


def test_the_remedy_for_a_damaged_checkpoint_works(
    make_trainer: Callable[..., MetaTrainer], stopped: Path, tmp_path: Path
) -> None:
    make_trainer("whole").train()
    shutil.rmtree(stopped / "checkpoint-4")
    make_trainer("run").train(resume=True)
    assert results(stopped) == results(tmp_path / "whole")


def test_moments_of_another_optimizer(make_trainer: Callable[..., MetaTrainer], stopped: Path) -> None:
    """A checkpoint that is whole, but lacks what the rule needs."""
    trainer = make_trainer("run")
    load = trainer.rule.init

    def init(theta: Any) -> Any:
        state = load(theta)
        state.optimizer.named["more"] = torch.zeros(1)
        return state

    vars(trainer.rule)["init"] = init
    words = refused(trainer, stopped, CheckpointError)
    assert words.endswith("optimizer_phi.safetensors: more.exp_avg is missing; it belongs to another model or method")
