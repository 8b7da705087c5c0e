"""Slurm's commands for a cluster of one computer: sbatch with arrays, srun, sacct, scancel.

``install`` writes them into a folder for ``PATH``; each runs this file. A job is a process group; its state lies in
``$SLURM_STAND_IN``.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "scancel")


def install(folder: Path) -> None:
    """Write the commands into ``folder``."""
    folder.mkdir()
    for name in NAMES:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)


def sbatch(state: Path, file: str) -> None:
    """Start all of an array at once, each in a process group that notes its end."""
    text = Path(file).read_text()
    number = len(list(state.glob("*.sh"))) + 1
    script = state / f"{number}.sh"
    script.write_text(text)
    array = re.search(r"--array=0-(\d+)%", text)
    for index in [None] if array is None else range(int(array[1]) + 1):
        name = f"{number}" if index is None else f"{number}_{index}"
        given = {"SLURM_JOB_ID": name, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        if index is not None:
            given |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
        job = subprocess.Popen(
            ["bash", "-c", f"bash '{script}'; echo $? > '{state}/{name}.end'"],
            env={**os.environ, **given},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (state / f"{name}.pid").write_text(str(job.pid))
    print(f"Submitted batch job {number}")


def srun(state: Path, *words: str) -> None:
    """Run the command behind the options, its output in their files."""
    rest, files = list(words), {}
    while rest[0].startswith("--"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            files[flag] = rest.pop(0)
    own = os.environ
    ids = {"%A": own.get("SLURM_ARRAY_JOB_ID", ""), "%a": own.get("SLURM_ARRAY_TASK_ID", ""), "%t": "0"}
    ids["%j"] = own["SLURM_JOB_ID"]
    for descriptor, flag in ((1, "--output"), (2, "--error")):
        path = re.sub("%[Aajt]", lambda found: ids[found[0]], files[flag])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.dup2(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY), descriptor)
    os.execvp(rest[0], rest)


def sacct(state: Path, *words: str) -> None:
    """The state of every job."""
    print("JobID|State|NodeList")
    for path in sorted(state.glob("*.pid")):
        end = path.with_suffix(".end")
        found = "RUNNING" if not end.exists() else "COMPLETED" if end.read_text().strip() == "0" else "FAILED"
        print(f"{path.stem}|{found}|here")


def scancel(state: Path, name: str) -> None:
    """Kill a job."""
    pid = int((state / f"{name}.pid").read_text())
    if not (state / f"{name}.end").exists():
        os.killpg(pid, signal.SIGKILL)
        (state / f"{name}.end").write_text("CANCELLED")


if __name__ == "__main__":
    {command.__name__: command for command in (sbatch, srun, sacct, scancel)}[sys.argv[1]](
        Path(os.environ["SLURM_STAND_IN"]), *sys.argv[2:]
    )
