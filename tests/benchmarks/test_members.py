"""Several members, and several samples, take hardly more operations than one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from abmll.common.config import PromptConfig
from benchmarks import members
from benchmarks.bench import Bench
from benchmarks.workload import Workload
from tests.conftest import toy_task

LAYERS = 8  # with so few, making the batches weighs more than in a real model


@pytest.fixture(scope="module")
def bench(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The tiny Llama with more layers, and a toy task."""
    folder = tmp_path_factory.mktemp("deep")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    torch.manual_seed(0)
    deep = AutoConfig.from_pretrained(tiny_llama, num_hidden_layers=LAYERS)
    AutoModelForCausalLM.from_config(deep).save_pretrained(folder)
    made = Bench(str(folder))
    prompt = PromptConfig(instruction=False, list_options=False, answer="text")
    made.workload = Workload((), (toy_task("a"),), prompt)
    return made


def test_what_computes_is_counted() -> None:
    weight, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)

    def call() -> None:
        (x @ weight.mT).view(6).sum().backward()

    assert members.launches(call) == 5  # the product, its gradient and their sum, the total and its gradient


def test_five_members_beside_one(bench: Bench) -> None:
    rows = members.members(bench)
    assert len(rows) == 4
    assert max(row.ratio for row in rows) <= 1.4, [row.ratio for row in rows]  # at 30 layers 1.20
    assert all(row.denominator and row.denominator > 100 * LAYERS for row in rows)


def test_sixteen_samples_beside_one(bench: Bench) -> None:
    rows = members.samples(bench)
    assert len(rows) == 2
    assert all(row.met for row in rows)
