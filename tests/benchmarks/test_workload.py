"""The batches that everybody reads, and the bytes and operations that are counted."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from abmll.common.config import PromptConfig
from abmll.language.encoding import Encoded
from abmll.tasks import Task, load_task
from abmll.tasks.order import batches_of_episode, task_of_episode
from benchmarks import training
from benchmarks.bench import Bench
from benchmarks.contenders import ALL, PEERS, QV, Contender, Ours, Setting, batches_of
from benchmarks.data import numbered, padding, write_task
from benchmarks.floors import scored_positions, step_cost
from benchmarks.peaks import EPISODES, ROWS, task_folder
from benchmarks.workload import Workload, cut_to, padded

# PEFT asks transformers for a name that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SETTING = Setting(r=2, batch_size=2, inner_steps=2)


@pytest.fixture
def bench(tiny_llama: Path, toy_tasks: list[Task]) -> Bench:
    """A bench for trying out, on the tiny model and toy tasks."""
    made = Bench(str(tiny_llama), quick=True)
    made.workload = Workload(tuple(toy_tasks), tuple(toy_tasks), PromptConfig(instruction=False))
    return made


def test_twin_shares_weights_but_no_modules(bench: Bench) -> None:
    base = bench.base()
    model, copy = base.model, base.twin().model
    assert {id(tensor) for tensor in copy.parameters()} == {id(tensor) for tensor in model.parameters()}
    assert not {id(module) for module in copy.modules()} & {id(module) for module in model.modules()}
    copy.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "eager"


def test_peers_read_the_examples_of_abmlls_own_episodes(bench: Bench) -> None:
    ours = Ours(bench, SETTING)
    tasks = sorted(bench.workload.train, key=lambda task: task.name)
    for number in range(5):
        task = tasks[task_of_episode(0, number, len(tasks))]
        drawn = batches_of_episode(0, number, len(task.train), 2, 2)
        expected = [ours.model.scorer.encode([task.train[index] for index in batch], task.name) for batch in drawn]
        assert batches_of(ours, number) == expected
        for batch, examples in zip(ours.episodes.batches(number), expected, strict=True):
            assert batch.answers.tolist() == [example.answer for example in examples]


def test_peers_step_on_those_examples(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Sequence[Encoded]] = []
    monkeypatch.setattr("benchmarks.plain_lora.PlainLora.step", lambda self, examples: read.append(examples))
    ours = Ours(bench, SETTING)
    peer: Contender = PEERS["PEFT LoRA + Trainer"](bench, SETTING, ours)
    read.clear()
    peer.step(3)
    peer.episode(4)
    assert read == [batches_of(ours, 3)[0], *batches_of(ours, 4)]


def test_episode_learns_phi_and_theta(bench: Bench) -> None:
    ours = Ours(bench, SETTING)
    before = ours.state.theta.clone()
    ours.step(0)
    assert all(map(torch.equal, before.mean_tensors(), ours.state.theta.mean_tensors()))
    ours.episode(0)
    assert not all(map(torch.equal, before.mean_tensors(), ours.state.theta.mean_tensors()))


def test_every_row_of_a_comparison_of_steps(bench: Bench) -> None:
    rows = training.steps(bench, Setting(ALL, r=2, batch_size=2, inner_steps=1))
    assert len({row.name for row in rows}) == len(rows) == 10
    assert {row.target for row in rows} == {0.6, 0.85, 0.4, 1.12, 0.03, 1.5, None}
    assert all(row.ratio > 0 for row in rows)


def test_padded_batch() -> None:
    examples = [Encoded((5, 6, 7), ((8,), (9, 10)), 1), Encoded((5,), ((8,), (9,)), 0)]
    batch = padded(examples, 0, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9, 10], [5, 8, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 9, 10], [-100, 8, -100, -100, -100]]


@pytest.mark.parametrize("length", [5, 8, 64])
def test_cut_to_length(length: int) -> None:
    cut = cut_to(Encoded((5, 6, 7), ((8, 11), (9, 10, 12)), 1), length)
    assert len(cut) == length
    assert cut.prompt[-2:] == (6, 7)


def test_padding_counts_positions_and_tokens(bench: Bench) -> None:
    _, _, usual = padding(bench, SETTING)
    batches = [batches_of(Ours(bench, SETTING), number)[0] for number in range(12)]
    lengths = [[len(one.prompt) + len(one.options[one.answer or 0]) for one in batch] for batch in batches]
    assert usual.ratio == pytest.approx(sum(2 * max(pair) for pair in lengths) / sum(map(sum, lengths)))


def test_floor_counts_no_operation_that_is_not_done(bench: Bench) -> None:
    """PyTorch's own counter on our step, which also scores pairs of tokens that the mask hides."""
    ours = Ours(bench, SETTING, method="structured-lora")
    examples = batches_of(ours, 0)[0]
    with FlopCounterMode(display=False) as counter:
        ours.step(0)
    operations, _ = step_cost(ours, examples)
    assert 0.6 * counter.get_total_flops() < operations <= counter.get_total_flops()


def test_scored_positions(bench: Bench) -> None:
    ours = Ours(bench, SETTING)
    examples = batches_of(ours, 0)[0]
    assert scored_positions(examples) == len(ours.model.scorer.batch(examples).rows)


def test_numbered_examples_are_distinct_and_survive_the_file(tmp_path: Path, toy_tasks: list[Task]) -> None:
    path = tmp_path / "task.jsonl"
    write_task(path, islice(numbered(toy_tasks), 400))
    task = load_task(path)
    assert len({example.input for example in task.examples}) == len(task.train) == 400


def test_episodes_read_the_same_rows_whatever_the_number_of_tasks(bench: Bench, tmp_path: Path) -> None:
    read = []
    for count in (5, 20):
        folder = task_folder(bench, tmp_path / str(count), count)
        files = sorted(folder.iterdir())
        assert len(files) == count
        assert all(len(file.read_text().splitlines()) == ROWS for file in files)
        read.append([files[task_of_episode(0, episode, count)].read_text() for episode in range(EPISODES)])
    assert read[0] == read[1]


def test_peak_memory_counts_what_was_given_back() -> None:
    code = "from benchmarks.memory import peak_bytes; bytearray({}); print(peak_bytes())"
    sizes = [1_000, 300_000_000]
    peaks = [
        int(subprocess.run([sys.executable, "-c", code.format(size)], capture_output=True, check=True).stdout)
        for size in sizes
    ]
    assert peaks[1] - peaks[0] == pytest.approx(300_000_000, rel=0.05)


def test_every_row_of_a_comparison_of_episodes(bench: Bench) -> None:
    rows = training.episodes(bench, Setting(QV, r=2, batch_size=2, inner_steps=2))
    assert len(rows) == 5
    assert all(row.ratio > 0 for row in rows)
