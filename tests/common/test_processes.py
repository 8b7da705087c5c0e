"""What processes tell each other comes in the order of the parts, and a mean has the bits of one process's."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.common.processes import ALONE, together


def parts_of(count: int) -> list[dict[str, Tensor]]:
    """Numbers of very different sizes, whose sum depends on its order."""
    generator = torch.Generator().manual_seed(count)
    shapes = {"big": (5, 7), "scalar": (), "one": (1,)}
    return [
        {name: torch.randn(shape, generator=generator) * 10.0 ** (3 * part) for name, shape in shapes.items()}
        for part in range(count)
    ]


def test_three_processes_hear_the_same() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    ended = subprocess.run([*command, "-m", "tests.common.of_three"], capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split("\n")) == ["", *(f"process {rank} agrees" for rank in range(3))]


def test_one_process_is_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with together() as processes:
        assert processes is ALONE
    assert (list(ALONE.own(3)), ALONE.told("x"), ALONE.joined([1, 2], 2)) == ([0, 1, 2], ["x"], [1, 2])
    assert ALONE.of_first({"a": 1}) == {"a": 1}
    with pytest.raises(ConfigError, match="as it was"), ALONE.agreed():
        raise ConfigError("as it was")


def test_a_mean_is_that_of_the_parts_in_their_order() -> None:
    parts = parts_of(4)
    mean = ALONE.mean(parts, 4)
    for name, tensor in mean.items():
        expected = ((parts[0][name] / 4 + parts[1][name] / 4) + parts[2][name] / 4) + parts[3][name] / 4
        assert torch.equal(tensor, expected)
        backwards = ALONE.mean(parts[::-1], 4)[name]
        torch.testing.assert_close(tensor, backwards)
    assert not torch.equal(mean["big"], ALONE.mean(parts[::-1], 4)["big"])
    assert ALONE.mean(parts[:1], 1)["big"] is parts[0]["big"]


def test_half_a_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but MASTER_PORT is not set"), together():
        pass
