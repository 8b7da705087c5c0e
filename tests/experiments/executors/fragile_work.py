"""What workers do in tests: note that they have begun, die as often as they are told to, and note that they end."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

DEADLY = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has the second alone


@dataclass(frozen=True)
class Fragile:
    """A unit; the first ``deaths`` workers that begin it get a signal; one of ``seconds`` notes its process."""

    folder: Path
    name: str
    deaths: int = 0
    seconds: float = 0
    signal: int = DEADLY

    def notes(self) -> list[str]:
        """What workers have noted of it so far."""
        path = self.folder / self.name
        return path.read_text().split() if path.exists() else []

    def note(self, word: str) -> None:
        with (self.folder / self.name).open("a") as file:
            file.write(f"{word}\n")


def work(unit: Fragile) -> str:
    unit.note("begun")
    if unit.notes().count("begun") <= unit.deaths:
        os.kill(os.getpid(), unit.signal)
    if unit.seconds:
        unit.note(str(os.getpid()))
        time.sleep(unit.seconds)
    if unit.name == "defect":
        raise ZeroDivisionError("a defect")
    unit.note("done")
    return unit.name.upper()


def is_alive(pid: int) -> bool:
    """Whether that process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
