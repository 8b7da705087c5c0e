"""Whatever is asked of a server in whatever order, it knows what a few dicts know."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.conftest import shorten_chains
from tests.serving.survival import LABELS, load, served

SHARE = 1.0 if os.environ.get("ABMLL_FUZZ") else 0.2
NAMES = st.sampled_from(["a", "b", "c"])
TEXTS = st.lists(st.sampled_from([f"text {n}" for n in range(8)]), min_size=1, max_size=4, unique=True)
LABELLED = st.lists(
    st.tuples(st.sampled_from([f"text {n}" for n in range(8)]), st.sampled_from([*LABELS, "third"])), max_size=6
)


@dataclass
class Known:
    """What is known of a task: the examples of its newest version, whose number that is, and answers."""

    examples: dict[str, str]
    version: int = 1
    answers: dict[tuple[int, str], str] = field(default_factory=dict)


def test_sequences(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_chains(monkeypatch)
    model, number = load(tiny_llama), iter(range(1_000_000))

    class Sequence(RuleBasedStateMachine):
        """One server, and a model of it."""

        def __init__(self) -> None:
            super().__init__()
            self.folder = tmp_path / f"store{next(number)}"
            self.tasks: dict[str, Known] = {}
            self._start()

        def _start(self) -> None:
            self.context = served(model, self.folder)
            self.client = self.context.__enter__().client

        def teardown(self) -> None:
            self.context.__exit__(None, None, None)
            shutil.rmtree(self.folder)

        @rule(name=NAMES, pairs=LABELLED)
        def create(self, name: str, pairs: list[tuple[str, str]]) -> None:
            body = {"name": name, "examples": [{"text": text, "label": label} for text, label in pairs]}
            status = self.client.post("/v1/tasks", json=body).status_code
            if len(set(dict(pairs).values())) < 2:
                assert status == 422
            elif name in self.tasks:
                assert status == 409
            else:
                assert status == 201
                self.tasks[name] = Known(dict(pairs))

        @rule(name=NAMES, pairs=LABELLED)
        def add(self, name: str, pairs: list[tuple[str, str]]) -> None:
            body = {"examples": [{"text": text, "label": label} for text, label in pairs]}
            status = self.client.put(f"/v1/tasks/{name}/examples", json=body).status_code
            if name not in self.tasks:
                assert status == 404
            elif not pairs:
                assert status == 422
            else:
                task = self.tasks[name]
                wanted = task.examples | dict(pairs)
                if len(set(wanted.values())) < 2:
                    assert status == 422
                    return
                assert status == 200
                task.version += wanted != task.examples
                task.examples = wanted

        @rule(name=NAMES, texts=TEXTS)
        def remove(self, name: str, texts: list[str]) -> None:
            status = self.client.request("DELETE", f"/v1/tasks/{name}/examples", json={"texts": texts}).status_code
            if name not in self.tasks:
                assert status == 404
                return
            task = self.tasks[name]
            left = {text: label for text, label in task.examples.items() if text not in texts}
            if len(set(left.values())) < 2:
                assert status == 422
                return
            assert status == 200
            task.version += left != task.examples
            task.examples = left

        @rule(name=NAMES)
        def relearn(self, name: str) -> None:
            status = self.client.post(f"/v1/tasks/{name}/relearn").status_code
            assert status == (200 if name in self.tasks else 404)
            if name in self.tasks:
                self.tasks[name].version += 1

        @rule(name=NAMES)
        def delete(self, name: str) -> None:
            status = self.client.delete(f"/v1/tasks/{name}").status_code
            assert status == (204 if self.tasks.pop(name, None) else 404)

        @rule(name=NAMES, text=st.sampled_from(["text 1", "other"]), back=st.integers(0, 2))
        def predict(self, name: str, text: str, back: int) -> None:
            task = self.tasks.get(name)
            version = max(1, task.version - back) if task else 1
            body = {"texts": [text], "version": version}
            found = self.client.post(f"/v1/tasks/{name}/predict", json=body)
            assert found.status_code == (200 if task else 404)
            if task:
                assert task.answers.setdefault((version, text), found.text) == found.text

        @precondition(lambda self: self.tasks)
        @rule()
        def restart(self) -> None:
            self.context.__exit__(None, None, None)
            self._start()

        @invariant()
        def is_known(self) -> None:
            found = self.client.get("/v1/tasks").json()["tasks"]
            assert [task["name"] for task in found] == sorted(self.tasks)
            for task in found:
                own = self.tasks[task["name"]]
                labels = sorted(own.examples.values())
                assert (task["version"], task["state"], task["job"]) == (own.version, "ready", None)
                assert task["counts"] == {label: labels.count(label) for label in sorted(set(labels))}
                assert (task["num_examples"], task["labels"]) == (len(labels), sorted(set(labels)))

    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    run_state_machine_as_test(
        Sequence,
        settings=settings(
            max_examples=round(25 * SHARE),
            stateful_step_count=20,
            deadline=None,
            derandomize=not os.environ.get("ABMLL_FUZZ"),
            database=None,
            suppress_health_check=slow,
        ),
    )
