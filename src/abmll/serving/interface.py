"""What the server says of its interface to programs: ``/openapi.json``, which ``/docs`` shows to people.

FastAPI describes what it reads and checks itself. Bodies that are JSON or CSV and answers that are bytes already are
described here, by the forms that read them.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic.json_schema import models_json_schema

from abmll.serving.wire import AddedExamples, Body, NewTask

CSV = "text/csv"
BODIES: tuple[type[Body], ...] = (NewTask, AddedExamples)  # that may be CSV as well
PLACE = "#/components/schemas/{model}"
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one line that says what is wrong and what to do"},
        "instance": {"type": "string", "description": "the request's name in the server's log"},
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "What was asked cannot be done (RFC 9457)",
        "content": {"application/problem+json": {"schema": {"$ref": PLACE.format(model="Problem")}}},
    }
}


class Described(FastAPI):
    """An application whose description has all forms in one place, and says where a token goes."""

    def openapi(self) -> dict[str, Any]:
        """The description."""
        found = super().openapi()  # the same one each time
        if "security" not in found:
            components = found.setdefault("components", {})
            modes: list[tuple[type[Body], Literal["validation"]]] = [(one, "validation") for one in BODIES]
            _, forms = models_json_schema(modes, ref_template=PLACE)
            components.setdefault("schemas", {}).update(forms["$defs"], Problem=PROBLEM)
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{}, {"token": []}]  # where the server has no tokens none is needed
        return found


def gives(form: Any, status: int = 200, accepted: Any = None, media_type: str = "") -> dict[str, Any]:
    """A route's arguments: the form of its answer, which it makes itself.

    Args:
        accepted: the form of an answer with status 202, where there is one.
        media_type: of another form of the answer, which is no JSON.
    """
    forms: dict[int, dict[str, Any]] = {status: {"model": form}}
    if accepted is not None:
        forms[202] = {"model": accepted, "description": "It is learned: /v1/jobs/ID says how far that is"}
    if media_type:
        forms[status]["content"] = {media_type: {"schema": {"type": "string"}}}
    return {"response_model": None, "responses": forms}


def sends(media_type: str) -> dict[str, Any]:
    """A route's arguments where it answers with something that is no JSON."""
    content = {media_type: {"schema": {"type": "string"}}}
    return {"response_model": None, "response_class": Response, "responses": {200: {"content": content}}}


def takes(form: type[Body]) -> dict[str, Any]:
    """What a route says of a body that is JSON of this form, or CSV."""
    json = {"schema": {"$ref": PLACE.format(model=form.__name__)}}
    return {
        "requestBody": {"required": True, "content": {"application/json": json, CSV: {"schema": {"type": "string"}}}}
    }
