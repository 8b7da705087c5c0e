"""Workers that are jobs of Slurm, one a unit, by submitit; or submitit's processes of this computer, to try that out.

A folder of its own holds the jobs' files: what is to be done, as submitit's pickle that the same user writes and reads,
and the logs. It is deleted at the end; where a job was lost, the logs stay.
"""

import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.common.errors import AbmllError, ConfigError, nearest
from abmll.experiments.executors.work import Lost, Workers, attempt

CLUSTERS = ("slurm", "local")
ARRAY = 1000  # Slurm's default limit of an array is 1001 jobs
TIMEOUTS = 100  # so often a job whose time is over goes back into the queue
MINUTES = 240  # of a job, where nothing else is said; one that needs more goes on from its last checkpoint


@dataclass(frozen=True)
class SubmititJobs:
    """What jobs are like: ``options`` are those of submitit's ``AutoExecutor.update_parameters``.

    Args:
        jobs: so many at the same time; None: as many as Slurm gives, or one on this computer.
    """

    folder: Path
    cluster: str
    options: Mapping[str, Any]
    jobs: int | None
    several: bool = True

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            hint = nearest(self.cluster, CLUSTERS)
            raise ConfigError(f"executor_options: cluster is '{self.cluster}'; use 'slurm' or 'local'.{hint}")
        with tempfile.TemporaryDirectory() as folder:
            self._executor(Path(folder))

    def _executor(self, folder: Path) -> Any:
        """submitit's executor. Raises ``ConfigError`` where there is no Slurm, or an option is none."""
        submitit = _submitit()
        try:
            often = {f"{kind}_max_num_timeout": TIMEOUTS for kind in CLUSTERS}
            executor = submitit.AutoExecutor(folder / "%j", cluster=self.cluster, **often)
        except RuntimeError as error:
            raise ConfigError(
                "executor: there is no Slurm here (no 'srun'); start the command where sbatch works, or try it out on "
                "this computer with --executor-options cluster=local"
            ) from error
        own = {"name": "abmll", "timeout_min": MINUTES}
        if self.jobs is not None:
            own["slurm_array_parallelism"] = self.jobs
        try:
            executor.update_parameters(**own | dict(self.options))
        except (NameError, AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"executor_options: {str(error).splitlines()[0]}") from error
        return executor

    @contextmanager
    def workers(self, do: Callable[[Any], Any], size: int) -> Iterator[Workers]:
        folder = self.folder / uuid.uuid4().hex[:8]
        folder.mkdir(mode=0o700, parents=True)
        workers = JobQueue(self._executor(folder), do, self.jobs or 1 if self.cluster == "local" else ARRAY)
        try:
            yield workers
        finally:
            workers.close()
            if workers.is_worth_a_look:
                for path in folder.rglob("*.pkl"):
                    path.unlink(missing_ok=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)  # a job may still write the end of its log
                with suppress(OSError):  # those of another command lie there
                    self.folder.rmdir()


class JobQueue:
    """Jobs that were handed to submitit's executor."""

    def __init__(self, executor: Any, do: Callable[[Any], Any], room: int) -> None:
        self.room = room
        self.executor = executor
        self.is_local = executor.cluster == "local"
        self.do = Restartable(do)
        self.running: set[Any] = set()
        self.is_worth_a_look = False  # whether a log says why something went wrong

    def submit(self, units: Sequence[Any]) -> Sequence[Any]:
        try:
            with _heard():
                jobs = self.executor.map_array(self.do, units)
        except (_submitit().core.utils.FailedJobError, OSError) as error:
            raise AbmllError(f"executor: sbatch does not take the jobs: {error}") from error
        self.running.update(jobs)
        return jobs

    def finished(self, jobs: Collection[Any]) -> Collection[Any]:
        time.sleep(0.1 if self.is_local else 2)
        return [job for job in jobs if job.done()]

    def outcome(self, job: Any) -> Any:
        self.running.discard(job)
        result = self._result(job)
        self.is_worth_a_look |= isinstance(result, Lost)
        return result

    def _result(self, job: Any) -> Any:
        """What the job's process has written; a file of another computer may come some seconds after the job's end."""
        utils = _submitit().core.utils
        if self.is_local and not job.paths.result_pickle.exists():
            error: Exception | None = utils.UncompletedJobError()
        else:
            error = job.exception()
        if error is None:
            return job.result()
        log = f"its log is {job.paths.stderr}"
        if not isinstance(error, utils.FailedJobError):
            state = "" if self.is_local else f" (Slurm says {job.state})"
            return Lost(f"job {job.job_id} has ended without a result{state}; {log}", again=True)
        return Lost(f"job {job.job_id} could not begin; {log}", again=False)

    def close(self) -> None:
        """Cancel what is not done."""
        self.is_worth_a_look |= bool(self.running)
        for job in self.running:
            job.cancel(check=False)
        while self.is_local and not all(job.done() for job in self.running):
            time.sleep(0.05)  # nothing is written here once the command has ended


@dataclass(frozen=True)
class Restartable:
    """What a job does; one that is preempted, or whose time is over, is put into the queue once more."""

    do: Callable[[Any], Any]

    def __call__(self, unit: Any) -> Any:
        return attempt(self.do, unit)

    def checkpoint(self, unit: Any) -> Any:
        """The same again: what is finished is found, and a training goes on from its last checkpoint."""
        return _submitit().helpers.DelayedSubmission(self, unit)


@contextmanager
def _heard() -> Iterator[None]:
    """Processes that begin inside hear SIGINT, by which submitit ends those of this computer.

    A command that a shell has started in the background ignores it, and so would all that it starts.
    """
    if (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError('executor: needs submitit; install it with: pip install "abmll[slurm]"') from error
    return submitit
