"""What three processes that torchrun starts tell each other; each asserts what it has been told."""

import sys

import pytest
import torch

from abmll.common.errors import ConfigError, ReportedError
from abmll.common.processes import Processes, together
from tests.common.test_processes import parts_of


def exchange(processes: Processes) -> None:
    rank, size = processes.rank, processes.size
    assert (size, processes.is_first) == (3, rank == 0)
    assert processes.told({"rank": rank, "words": "ü" * rank}) == [
        {"rank": one, "words": "ü" * one} for one in range(3)
    ]
    for count in (1, 2, 3, 7):
        own = list(processes.own(count))
        assert own == list(range(rank, count, 3))
        assert processes.joined([part**2 for part in own], count) == [part**2 for part in range(count)]
        tensors = [{"x": torch.full((part + 1,), 1 / (part + 1), dtype=torch.float64)} for part in own]
        joined = processes.joined_tensors(tensors, count)
        assert [len(one["x"]) for one in joined] == list(range(1, count + 1))
        assert all(bool((one["x"] == 1 / len(one["x"])).all()) for one in joined)
    assert processes.of_first(["first", 0.1] if rank == 0 else None) == ["first", 0.1]
    sent = processes.tensors_of_first({"a/b": torch.tensor([1.5, float("nan")])} if rank == 0 else {})
    assert sent["a/b"].tolist()[0] == 1.5
    assert processes.tensors_of_first({}) == {}
    for count in (3, 4, 8):
        parts = parts_of(count)
        mean = processes.mean([parts[part] for part in processes.own(count)], count)
        expected = Processes().mean(parts, count)
        assert list(mean) == list(expected)
        assert all(torch.equal(mean[name], expected[name]) for name in expected)


def disagree(processes: Processes) -> None:
    with processes.agreed():
        pass
    kind, words = (ConfigError, "not 1") if processes.rank == 1 else (ReportedError, "process 1: not 1")
    with pytest.raises(kind, match=f"^{words}$"), processes.agreed():
        refuse_all_but_the_first(processes.rank)


def refuse_all_but_the_first(rank: int) -> None:
    if rank > 0:
        raise ConfigError(f"not {rank}")


def main() -> int:
    with together() as processes:
        exchange(processes)
        disagree(processes)
        sys.stdout.write(f"process {processes.rank} agrees\n")  # one write: print's two may have another's between them
    return 0


if __name__ == "__main__":
    sys.exit(main())
