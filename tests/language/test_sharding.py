"""A base in parts on two processes computes what it does in one, and keeps about half of the blocks in each."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from abmll.common.config import ModelConfig
from abmll.common.errors import ConfigError
from abmll.language.base import load_base
from tests.language.sharded_work import CASES, facts, uneven

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def models(family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models by the names of their families."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gpt2"):
        shutil.copytree(family_folder(family), folder / family)
    return folder


@pytest.fixture(scope="module")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes with one base have computed."""
    out = tmp_path_factory.mktemp("shared")
    command = [*TORCHRUN, "-m", "tests.language.sharded_work", str(models), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_does(name: str, shared: Path, models: Path, tmp_path: Path) -> None:
    case = dict(CASES[name])
    place = ModelConfig(str(models / case.pop("family", "llama")), device="cpu", dtype="fp32")
    alone = facts(load_base(place, print, quiet=True), tmp_path / "run", **case)
    assert sum(key.startswith("gradient") for key in alone) >= 4
    for rank in range(2):
        found = load_file(shared / f"{list(CASES).index(name)} {rank}.safetensors")
        kept, whole = found.pop("kept").tolist()
        assert whole / 2 <= kept + whole / 50 <= whole * 0.55
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(
                found[key], value, atol=1e-6, rtol=0.0, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_processes_with_other_work_help_each_other_to_the_end(shared: Path, models: Path) -> None:
    for rank in range(2):
        base = load_base(ModelConfig(str(models / "llama"), device="cpu", dtype="fp32"), print, quiet=True)
        path = shared / f"uneven {rank}.safetensors"
        torch.testing.assert_close(load_file(path), uneven(base, rank), atol=1e-6, rtol=0.0)
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["fingerprint"] == base.fingerprint


@pytest.mark.parametrize("other", [{"device_map": "auto"}, {"load_in_8bit": True}])
def test_a_shared_base_lies_whole_and_plain_in_each_process(other: dict[str, Any]) -> None:
    [name] = other
    with pytest.raises(ConfigError, match=f"^shard_base: excludes {name}; choose one of them$"):
        ModelConfig(shard_base=True, **other)


def test_one_process_alone_shares_no_base(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"^shard_base: needs processes that share the model; run: torchrun"):
        load_base(ModelConfig(str(tiny_llama), device="cpu", shard_base=True), print, quiet=True)


def test_commands_of_two_processes_write_what_one_writes(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [f"{word} {number},{word}" for number in range(3) for word in ("good", "bad")]
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    command = ["-m", "--", "abmll", "adapt", "labelled.csv", "--model", str(tiny_llama), "--device", "cpu"]
    command += ["--dtype", "fp32", "--json", "--output-dir"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    alone = run(sys.executable, "-m", *command[2:], "alone")
    both = run(*TORCHRUN, *command, "together", "--shard-base")
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr[-3000:]
    assert both.stdout == alone.stdout.replace("alone", "together")
    for path in (tmp_path / "alone").iterdir():
        if path.suffix == ".safetensors":
            torch.testing.assert_close(
                load_file(tmp_path / "together" / path.name), load_file(path), atol=1e-6, rtol=0.0
            )
    assert {path.name for path in (tmp_path / "together").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }
