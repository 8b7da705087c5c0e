"""Workers that are tasks of Ray, one a unit, on a cluster that is there or on one that ends with the command."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from abmll.common.errors import ConfigError
from abmll.common.settings import Checked, setting
from abmll.experiments.executors.work import Lost, Workers, attempt


@dataclass(frozen=True)
class RayOptions(Checked):
    """Which Ray, and what a task takes of it."""

    address: str | None = setting(None, "of a running cluster, or 'auto' (none: RAY_ADDRESS, or one for this command)")
    num_cpus: float = setting(1.0, "processor cores of a task", at_least=0)
    num_gpus: float = setting(0.0, "GPUs of a task; a part of one where several tasks share it", at_least=0)
    memory_gb: float | None = setting(None, "memory of a task", above=0)


@dataclass(frozen=True)
class RayJobs:
    """What tasks are like; ``jobs`` of them at the same time, or as many as the cluster has room for."""

    options: RayOptions
    jobs: int | None
    several: bool = True

    def __post_init__(self) -> None:
        _ray()

    @contextmanager
    def workers(self, do: Callable[[Any], Any], size: int) -> Iterator[Workers]:
        ray = _ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            self._start(ray)
        workers = TaskQueue(ray, do, self.options, self.jobs or math.inf)
        try:
            yield workers
        finally:
            workers.close()
            if is_ours:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        """Join the cluster at the address, or start one. Raises ``ConfigError`` where neither can be."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a new one would send statistics of its use
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if own := {name: value for name, value in os.environ.items() if name.startswith("ABMLL_")}:
            how["runtime_env"] = {"env_vars": own}
        address = self.options.address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            how["include_dashboard"] = False
        try:
            ray.init(address, **how)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"executor: Ray does not start, or is not at that address: {error}") from error


class TaskQueue:
    """Tasks that were handed to Ray."""

    def __init__(self, ray: Any, do: Callable[[Any], Any], options: RayOptions, room: float) -> None:
        self.ray = ray
        self.room = room
        memory = None if options.memory_gb is None else int(options.memory_gb * 2**30)
        # A process of its own for each: a GPU's memory is free again, and a model is loaded as on a cluster of Slurm.
        taken = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "memory": memory}
        self.task = ray.remote(max_retries=0, max_calls=1, **taken)(_work)
        self.do = ray.put(do)
        self.running: set[Any] = set()

    def submit(self, units: Sequence[Any]) -> Sequence[Any]:
        jobs = [self.task.remote(self.do, unit, os.getcwd()) for unit in units]
        self.running.update(jobs)
        return jobs

    def finished(self, jobs: Collection[Any]) -> Collection[Any]:
        return self.ray.wait(list(jobs), timeout=1.0)[0]

    def outcome(self, job: Any) -> Any:
        self.running.discard(job)
        errors = self.ray.exceptions
        try:
            return self.ray.get(job)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            return Lost(f"its task of Ray could not begin: {error}", again=False)
        except errors.RayError as error:
            return Lost(f"its worker of Ray has ended ({type(error).__name__}), perhaps for want of memory", again=True)

    def close(self) -> None:
        """End what is not done."""
        for job in self.running:
            self.ray.cancel(job, force=True)


def _work(do: Callable[[Any], Any], unit: Any, folder: str) -> Any:
    """What a task does, in the folder that the command's paths are relative to."""
    os.chdir(folder)
    return attempt(do, unit)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError('executor: needs Ray; install it with: pip install "abmll[ray]"') from error
    return ray
