"""What a store promises it keeps in SQLite and in PostgreSQL, also where two servers write at the same time."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from abmll.common.errors import AbmllError
from abmll.serving import database
from abmll.serving.answer_store import AnswerStore
from abmll.serving.database import (
    ANSWERS,
    EXAMPLES,
    JOBS,
    REPEATS,
    SERVERS,
    VERSIONS,
    connect,
    file_of,
    reading,
    shown,
    writing,
)
from abmll.serving.job_store import JobStore, NoSuchJob
from abmll.serving.storage_errors import StorageError
from abmll.serving.task_changes import Accepted, NameTaken, OtherRequest, Repeat, TooMany, change, create, relearn
from abmll.serving.task_store import Labelled, NoSuchTask, TaskStore

SOME = [Labelled("aé", "x"), Labelled("b", "y"), Labelled("c", "y")]


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = connect(database)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> TaskStore:
    store = TaskStore(engine, "the store", "me")
    store.claim({"model": "m"})
    return store


@pytest.fixture
def job_store(engine: Engine) -> JobStore:
    return JobStore(engine, "the store", "me")


def made(store: TaskStore, name: str = "t", tenant: str = "default", repeat: Repeat | None = None) -> Accepted:
    return create(store, tenant, name, "head", {"steps": None}, SOME, repeat)


def pairs(store: TaskStore, accepted: Accepted, version: int | None = None) -> list[tuple[str, str, int]]:
    return [(one.text, one.label, one.version) for one in store.examples(accepted.task, version)]


def test_a_store_belongs_to_one_model(store: TaskStore) -> None:
    store.claim({"model": "m"})
    with pytest.raises(AbmllError, match="another model"):
        store.claim({"model": "n"})


def test_tasks(store: TaskStore) -> None:
    for name in ("b", "B", "a.1", "Z", "a-1", "c"):
        made(store, name)
    made(store, "b", "other")
    names = [task.name for task in store.tasks("default")]
    assert names == sorted(names) == ["B", "Z", "a-1", "a.1", "b", "c"]  # by their bytes
    assert [task.name for task in store.tasks("default", after="Z", limit=2)] == ["a-1", "a.1"]
    assert (store.number(), store.number("other")) == (7, 1)
    task = store.task("other", "b")
    assert store.by_id(task.id) == task
    store.delete(task)
    for look in (lambda: store.task("other", "b"), lambda: store.by_id(task.id), lambda: store.versions(task)):
        with pytest.raises(NoSuchTask):
            look()
    assert made(store, "b", "other").task.id > task.id  # the number that names its files is never given again


def test_a_task_takes_all_with_it(store: TaskStore, job_store: JobStore, engine: Engine) -> None:
    accepted = made(store, repeat=Repeat("k", "d"))
    AnswerStore(engine, "the store", 10).keep(accepted.task.id, 1, {"t": "{}"})
    store.delete(accepted.task)
    with reading(engine, "") as db:
        assert [list(db.execute(select(one))) for one in (EXAMPLES, VERSIONS, JOBS, REPEATS, ANSWERS)] == [[]] * 5
    with pytest.raises(NoSuchJob):
        job_store.job("default", accepted.job or "")
    with pytest.raises(NoSuchTask):
        job_store.newest(accepted.task.id)
    with pytest.raises(NoSuchTask):
        change(store, accepted.task, [Labelled("d", "x")])
    with pytest.raises(NoSuchTask):
        relearn(store, accepted.task)


def test_versions_and_examples(store: TaskStore) -> None:
    first = made(store)
    second = change(store, first.task, [Labelled("d", "x"), Labelled("b", "x")])
    third = change(store, first.task, removed={"aé", "not there"})
    assert (first.version, second.version, third.version) == (1, 2, 3)
    assert pairs(store, first, 1) == [("aé", "x", 1), ("b", "y", 1), ("c", "y", 1)]
    assert pairs(store, first, 2) == [("aé", "x", 1), ("c", "y", 1), ("d", "x", 2), ("b", "x", 2)]
    assert pairs(store, first) == pairs(store, first, 3) == [("c", "y", 1), ("d", "x", 2), ("b", "x", 2)]
    assert store.counts(first.task, 2) == {"x": 3, "y": 1}
    assert change(store, first.task, [Labelled("d", "x")]) == third  # its job is not done yet
    assert relearn(store, first.task).version == 4
    with pytest.raises(TooMany, match="at most 3"):
        change(store, first.task, [Labelled("e", "x")], limit=3)
    assert [row.version for row in store.versions(first.task)] == [4, 3, 2, 1]


def test_a_name_is_taken_once(store: TaskStore) -> None:
    made(store)
    with pytest.raises(NameTaken):
        made(store)


def test_the_same_request_again(store: TaskStore) -> None:
    first = made(store, repeat=Repeat("k", "d"))
    assert made(store, repeat=Repeat("k", "d")) == first
    with pytest.raises(OtherRequest):
        made(store, "other", repeat=Repeat("k", "e"))
    second = change(store, first.task, [Labelled("d", "x")], repeat=Repeat("l", "d"))
    assert change(store, first.task, [Labelled("d", "x")], repeat=Repeat("l", "d")) == second


def test_keys_are_forgotten_after_a_day(store: TaskStore) -> None:
    first = made(store, repeat=Repeat("old", "d"))
    with store.writing() as db:
        db.execute(update(REPEATS).values(created=REPEATS.c.created - 90_000))
    assert made(store, repeat=Repeat("old", "d")) == first  # it was not looked for old ones yet
    store.keys_seen -= 4_000
    relearn(store, first.task, Repeat("new", "d"))
    with store.reading() as db:
        assert list(db.execute(select(REPEATS.c.key)).scalars()) == ["new"]
    with pytest.raises(NameTaken):
        made(store, repeat=Repeat("old", "d"))


def test_a_version_is_learned_once(store: TaskStore) -> None:
    accepted, written = made(store), []
    with pytest.raises(NoSuchTask):
        store.version(accepted.task)
    for document in ("first", "second"):
        is_first = store.learned(accepted.task, 1, lambda: written.append(1), document=document)
        assert is_first is (document == "first")
    assert (store.version(accepted.task).document, written) == ("first", [1])

    def refuse() -> None:
        raise AbmllError("the disk is full")

    second = relearn(store, accepted.task)
    with pytest.raises(AbmllError, match="the disk is full"):
        store.learned(second.task, 2, refuse, document="second")
    assert store.version(accepted.task).version == 1
    store.delete(accepted.task)
    with pytest.raises(NoSuchTask):
        store.learned(accepted.task, 1, refuse)


def test_jobs(store: TaskStore, job_store: JobStore) -> None:
    accepted = made(store)
    job = accepted.job or ""
    found = job_store.job("default", job)
    assert (found.task_name, found.how, found.state, found.owner) == ("t", "head", "waiting", "me")
    with pytest.raises(NoSuchJob):
        job_store.job("other", job)
    other = JobStore(job_store.engine, "", "other")
    assert (job_store.wanted([job, "none"]), other.wanted([job])) == ({job}, set())
    other.end(job, "failed", "no business of its own")
    assert job_store.job("default", job).state == "waiting"
    job_store.end(job, "done")
    job_store.end(job, "failed", "too late")
    assert (job_store.newest(accepted.task.id).state, job_store.wanted([job])) == ("done", set())
    assert not other.cancel(job)
    second = relearn(store, accepted.task).job or ""
    assert other.cancel(second)
    assert (job_store.job("default", second).state, job_store.wanted([second])) == ("cancelled", set())
    assert store.versions(accepted.task)[0].state == "failed"
    assert other.again(second)
    assert not job_store.again(second)
    assert (job_store.job("default", second).state, other.wanted([second])) == ("waiting", {second})
    assert store.versions(accepted.task)[0].state == "waiting"


def test_the_jobs_of_the_dead_are_taken_once_and_in_their_order(store: TaskStore, engine: Engine) -> None:
    dead = [TaskStore(engine, "", "dead"), TaskStore(engine, "", "silent")]
    jobs = [made(dead[n % 2], f"t{n}").job for n in range(4)]
    made(store, "own")
    with writing(engine, "") as db:
        now = database.clock(db)
        known = [("me", 0.0), ("silent", 3600.0)]
        db.execute(insert(SERVERS), [{"id": name, "seen": now - since} for name, since in known])
    taken = [JobStore(engine, "", server).take() for server in ("me", "other")]
    assert [[row.id for row in rows] for rows in taken] == [jobs, []]
    assert {(row.owner, row.how) for row in taken[0]} == {("me", "head")}
    with writing(engine, "") as db:
        db.execute(update(JOBS).where(JOBS.c.id == jobs[0]).values(state="done"))
        db.execute(update(SERVERS).values(seen=now - 3600))
    assert len(JobStore(engine, "", "other").take()) == 4


def test_the_first_answer_stays(store: TaskStore, engine: Engine) -> None:
    task = made(store).task.id
    answers = AnswerStore(engine, "", 10)
    assert answers.keep(task, 1, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    assert answers.keep(task, 1, {"c": "3", "b": "another"}) == {"c": "3", "b": "2"}
    assert answers.given(task, 1, ["a", "b", "c", "d"]) == {"a": "1", "b": "2", "c": "3"}
    assert answers.given(task, 2, ["a"]) == answers.given(task + 1, 1, ["a"]) == {}
    with pytest.raises(NoSuchTask):
        answers.keep(task + 1, 1, {"a": "of no task"})
    assert AnswerStore(engine, "", 0).keep(task, 1, {"a": "not kept"}) == {"a": "not kept"}


def test_the_newest_answers_are_kept(store: TaskStore, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.serving.answer_store.SPARE", 4)
    task = made(store).task.id
    answers = AnswerStore(engine, "", 3)
    texts = [str(n) for n in range(10)]
    for text in texts:
        answers.keep(task, 1, {text: text})
    assert sorted(answers.given(task, 1, texts)) == texts[-3:]


def together(acts: list[Callable[[], Any]]) -> list[Any]:
    """What each gives or raises, all begun at the same moment."""
    barrier = threading.Barrier(len(acts))
    found: list[Any] = [None] * len(acts)

    def run(number: int) -> None:
        barrier.wait()
        try:
            found[number] = acts[number]()
        except AbmllError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def stores(database: str) -> Iterator[list[TaskStore]]:
    """Four servers' views of one database, each with connections of its own."""
    stores = [TaskStore(connect(database), "", f"server {n}") for n in range(4)]
    together([partial(store.claim, {"model": "m"}) for store in stores])
    yield stores
    for store in stores:
        store.engine.dispose()


def test_a_name_and_a_request_at_the_same_time(stores: list[TaskStore]) -> None:
    for number in range(4):
        found = together([partial(made, store, f"t{number}") for store in stores])
        assert sorted(type(one).__name__ for one in found) == ["Accepted", *["NameTaken"] * 3], found
        again = together([partial(made, store, f"u{number}", repeat=Repeat(f"k{number}", "d")) for store in stores])
        assert len({one.job for one in again}) == 1


def test_changes_at_the_same_time_are_versions_one_after_the_other(stores: list[TaskStore]) -> None:
    task = made(stores[0]).task
    for number in range(3):
        new = [[Labelled(f"{number} {label}", label)] for label in "wxyz"]
        found = together([partial(change, store, task, own) for store, own in zip(stores, new, strict=True)])
        assert sorted(one.version for one in found) == list(range(2 + 4 * number, 6 + 4 * number))
    versions = stores[0].versions(task)
    assert [row.num_examples for row in versions] == [15 - n for n in range(13)]
    for row in versions:
        assert len(stores[1].examples(task, row.version)) == row.num_examples
    again = together([partial(relearn, store, task, Repeat("again", "d")) for store in stores])
    assert {one.version for one in again} == {14}
    with reading(stores[0].engine, "") as db:
        assert len(list(db.execute(select(JOBS).where(JOBS.c.task == task.id)))) == 14


def test_answers_at_the_same_time(stores: list[TaskStore]) -> None:
    """Each has the texts in another order, and answers of its own."""
    task = made(stores[0]).task.id
    kept = [AnswerStore(store.engine, "", 1000) for store in stores]
    texts = [f"text {n}" for n in range(50)]
    for version in range(5):
        own = [{text: f"{n} {text}" for text in texts[n:] + texts[:n]} for n in range(4)]
        found = together([partial(one.keep, task, version, new) for one, new in zip(kept, own, strict=True)])
        assert found[0] == found[1] == found[2] == found[3] == kept[0].given(task, version, texts)


def test_a_version_and_the_jobs_of_the_dead_at_the_same_time(stores: list[TaskStore]) -> None:
    task, written = made(stores[0]).task, []
    learn = [partial(one.learned, task, 1, partial(written.append, one.server), document=one.server) for one in stores]
    assert sorted(together(learn)) == [False, False, False, True]
    assert written == [stores[0].version(task).document]
    for number in range(6):
        made(TaskStore(stores[0].engine, "", "dead"), f"left {number}")
    with writing(stores[0].engine, "") as db:
        now = database.clock(db)
        db.execute(insert(SERVERS), [{"id": store.server, "seen": now} for store in stores])
    taken = together([JobStore(store.engine, "", store.server).take for store in stores])
    assert sorted(len(rows) for rows in taken) == [0, 0, 0, 6]


def test_answers_do_not_wait_for_the_disk(shared_database: str) -> None:
    for durable, wanted in ((True, "on"), (False, "off")):
        engine = connect(shared_database, durable=durable)
        with engine.connect() as db:
            assert db.exec_driver_sql("SHOW synchronous_commit").scalar_one() == wanted
        engine.dispose()


def test_tables_are_made_by_servers_that_start_together(shared_database: str) -> None:
    engines = together([lambda: connect(shared_database)] * 6)
    assert [type(engine).__name__ for engine in engines] == ["Engine"] * 6
    for engine in engines:
        engine.dispose()


def test_a_database_that_does_not_answer(shared_database: str) -> None:
    with pytest.raises(StorageError, match="the database says") as caught:
        connect("postgresql+psycopg://someone:secret@127.0.0.1:9/none")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert shared_database


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no address", "give an address such as"),
        ("nosuch://host/name", "no database is known"),
        ("postgresql+pg8000://user:secret@host/name", r"\*\*\*@host.*abmll\[postgres\]"),
    ],
)
def test_addresses_that_are_none(url: str, words: str) -> None:
    with pytest.raises(AbmllError, match=words) as caught:
        connect(url)
    assert "secret" not in str(caught.value)


def test_the_file_of_an_address(tmp_path: Path) -> None:
    assert file_of(f"sqlite:///{tmp_path / 'a.sqlite'}") == tmp_path / "a.sqlite"
    assert file_of("sqlite+pysqlite:///a.sqlite?timeout=3") == Path("a.sqlite")
    assert file_of("postgresql+psycopg://me@db.example/abmll") is None


def test_shown(tmp_path: Path) -> None:
    assert shown("postgresql://me:secret@host:1/name") == "postgresql://me:***@host:1/name"
    assert shown(f"sqlite:///{tmp_path}/a b.sqlite") == f"sqlite:///{tmp_path}/a b.sqlite"
