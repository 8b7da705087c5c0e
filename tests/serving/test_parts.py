"""The parts of a server that threads share: nothing is made twice, lost, or done out of turn."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.serving.engine import MANY, Engine, NoMemory
from abmll.serving.fair_queue import FairQueue, QueueFull, Request, TooLate
from abmll.serving.limits import ServeConfig
from abmll.serving.memory import Memory

TOKENS, LONGEST = 40, 10


def request(tenant: str, sizes: Sequence[int], kind: str = "a", deadline: float = 1e12) -> Request:
    """Rows that are as long as the sizes say."""
    return Request(tenant, kind, ["x" * size for size in sizes], list, deadline)


REQUESTS = st.lists(
    st.tuples(st.sampled_from("ABC"), st.lists(st.integers(1, 15), min_size=1, max_size=12), st.sampled_from("ab")),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(REQUESTS, st.integers(0, 3))
def test_a_queue_reads_every_row_once_and_in_turn(wanted: list[tuple[str, list[int], str]], early: int) -> None:
    queue = FairQueue(10_000)
    requests = [request(*one) for one in wanted]
    for one in requests:
        queue.put(one, 1.0)
    for one in requests[:early]:
        one.future.cancel()
    assert queue.waiting == sum(map(len, (one.rows for one in requests)))
    left = {id(one): list(range(len(one.rows))) for one in requests[early:]}
    while taken := queue.take(TOKENS, LONGEST):
        assert len({one.kind for one, _ in taken}) == 1
        sizes = [min(len(one.rows[row]), LONGEST) for one, part in taken for row in part]
        assert len(sizes) == 1 or sum(sizes) <= TOKENS
        for one, part in taken:
            assert not one.future.done()
            assert [left[id(one)].pop(0) for _ in part] == list(part)
        # Whoever waits for this kind of row got no less than the others, but for one row.
        rows = Counter({one.tenant: 0 for one in requests if one.waiting and one.kind == taken[0][0].kind})
        rows.update({one.tenant: 0 for one, _ in taken})
        for one, part in taken:
            rows[one.tenant] += len(part)
        unfinished = [rows[one.tenant] for one in requests[early:] if one.waiting and one.kind == taken[0][0].kind]
        assert not unfinished or min(unfinished) >= max(rows.values()) - 1
    assert not any(left.values())
    assert (queue.waiting, len(queue.tenants)) == (0, 0)


def test_a_queue_that_is_full_lets_jobs_in() -> None:
    queue = FairQueue(3)
    queue.put(request("A", [1, 1]), 2.0)
    with pytest.raises(QueueFull) as refused:
        queue.put(request("B", [1, 1]), 2.0)
    assert refused.value.seconds == 1.0
    queue.put(replace(request("B", [1] * 9), is_accepted=True), 2.0)
    assert queue.waiting == 11


def test_requests_that_are_late_leave() -> None:
    queue, late = FairQueue(10), request("A", [1] * 5, deadline=0.0)
    queue.put(late, 1.0)
    assert queue.take(TOKENS, LONGEST) == []
    assert queue.waiting == 0
    assert isinstance(late.future.exception(), TooLate)


def test_memory_makes_nothing_twice_at_once_and_keeps_no_more_than_fits() -> None:
    made, most = Counter[int](), 0
    making, lock = set[int](), threading.Lock()

    def make(key: int) -> str:
        with lock:
            assert key not in making
            making.add(key)
            made[key] += 1
        value = str(key) * 10
        with lock:
            making.remove(key)
        return value

    with ThreadPoolExecutor(2) as makers, ThreadPoolExecutor(8) as askers:
        memory: Memory[int, str] = Memory(50, len, makers)

        def ask(n: int) -> None:
            nonlocal most
            key = (n * 7) % 9
            assert memory.made(key, lambda: make(key)).result(60) == str(key) * 10
            most = max(most, memory.kept.num_bytes)
            if n % 11 == 0:
                memory.drop(lambda own: own == key)

        for one in wait([askers.submit(ask, n) for n in range(2000)]).done:
            one.result()
    assert set(made) == set(range(9))
    assert most <= 50 + 10
    assert memory.kept.num_bytes == sum(len(str(key) * 10) for key in memory.kept) <= 50
    assert memory.coming == {}


def test_memory_forgets_what_could_not_be_made() -> None:
    with ThreadPoolExecutor(1) as makers:
        memory: Memory[int, str] = Memory(50, len, makers)
        with pytest.raises(ZeroDivisionError):
            memory.made(1, lambda: str(1 // 0)).result()
        assert memory.made(1, lambda: "one").result() == "one"
        assert memory.get(1) == "one"
        assert memory.get(2) is None


def test_one_value_that_is_larger_than_the_limit_is_kept() -> None:
    with ThreadPoolExecutor(1) as makers:
        memory: Memory[int, str] = Memory(5, len, makers)
        for n in range(3):
            assert memory.made(n, lambda n=n: "x" * (10 + n)).result() == "x" * (10 + n)
        assert list(memory.kept) == [2]
        assert memory.kept.num_bytes == 12


def test_a_queue_gives_a_share_of_one_kind() -> None:
    queue = FairQueue(100)
    queue.put(request("A", [1] * 6, "a"), 1.0)
    queue.put(request("B", [1] * 5, "b"), 1.0)
    assert (queue.kind(), queue.kind(("b", "c")), queue.kind(("c",))) == ("a", "b", None)
    assert (queue.waiting_of("a"), queue.waiting_of("b"), queue.waiting_of("c")) == (6, 5, 0)
    assert [(one.tenant, part) for one, part in queue.take(TOKENS, LONGEST, "b", 3)] == [("B", range(3))]
    assert (queue.waiting_of("a"), queue.waiting_of("b")) == (6, 2)


def test_an_engine_answers_everybody_with_their_own() -> None:
    passes: list[int] = []

    def read(rows: Sequence[str]) -> list[str]:
        if "odd" in rows:
            raise RuntimeError("out of memory")
        if "bad" in rows:
            raise KeyError("a defect")
        return [row.upper() for row in rows]

    def note(rows: int, requests: int, seconds: float) -> None:
        passes.append(rows)

    engine = Engine({"a": read, "b": read}, ServeConfig(batch_window_ms=1.0), 100, note)
    asked: list[Any] = []

    def ask(n: int) -> Request:
        row = "odd" if n % 50 == 7 else "bad" if n % 50 == 8 else f"row {n}"
        one = Request("AB"[n % 2], "ab"[n % 3 == 0], [row, f"{n}"], list, 1e12)
        engine.submit(one)
        if n % 50 == 9:
            one.future.cancel()
        return one

    try:
        with ThreadPoolExecutor(8) as askers:
            asked = list(askers.map(ask, range(400)))
        for n, one in enumerate(asked):
            if n % 50 == 7:
                assert isinstance(one.future.exception(60), NoMemory)
            elif n % 50 == 8:
                assert isinstance(one.future.exception(60), KeyError)
            elif not one.future.cancelled():
                assert one.future.result(60) == [f"ROW {n}", f"{n}"]
        assert engine.thread.is_alive()
        assert max(passes) > 2  # several requests shared one
    finally:
        engine.stop()
    assert engine.waiting == 0


def test_threads_share_what_waits_where_it_is_much() -> None:
    """Two read at once of many rows; of few, or of a kind that is not shared, one reads and is alone."""
    begun, going, meet = list[tuple[str, int, bool]](), threading.local(), threading.Barrier(2, timeout=20)

    def read(rows: Sequence[str]) -> list[str]:
        begun.append((rows[0][0], len(rows), going.is_alone))
        if len(rows) == MANY // 2:
            meet.wait()  # for the other half
        return [row.upper() for row in rows]

    def begin(is_alone: bool) -> None:
        going.is_alone = is_alone

    engine = Engine({"a": read, "b": read}, ServeConfig(batch_window_ms=50.0), 100)
    engine.share(["a"], 2, begin)
    try:
        for kind, number in (("a", MANY), ("a", MANY - 1), ("b", MANY)):
            begun.clear()
            one = Request("T", kind, [f"{kind} {n}" for n in range(number)], list, 1e12)
            engine.submit(one)
            assert one.future.result(20) == [f"{kind.upper()} {n}" for n in range(number)]
            expected = [(kind, MANY // 2, False)] * 2 if (kind, number) == ("a", MANY) else [(kind, number, True)]
            assert begun == expected
    finally:
        engine.stop()
    assert not any(thread.is_alive() for thread in (engine.thread, *engine.helpers))
