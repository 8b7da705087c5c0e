"""What waits for the model: many rows of few, or few of many, in turn between tenants and between their requests."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from abmll.common.errors import AbmllError


class QueueFull(AbmllError):
    """So much waits already that a request is refused; ``seconds`` until it is worth while to ask again."""

    def __init__(self, seconds: float) -> None:
        super().__init__("too many texts are waiting to be read; ask again later")
        self.seconds = seconds


class TooLate(AbmllError):
    """A request's time was over before its turn came."""


@dataclass(eq=False)
class Request:
    """Rows of one request, which may be read in several passes.

    Args:
        tenant: whose it is.
        kind: rows of one kind can share a pass.
        rows: what is read; ``len`` of a row is its tokens.
        finish: makes the result of what was read of the rows, in their order.
        deadline: of ``time.monotonic``.
        is_accepted: it is a job's, which has been promised and is let in however much waits.
    """

    tenant: str
    kind: str
    rows: Sequence[Any]
    finish: Callable[[list[Any]], Any]
    deadline: float
    on_progress: Callable[[int], object] = lambda number: None
    is_accepted: bool = False
    future: "Future[Any]" = field(default_factory=Future)
    taken: int = 0
    read: dict[int, Any] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Rows that no pass has taken yet."""
        return len(self.rows) - self.taken

    def fail(self, error: Exception) -> None:
        """Tell who waits of an error; nothing happens where nobody waits any more."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return


Taken = tuple[Request, range]  # rows of a request


class FairQueue:
    """Not safe for several threads: who uses it holds a lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0  # rows
        self.tenants: OrderedDict[str, OrderedDict[int, Request]] = OrderedDict()

    def put(self, request: Request, rate: float) -> None:
        """Let a request wait. ``rate`` is how many rows a second are read.

        Raises ``QueueFull`` where more than the limit would be waiting.
        """
        # An empty queue takes a request of any size: waiting would not make it smaller.
        if self.waiting and self.waiting + len(request.rows) > self.limit and not request.is_accepted:
            raise QueueFull(max(1.0, self.waiting / max(rate, 1e-3)))
        self.waiting += len(request.rows)
        self.tenants.setdefault(request.tenant, OrderedDict())[id(request)] = request

    def kind(self, kinds: Collection[str] | None = None) -> str | None:
        """Of which kind the row is whose turn it is, of these ``kinds``, None: of all; None where none waits."""
        self._dismiss()
        request = self._next(kinds)
        return None if request is None else request.kind

    def waiting_of(self, kind: str) -> int:
        """Rows of a kind that wait."""
        return sum(one.waiting for requests in self.tenants.values() for one in requests.values() if one.kind == kind)

    def take(self, tokens: int, longest: int, kind: str | None = None, rows: int | None = None) -> list[Taken]:
        """Rows for one pass: of one ``kind``, of at most so many ``tokens`` and ``rows``, and at least one row.

        One row at a time: of the tenant whose turn it is, of its request whose turn it is. A row has at most
        ``longest`` tokens. Requests that are late or that nobody waits for any more leave.
        """
        self._dismiss()
        taken: dict[int, tuple[Request, int]] = {}
        used = number = 0
        while request := self._next(None if kind is None else (kind,)):
            size = min(len(request.rows[request.taken]), longest)
            if taken and (used + size > tokens or number == rows):
                break
            kind, used, number = request.kind, used + size, number + 1
            first = taken.get(id(request), (request, request.taken))[1]
            taken[id(request)] = (request, first)
            request.taken += 1
            self.waiting -= 1
            self._turn(request)
        return [(request, range(first, request.taken)) for request, first in taken.values()]

    def _next(self, kinds: Collection[str] | None) -> Request | None:
        for requests in self.tenants.values():
            for request in requests.values():
                if kinds is None or request.kind in kinds:
                    return request
        return None

    def _turn(self, request: Request) -> None:
        """The request goes behind its tenant's others, the tenant behind the others."""
        requests = self.tenants[request.tenant]
        if request.waiting:
            requests.move_to_end(id(request))
        else:
            self._remove(request)
        if request.tenant in self.tenants:
            self.tenants.move_to_end(request.tenant)

    def _remove(self, request: Request) -> None:
        requests = self.tenants[request.tenant]
        del requests[id(request)]
        if not requests:
            del self.tenants[request.tenant]

    def _dismiss(self) -> None:
        now = time.monotonic()
        for requests in list(self.tenants.values()):
            for request in list(requests.values()):
                if request.future.done() or request.deadline < now:
                    self.waiting -= request.waiting
                    self._remove(request)
                    request.fail(TooLate("the time for this request is over; ask for less at once"))
