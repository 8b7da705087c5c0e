"""JSON of requests, read as documents on the disk are: no key twice, no NaN, no nesting without end."""

from collections.abc import Callable, Coroutine
from json import JSONDecodeError
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from abmll.common.strict_json import parse_json
from abmll.serving.problems import Problem


class StrictRequest(Request):
    """A request whose JSON says one thing."""

    async def json(self) -> Any:
        """The body's value. Raises ``Problem``."""
        try:
            return parse_json(await self.body())
        except JSONDecodeError as error:
            detail = f"the body is no JSON (character {error.pos}: {error.msg}); send one JSON object"
            raise Problem(422, detail, word="invalid") from error
        except UnicodeDecodeError as error:
            raise Problem(400, "the body is no UTF-8; send JSON in UTF-8") from error
        except ValueError as error:
            raise Problem(400, f"the body: {error}; send one JSON object, with every key once") from error


class StrictRoute(APIRoute):
    """A route that is given such requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        inner = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await inner(StrictRequest(request.scope, request.receive))

        return answer
