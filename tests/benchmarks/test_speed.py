"""Steps, tokens a second and MFU: arithmetic on seconds that are given, and no GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from abmll.common.config import PromptConfig
from abmll.language.filled import filled
from benchmarks import speed
from benchmarks.bench import Bench
from benchmarks.contenders import NUMBERS, Ours, Setting, batches_of
from benchmarks.data import answered
from benchmarks.floors import step_cost
from benchmarks.pairs import Rounds
from benchmarks.small import random_model
from benchmarks.workload import Workload
from tests.conftest import toy_task

# torch's own tracing makes one where an autograd.Function is met; the other is of the Trainer's own libraries.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
SETTING = Setting(batch_size=2, inner_steps=1, dtype="fp32")


@pytest.fixture
def bench(tiny_llama: Path) -> Bench:
    made = Bench(str(tiny_llama), quick=True)
    prompt = PromptConfig(instruction=False, list_options=False, answer="text")
    made.workload = Workload((toy_task("a"), toy_task("b")), (toy_task("c"),), prompt)
    return made


def test_tokens_and_operations_are_counted_of_the_batches_that_were_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "peak_speed", lambda bench, setting: (1e9, "somebody"))
    monkeypatch.setattr(bench, "rounds", lambda steps: Rounds({name: [2.0, 4.0] for name in steps}))
    rows = {row.name: row for row in speed.steps(bench, SETTING)}
    ours = Ours(bench, SETTING)
    first, second = (batches_of(ours, number)[0] for number in range(2))
    read = sum(map(len, first)) / 2 + sum(map(len, second)) / 4
    assert rows["step, weight space (q+v, fp32)"].ratio == pytest.approx(read / 2)
    assert rows["step, weight space, compiled (q+v, fp32)"].ratio == pytest.approx(read / 2)
    of_plain = sum(map(answered, first)) / 2 + sum(map(answered, second)) / 4
    assert rows[f"step, {speed.PLAIN} (q+v, fp32)"].ratio == pytest.approx(of_plain / 2)
    share = rows["MFU of a step, weight space (q+v, fp32)"]
    needed = step_cost(ours, first)[0] / 2 + step_cost(ours, second)[0] / 4
    assert (share.ratio, share.unit, share.note) == (pytest.approx(100 * needed / 2 / 1e9), "%", "of somebody")
    ratios = [row for row in rows.values() if row.unit == "x"]
    assert [row.name.split(" / ")[1] for row in ratios] == [f"{speed.PLAIN} (q+v, fp32)"] * 3
    assert {row.target for row in ratios} == {None}  # no GPU


def test_a_compiled_step_has_one_shape(bench: Bench) -> None:
    one = speed.Compiled(bench, SETTING)
    shapes = set()
    for number in range(NUMBERS):
        batch = filled(replace(next(one.episodes.batches(number)), bucket=one.bucket))
        shapes.add(tuple(tensor.shape for tensor in (batch.input_ids, batch.visible, batch.rows, batch.token_id)))
    assert len(shapes) == 1
    assert bool(one.step(1).total.isfinite())


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [("NVIDIA H100 80GB HBM3", "bf16", 989.4e12), ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12)],
)
def test_a_known_gpu_has_its_maker_s_peak(name: str, dtype: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found, whose = speed.peak_speed(Bench(device="cuda"), replace(SETTING, dtype=dtype))
    assert found == peak
    assert "data sheet" in whose


def test_another_device_has_the_speed_of_a_product(bench: Bench) -> None:
    found, whose = speed.peak_speed(bench, SETTING)
    assert found > 0
    assert "2048 cubed" in whose


def test_members_are_timed_beside_one(bench: Bench) -> None:
    rows = speed.members(bench)
    assert len(rows) == 2
    assert all(row.ratio > 0 for row in rows)


@pytest.mark.usefixtures("_embedded")
def test_random_weights_of_a_shape(tmp_path: Path, tiny_llama: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama, num_hidden_layers=3)
    folder = random_model(tmp_path / "m", config, torch.bfloat16)
    loaded = AutoConfig.from_pretrained(folder)
    assert (loaded.num_hidden_layers, loaded.dtype) == (3, torch.bfloat16)
    before = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert random_model(tmp_path / "m", config) == folder
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == before


@pytest.fixture
def _embedded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.small.embedded_model", lambda announce: tiny_llama)
