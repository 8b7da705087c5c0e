"""What a server's tasks are: learned, updated and answered as the library does it, in versions that stay."""

import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from sqlalchemy import select

from abmll import AbmllModel, Example, TaskPosterior
from abmll.common.config import LearningConfig
from abmll.common.errors import AbmllError
from abmll.posterior import head
from abmll.serving.database import VERSIONS
from abmll.serving.limits import ServeConfig
from tests.serving.served import ASKED, LABELS, PAIRS, ask, learn, rows, service_of, serving

pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture
def model(tiny_model: AbmllModel) -> AbmllModel:
    """It learns with a head."""
    tiny_model.learning = LearningConfig(method="head")
    return tiny_model


@pytest.fixture
def client(model: AbmllModel, tmp_path: Path) -> Iterator[TestClient]:
    with serving(model, tmp_path / "store") as client:
        yield client


def offline(model: AbmllModel, pairs: Any = PAIRS, texts: Any = ASKED, name: str = "tickets") -> list[dict[str, Any]]:
    """What the library answers, in the server's words."""
    posterior = model.on_twin().adapt(list(pairs), task_name=name)
    found = posterior.predict(texts)
    numbers = zip(found.lists(), found.entropy.tolist(), found.mutual_information.tolist(), strict=True)
    return [
        {"probabilities": dict(zip(posterior.labels, probs, strict=True)), "entropy": entropy, "mutual_information": mi}
        for probs, entropy, mi in numbers
    ]


def assert_equal(answers: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for answer, one in zip(answers, wanted, strict=True):
        assert answer["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)
        assert answer["label"] == max(one["probabilities"], key=one["probabilities"].__getitem__)
        for name in ("entropy", "mutual_information"):
            assert answer[name] == pytest.approx(one[name], abs=1e-6)


def test_it_answers_as_the_library_does(client: TestClient, model: AbmllModel) -> None:
    learned = learn(client)
    assert learned.status_code == 201, learned.text
    task = learned.json()
    assert (task["name"], task["state"], task["version"], task["labels"]) == ("tickets", "ready", 1, ["x", "y"])
    assert task["counts"] == {"x": 4, "y": 4}
    answered = ask(client)
    assert answered.status_code == 200
    assert answered.json()["version"] == 1
    assert answered.headers["x-abmll-version"] == "1"
    assert_equal(answered.json()["answers"], offline(model))


def test_the_same_request_gets_the_same_bytes_also_after_a_restart(model: AbmllModel, tmp_path: Path) -> None:
    with serving(model, tmp_path / "store") as client:
        learn(client)
        first = ask(client).content
        assert ask(client, ASKED[:1]).json()["answers"] == json.loads(first)["answers"][:1]
        assert ask(client).content == first
    with serving(model, tmp_path / "store") as client:
        assert ask(client).content == first
        assert client.get("/v1/tasks/tickets").json()["version"] == 1


def test_after_a_restart_nothing_is_read_or_fitted_again(
    model: AbmllModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model, tmp_path / "store") as client:
        learn(client)
        ask(client)
    model.readers.clear()
    with serving(model, tmp_path / "store") as client:
        monkeypatch.setattr(head, "refine", None)  # what a fit calls
        read: list[int] = []
        inner = service_of(client).resident.read
        service_of(client).engine.readers = {"features": lambda given: (read.append(len(given)), inner(given))[1]}
        assert ask(client, ["bbb 21"]).status_code == 200
        assert read == [1]


def test_an_update_is_learning_all_at_once_and_earlier_versions_stay(client: TestClient, model: AbmllModel) -> None:
    learn(client, pairs=PAIRS[:6])
    before = ask(client).content
    changed = client.put("/v1/tasks/tickets/examples", json={"examples": rows(PAIRS[6:])})
    assert (changed.status_code, changed.json()["version"], changed.json()["num_examples"]) == (200, 2, 8)
    assert_equal(ask(client).json()["answers"], offline(model))
    assert ask(client, version=1).content == before
    versions = client.get("/v1/tasks/tickets/versions").json()["versions"]
    assert [(one["version"], one["num_examples"], one["state"]) for one in versions] == [
        (2, 8, "ready"),
        (1, 6, "ready"),
    ]


def test_a_text_with_another_label_gets_the_new_one(client: TestClient, model: AbmllModel) -> None:
    learn(client)
    turned = [(PAIRS[0][0], "y"), *PAIRS[1:]]
    changed = client.put("/v1/tasks/tickets/examples", json={"examples": rows(turned[:1])})
    assert changed.json()["counts"] == {"x": 3, "y": 5}
    assert_equal(ask(client).json()["answers"], offline(model, turned))
    same = client.put("/v1/tasks/tickets/examples", json={"examples": rows(turned)})
    assert same.json()["version"] == 2  # nothing is new


def test_a_new_label_is_learned_with_all_examples(client: TestClient, model: AbmllModel) -> None:
    learn(client)
    more = [*PAIRS, ("ccc 1", "z"), ("ccc 2", "z")]
    changed = client.put("/v1/tasks/tickets/examples", json={"examples": rows(more[8:])})
    assert changed.json()["labels"] == ["x", "y", "z"]
    assert_equal(ask(client).json()["answers"], offline(model, more))


def test_examples_can_be_removed(client: TestClient, model: AbmllModel) -> None:
    learn(client)
    gone = client.request("DELETE", "/v1/tasks/tickets/examples", json={"texts": [PAIRS[0][0]]})
    assert gone.json()["counts"] == {"x": 3, "y": 4}
    assert_equal(ask(client).json()["answers"], offline(model, PAIRS[1:]))
    left = client.get("/v1/tasks/tickets/examples").json()["examples"]
    assert [(one["text"], one["label"]) for one in left] == PAIRS[1:]
    texts = [text for text, label in PAIRS if label == "x"]
    refused = client.request("DELETE", "/v1/tasks/tickets/examples", json={"texts": texts})
    assert refused.status_code == 422
    assert "at least two labels" in refused.json()["detail"]


def test_labels_with_an_order_keep_it(client: TestClient, model: AbmllModel) -> None:
    pairs = [(f"{'abc'[n % 3]} {n}", ("low", "mid", "high")[n % 3]) for n in range(9)]
    order = ["low", "mid", "high"]
    assert learn(client, pairs=pairs, label_order=order).json()["labels"] == order
    posterior = model.on_twin().adapt(pairs, task_name="tickets", label_order=order)
    answers = ask(client).json()
    assert answers["labels"] == order
    for answer, probs in zip(answers["answers"], posterior.predict(ASKED).lists(), strict=True):
        assert answer["probabilities"] == pytest.approx(dict(zip(posterior.labels, probs, strict=True)), abs=1e-6)


def test_a_table_is_learned_as_json_is(client: TestClient) -> None:
    learn(client)
    lines = "body,queue,id\n" + "".join(f"{text},{label},{n}\n" for n, (text, label) in enumerate(PAIRS))
    query = "name=tickets2&text=body&label=queue"
    made = client.post(f"/v1/tasks?{query}", content=lines, headers={"content-type": "text/csv"})
    assert made.json()["counts"] == {"x": 4, "y": 4}
    table = client.get("/v1/tasks/tickets2/examples", headers={"accept": "text/csv"})
    assert table.text.splitlines()[:2] == ["text,label", "aaa 0,x"]
    unknown = client.post("/v1/tasks?name=t3&text=nobody", content=lines, headers={"content-type": "text/csv"})
    assert unknown.status_code == 422
    assert "nobody" in unknown.json()["detail"]


def put_table(client: TestClient, table: bytes, **headers: str) -> Any:
    given = {"content-type": "text/csv", **headers}
    return client.put("/v1/tasks/tickets/examples", content=table, headers=given)


def test_rows_that_are_empty_or_repeated_and_labels_that_are_new_are_told(client: TestClient) -> None:
    made = learn(client, pairs=[*PAIRS, ("aaa 0", "y")]).json()
    assert (made["left_out"], made["new_labels"]) == ({"empty": 0, "repeated": 1}, [])
    assert made["counts"] == {"x": 3, "y": 5}
    table = b"text,label\nabab 5,x\nabab 6,\n,y\n,\nabab 5,y\nbaba 7,z\n"
    changed = put_table(client, table, **{"idempotency-key": "once"})
    assert changed.json()["left_out"] == {"empty": 3, "repeated": 1}
    assert changed.json()["new_labels"] == ["z"]
    assert changed.json()["counts"] == {"x": 3, "y": 6, "z": 1}
    again = put_table(client, table, **{"idempotency-key": "once"})
    assert again.json() == changed.json()
    later = client.put(
        "/v1/tasks/tickets/examples",
        json={"examples": rows([("bbba 9", "w"), ("bbba 8", "z")])},
        headers={"prefer": "respond-async"},
    )
    assert (later.status_code, later.json()["new_labels"]) == (202, ["w"])
    assert later.json()["left_out"] == {"empty": 0, "repeated": 0}


def test_tables_of_spreadsheets_are_read_or_refused_as_the_command_line_does(client: TestClient) -> None:
    learn(client)
    table = "sep=;\r\nlabel;text\r\nx;a, b\r\n"
    for data in (table.encode("utf-8-sig"), table.replace(";", "|").encode()):
        assert put_table(client, data).json()["counts"] == {"x": 5, "y": 4}
    utf16 = put_table(client, "text,label\nä,x\n".encode("utf-16"))
    assert (utf16.status_code, utf16.json()["detail"]) == (422, "the CSV:1: the file is UTF-16; save it as UTF-8")
    cp1252 = put_table(client, "text,label\nä,x\n".encode("cp1252"))
    assert cp1252.status_code == 422
    assert cp1252.json()["detail"].endswith("byte 1 of the line is not UTF-8; save the whole file as UTF-8")
    odd = put_table(client, b"sep=;\ntext;label\na;x\na;b;c\n")
    assert odd.json()["detail"].startswith("the CSV:4: 3 cells under 2 columns")


def test_requests_of_many_tasks_share_a_pass(client: TestClient, model: AbmllModel) -> None:
    names = [f"task{n}" for n in range(4)]
    for n, name in enumerate(names):
        learn(client, name, PAIRS[: 4 + n])
    service, passes, first_may_end = service_of(client), [], threading.Event()
    inner = service.resident.read

    def read(given: Any) -> Any:
        passes.append(len(given))
        first_may_end.wait(60)
        return inner(given)

    service.engine.readers = {"features": read}
    with ThreadPoolExecutor(4) as pool:
        coming = [pool.submit(ask, client, name=names[0])]
        until(lambda: passes == [3])
        coming += [pool.submit(ask, client, name=name) for name in names[1:]]
        until(lambda: service.engine.waiting == 9)
        first_may_end.set()
        found = [one.result().json()["answers"] for one in coming]
    assert passes == [3, 9]
    for n, name in enumerate(names):
        assert_equal(found[n], offline(model, PAIRS[: 4 + n], name=name))


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_tasks_that_do_not_fit_leave_memory_and_come_back(model: AbmllModel, tmp_path: Path) -> None:
    with serving(model, tmp_path / "store", ServeConfig(memory_mb=0.000001, kept_answers=0)) as client:
        for name in ("one", "two"):
            learn(client, name)
        first = ask(client, name="one").content
        ask(client, name="two")
        assert len(service_of(client).memory.kept) == 1
        assert ask(client, name="one").content == first


def test_a_posterior_is_exported_whole(client: TestClient, model: AbmllModel, tmp_path: Path) -> None:
    learn(client)
    sent = client.post("/v1/tasks/tickets/export", json={"format": "posterior"})
    assert sent.headers["content-type"] == "application/zip"
    zipfile.ZipFile(io.BytesIO(sent.content)).extractall(tmp_path)
    posterior = TaskPosterior.from_pretrained(tmp_path / "tickets", scorer=model.on_twin().scorer)
    answers = ask(client).json()["answers"]
    for answer, probs in zip(answers, posterior.predict(ASKED).lists(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(probs, abs=1e-6)
    refused = client.post("/v1/tasks/tickets/export", json={"format": "peft"})
    assert refused.status_code == 422
    assert "has no adapter" in refused.json()["detail"]


def test_it_suggests_what_the_library_suggests(client: TestClient, model: AbmllModel) -> None:
    learn(client)
    pool = [f"{'ab'[n % 2]}{'ba'[n % 3 == 0]} {n}" for n in range(9)]
    wanted = model.on_twin().adapt(PAIRS, task_name="tickets").suggest(pool)
    found = client.post("/v1/tasks/tickets/suggest", json={"texts": pool, "number": 4}).json()
    assert found["order"] == wanted[:4]
    assert found["mutual_information"] == sorted(found["mutual_information"], reverse=True)


def test_quality_is_cross_validated(client: TestClient) -> None:
    learn(client)
    ask(client)  # its head has been fitted then
    found = client.get("/v1/tasks/tickets/quality").json()
    assert found["num_examples"] == 8
    assert sum(one["count"] for one in found["bins"]) == 8
    assert 0 <= found["accuracy"] <= 1
    assert client.get("/v1/tasks/tickets").json()["quality"]["nll"] == found["nll"]
    figure = client.get("/v1/tasks/tickets/reliability.svg")
    assert figure.headers["content-type"] == "image/svg+xml"
    assert figure.text.startswith("<svg")


def test_jobs_are_watched_and_cancelled(model: AbmllModel, tmp_path: Path) -> None:
    with serving(model, tmp_path / "store") as client:
        service = service_of(client)
        going, inner = threading.Event(), service.resident.read
        service.engine.readers = {"features": lambda given: (going.wait(20), inner(given))[1]}
        waiting = client.post(
            "/v1/tasks", json={"name": "slow", "examples": rows(PAIRS)}, headers={"prefer": "respond-async"}
        )
        assert waiting.status_code == 202
        job = waiting.headers["location"]
        assert client.get(job).json()["state"] in ("waiting", "running")
        assert client.get("/v1/tasks/slow").json()["state"] == "learning"
        assert ask(client, name="slow").status_code == 404
        assert client.delete(job).status_code == 202
        with client.stream("GET", f"{job}/events") as events:
            going.set()
            lines = list(events.iter_lines())
        assert "event: end" in lines
        assert client.get(job).json()["state"] == "cancelled"
        assert client.delete(job).status_code == 409
        assert client.get("/v1/tasks/slow").json()["state"] == "failed"
        assert client.post("/v1/tasks/slow/relearn").json()["state"] == "ready"


def test_a_key_makes_a_request_happen_once(client: TestClient) -> None:
    body = {"name": "tickets", "examples": rows(PAIRS)}
    made = [client.post("/v1/tasks", json=body, headers={"idempotency-key": "k1"}) for _ in range(2)]
    assert [one.status_code for one in made] == [201, 201]
    assert made[0].headers["location"] == made[1].headers["location"]
    other = client.post("/v1/tasks", json=body | {"name": "t2"}, headers={"idempotency-key": "k1"})
    assert other.status_code == 422
    assert learn(client).status_code == 409


def test_steps_from_theta_are_learned_and_answered(tiny_model: AbmllModel, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path / "store") as client:
        assert client.get("/v1/server").json()["adapters"]
        made = learn(client, how="full", steps=2)
        assert made.status_code == 201, made.text
        examples = [Example(str(n), text, LABELS, LABELS.index(label)) for n, (text, label) in enumerate(PAIRS)]
        twin = tiny_model.on_twin().continue_as("abmll-mixture")
        wanted = twin.adapt(examples, task_name="tickets", steps=2, how="full").predict(ASKED).probs
        for answer, probs in zip(ask(client).json()["answers"], wanted.tolist(), strict=True):
            assert list(answer["probabilities"].values()) == pytest.approx(probs, abs=1e-6)
        sent = client.post("/v1/tasks/tickets/export", json={"format": "peft"})
        assert "tickets/adapter_config.json" in zipfile.ZipFile(io.BytesIO(sent.content)).namelist()
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert names == ["base", *(f"tickets/{n}" for n in range(5))]
        scored = client.post("/v1/completions", json={"model": "tickets/1", "prompt": "aaa", "logprobs": 1})
        assert scored.status_code == 200
        learn(client, "headed")
        refused = client.post("/v1/completions", json={"model": "headed", "prompt": "aaa", "logprobs": 1})
        assert refused.status_code == 422


def test_a_store_belongs_to_one_model(model: AbmllModel, tmp_path: Path) -> None:
    with serving(model, tmp_path / "store") as client:
        learn(client)
    other = model.on_twin()
    other.head_prior = head.HeadPrior(depths=(1.0,))
    with pytest.raises(AbmllError, match=r"was made with another features"), serving(other, tmp_path / "store"):
        pass


def test_a_theta_is_kept_once_for_all_tasks_of_a_store(shipped: AbmllModel, tmp_path: Path) -> None:
    with serving(shipped, tmp_path / "store") as client:
        learn(client)
        before = ask(client).json()["answers"]
        with service_of(client).store.reading() as db:
            (row,) = db.execute(select(VERSIONS))
        assert json.loads(row.document)["theta"] is None
        (file,) = (tmp_path / "store" / "files").rglob("*.posterior.safetensors")
        assert {name.partition("/")[0] for name in load_file(file)} == {"head"}
    with serving(shipped.on_twin(), tmp_path / "store") as client:
        assert ask(client).json()["answers"] == before


def test_a_store_without_a_theta_says_how_to_serve_it(model: AbmllModel, shipped: AbmllModel, tmp_path: Path) -> None:
    with serving(model, tmp_path / "store"):
        pass
    said = r"with the same model and theta \(it has none: 'abmll serve none'\), or"
    with pytest.raises(AbmllError, match=said), serving(shipped, tmp_path / "store"):
        pass


def test_what_cannot_be_learned_changes_nothing(client: TestClient) -> None:
    order = ["low", "high"]
    pairs = [(f"{'ab'[n % 2]} {n}", order[n % 2]) for n in range(6)]
    learn(client, pairs=pairs, label_order=order)
    refused = client.put("/v1/tasks/tickets/examples", json={"examples": rows([("c", "mid")])})
    assert (refused.status_code, "lacks 'mid'" in refused.json()["detail"]) == (422, True)
    same = [(text, "low") for text, _ in pairs]
    refused = client.put("/v1/tasks/tickets/examples", json={"examples": rows(same)})
    assert (refused.status_code, "all have the label 'low'" in refused.json()["detail"]) == (422, True)
    assert client.get("/v1/tasks/tickets").json()["version"] == 1
    assert client.put("/v1/tasks/tickets/examples", json={"examples": rows([("c", "low")])}).status_code == 200


def test_all_examples_can_be_corrected_at_once(client: TestClient, model: AbmllModel) -> None:
    learn(client)
    turned = [(text, "y" if label == "x" else "x") for text, label in PAIRS]
    assert client.put("/v1/tasks/tickets/examples", json={"examples": rows(turned)}).status_code == 200
    assert_equal(ask(client).json()["answers"], offline(model, turned))


def test_a_change_that_was_sent_again_undoes_nothing(client: TestClient) -> None:
    learn(client)
    again, once = {"idempotency-key": "k2"}, {"examples": rows(PAIRS[:1])}
    client.put("/v1/tasks/tickets/examples", json=once, headers=again)  # nothing is new
    client.put("/v1/tasks/tickets/examples", json={"examples": rows([(PAIRS[0][0], "y")])})
    client.put("/v1/tasks/tickets/examples", json=once, headers=again)
    assert client.get("/v1/tasks/tickets").json()["counts"] == {"x": 3, "y": 5}
    gone, removed = {"idempotency-key": "k3"}, {"texts": [PAIRS[0][0]]}
    client.request("DELETE", "/v1/tasks/tickets/examples", json=removed, headers=gone)
    client.put("/v1/tasks/tickets/examples", json={"examples": rows(PAIRS[:1])})
    client.request("DELETE", "/v1/tasks/tickets/examples", json=removed, headers=gone)
    assert client.get("/v1/tasks/tickets").json()["counts"] == {"x": 4, "y": 4}


def test_a_file_that_can_be_read_again_is_no_damage(
    model: AbmllModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model, tmp_path / "store", ServeConfig(kept_answers=0)) as client:
        learn(client)
        ask(client)
        service = service_of(client)
        service.memory.drop(lambda key: True)
        with monkeypatch.context() as broken:
            broken.setattr(service.files.objects, "get", lambda name: None)
            assert ask(client).status_code == 503
        assert client.get("/v1/tasks/tickets").json()["state"] == "damaged"
        assert ask(client).status_code == 200
        assert client.get("/v1/tasks/tickets").json()["state"] == "ready"


def test_of_what_was_fitted_only_the_newest_stays(client: TestClient, tmp_path: Path) -> None:
    fitters, gate = service_of(client).fitters, threading.Event()
    learn(client)
    fitters.submit(lambda: None).result()
    fitters.submit(gate.wait)
    for number in range(2):  # the second one is there before the first has had its turn
        more = {"examples": rows([(f"aba {number}", "x")])}
        assert client.put("/v1/tasks/tickets/examples", json=more).status_code == 200
    gate.set()
    fitters.submit(lambda: None).result()
    assert [path.name for path in tmp_path.rglob("*.fitted.safetensors")] == ["3.fitted.safetensors"]
