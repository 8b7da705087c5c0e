"""Asks a server of tasks, from Python.

    with Client("http://127.0.0.1:8000") as client:
        client.learn("tickets", [("Charged twice", "billing"), ("It crashes", "bug")])
        client.predict("tickets", ["Wrong invoice"])[0].probabilities

What can be asked again without harm is asked again where the server is busy or out of reach: writing carries a key by
which the server knows that it has been asked the same before.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from abmll.common.errors import AbmllError
from abmll.common.files import atomic_file
from abmll.serving.connection import Connection
from abmll.serving.replies import (
    Answer,
    Answers,
    Examples,
    Job,
    Quality,
    ServedTask,
    StoredExample,
    Suggestion,
    Tasks,
    Version,
    Versions,
)
from abmll.tasks.records import Data, pairs_of, texts_of

if TYPE_CHECKING:
    import httpx

BETWEEN_LOOKS = 0.5  # seconds between two looks at a job
TEXTS_A_REQUEST = 1_000


class Client:
    """A server of tasks.

    Args:
        token: a token of the server's file, where it has one.
        timeout: seconds to wait for an answer. Learning may take longer: it is waited for to its end.

    Every method raises ``AbmllError`` where the server cannot be reached or does not answer as one, ``Refused`` where
    it answers with a problem, and ``DataError`` for examples and texts of which nothing can be made.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0) -> None:
        self._server = Connection(url, token, timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def learn(
        self,
        name: str,
        examples: Data,
        *,
        how: Literal["head", "full"] = "head",
        label_order: Sequence[str] | None = None,
        steps: int | None = None,
        text: str | None = None,
        label: str | None = None,
        on_progress: Callable[[Job], None] | None = None,
    ) -> ServedTask:
        """Learn a new task from examples, and wait until it can answer.

        Args:
            examples: a DataFrame, dicts, (text, label) pairs or Examples.
            how: ``full`` learns by gradient steps, where the server has a meta-trained run.
            label_order: all labels from the least to the greatest, where they have an order.
            text: name of the column of texts.
            label: name of the column of labels.
            on_progress: called with the job whenever it has got further.
        """
        wanted = {"name": name, "examples": _labelled(examples, text, label), "how": how}
        wanted |= {} if label_order is None else {"label_order": list(label_order)}
        wanted |= {} if steps is None else {"steps": steps}
        return self._write("POST", "/v1/tasks", name, wanted, on_progress)

    def add(
        self,
        name: str,
        examples: Data,
        *,
        text: str | None = None,
        label: str | None = None,
        on_progress: Callable[[Job], None] | None = None,
    ) -> ServedTask:
        """Add examples to a task, and wait until it has learned them; a text that it has gets its new label."""
        wanted = {"examples": _labelled(examples, text, label)}
        return self._write("PUT", f"{_path(name)}/examples", name, wanted, on_progress)

    def relearn(self, name: str, on_progress: Callable[[Job], None] | None = None) -> ServedTask:
        """Learn a task's examples anew, such as where a file of it is damaged."""
        return self._write("POST", f"{_path(name)}/relearn", name, None, on_progress)

    def remove(self, name: str, texts: Data) -> ServedTask:
        """Remove the examples with these texts from a task."""
        return self._write("DELETE", f"{_path(name)}/examples", name, {"texts": texts_of(texts, "texts")}, None)

    def delete(self, name: str) -> None:
        """Delete a task with all its versions."""
        self._server.ask("DELETE", _path(name), again_is_done=True)

    def task(self, name: str) -> ServedTask:
        """What is known of a task."""
        return self._server.read(ServedTask, _path(name))

    def tasks(self) -> list[ServedTask]:
        """All tasks, by name."""
        page = self._server.read(Tasks, "/v1/tasks")
        found = page.tasks
        while page.next is not None:
            page = self._server.read(Tasks, f"/v1/tasks?after={quote(page.next, safe='')}")
            found = found + page.tasks
        return found

    def versions(self, name: str) -> list[Version]:
        """The versions of a task."""
        return self._server.read(Versions, f"{_path(name)}/versions").versions

    def examples(self, name: str) -> list[StoredExample]:
        """The labelled examples of a task."""
        return self._server.read(Examples, f"{_path(name)}/examples").examples

    def quality(self, name: str) -> Quality:
        """How good its answers are, and a reliability diagram's bins. ``Refused`` (404) while that is not known."""
        return self._server.read(Quality, f"{_path(name)}/quality")

    def predict(self, name: str, texts: Data, version: int | None = None) -> list[Answer]:
        """The answer to each text, all by one version: the newest, or the one that is named."""
        found: list[Answer] = []
        listed = texts_of(texts, "texts")
        for start in range(0, len(listed), TEXTS_A_REQUEST):
            wanted: dict[str, Any] = {"texts": listed[start : start + TEXTS_A_REQUEST]}
            if version is not None:
                wanted["version"] = version
            part = self._server.made(Answers, self._server.ask("POST", f"{_path(name)}/predict", wanted))
            version, found = part.version, found + part.answers
        return found

    def suggest(self, name: str, texts: Data, number: int = 10) -> Suggestion:
        """Which ``number`` of the texts to label next."""
        wanted = {"texts": texts_of(texts, "texts"), "number": number}
        return self._server.made(Suggestion, self._server.ask("POST", f"{_path(name)}/suggest", wanted))

    def export(
        self,
        name: str,
        path: Path | str,
        format: Literal["posterior", "peft", "vllm-ensemble"] = "posterior",  # the word of the command line
    ) -> Path:
        """Write a task to a zip file, which must not be there yet; returns its path."""
        path = Path(path).expanduser()
        if path.exists():
            raise AbmllError(f"{path} exists already; choose another name")
        response = self._server.ask("POST", f"{_path(name)}/export", {"format": format})
        with atomic_file(path) as file:
            file.write(response.content)
        return path

    def job(self, id: str | int) -> Job:  # the server's word
        """How far a job is."""
        return self._server.read(Job, f"/v1/jobs/{quote(str(id), safe='')}")

    def cancel(self, id: str | int) -> None:
        """Stop a job."""
        self._server.ask("DELETE", f"/v1/jobs/{quote(str(id), safe='')}")

    def _write(
        self, method: str, path: str, name: str, wanted: Any, on_progress: Callable[[Job], None] | None
    ) -> ServedTask:
        """Ask for something that changes a task, and wait until it is done."""
        patience = "respond-async" if on_progress else f"wait={int(min(30.0, self._server.timeout))}"
        headers = {"Idempotency-Key": str(uuid.uuid4()), "Prefer": patience}
        return self._settled(self._server.ask(method, path, wanted, headers), name, on_progress)

    def _settled(self, response: "httpx.Response", name: str, on_progress: Callable[[Job], None] | None) -> ServedTask:
        """The task, once the job that a response speaks of is done. Raises ``AbmllError`` for one that fails."""
        if response.status_code != 202:
            return self._server.made(ServedTask, response)
        job = begun = self._server.made(Job, response)
        seen = None
        while True:
            if on_progress is not None and job != seen:
                on_progress(job)
            if job.state not in ("waiting", "running"):
                break
            time.sleep(BETWEEN_LOOKS)
            seen, job = job, self.job(job.id)
        if job.state != "done":
            raise AbmllError(f"{name}: its job ended as {job.state}" + f": {job.error}" * bool(job.error))
        return replace(self.task(name), new_labels=begun.new_labels, left_out=begun.left_out)


def _labelled(examples: Data, text: str | None, label: str | None) -> list[dict[str, str]]:
    return [{"text": one, "label": own} for one, own in pairs_of(examples, text=text, label=label)]


def _path(name: str) -> str:
    return f"/v1/tasks/{quote(name, safe='')}"
