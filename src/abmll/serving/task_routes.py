"""Routes that make and change tasks, and tell of them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Row
from starlette.concurrency import run_in_threadpool

from abmll.common.errors import DataError
from abmll.experiments.sheets import csv_text
from abmll.serving.asking import GLANCE, Columns, Named, Patience, Repeated, Served, Tenant, given
from abmll.serving.interface import CSV, gives, takes
from abmll.serving.job_store import WAITING
from abmll.serving.jobs import Live
from abmll.serving.json_bodies import StrictRoute
from abmll.serving.problems import Problem
from abmll.serving.replies import Examples, Job, LeftOut, ServedTask, Tasks, Versions
from abmll.serving.scored import BASE
from abmll.serving.service import Service, moment, summary
from abmll.serving.task_changes import Accepted, change, check_labels, create, relearn
from abmll.serving.task_store import Labelled, NoSuchTask, StoredTask
from abmll.serving.wire import AddedExamples, NewTask, Texts, check_name, labelled

router = APIRouter(prefix="/v1/tasks", tags=["tasks"], route_class=StrictRoute)


@router.get("", **gives(Tasks))
def list_tasks(service: Served, tenant: Tenant, after: str = "", limit: int = 100) -> dict[str, Any]:
    """Tasks in the order of their names; ``next`` is the ``after`` of the next page."""
    limit = max(1, min(limit, 1000))
    found = service.store.tasks(tenant, after, limit)
    more = found[-1].name if len(found) == limit else None
    return {"tasks": list(described(service, found)), "next": more}


@router.post("", status_code=201, openapi_extra=takes(NewTask), **gives(ServedTask, 201, accepted=Job))
async def new_task(
    request: Request,
    service: Served,
    tenant: Tenant,
    patience: Patience,
    repeat: Repeated,
    columns: Columns,
    name: Annotated[str, Query(description="of a CSV: the task's name")] = "",
    how: Annotated[Literal["head", "full"], Query(description="of a CSV: full learns by gradient steps")] = "head",
) -> Response:
    """Learn a task from labelled examples: JSON, or a CSV with ``?name=``."""
    found = await given(request, NewTask, columns)
    body = found.body if isinstance(found.body, NewTask) else NewTask(name=check_name(name), examples=[], how=how)
    name, examples = check_name(body.name), labelled(found.pairs, service.limits)
    _refuse_unlearnable(service, body, examples)
    settings = {"label_order": body.label_order, "steps": body.steps}
    limit = service.limits.max_tasks
    act = partial(create, service.store, tenant, name, body.how, settings, examples, repeat, limit)
    return await _learned(service, act, patience, 201, found.left_out(examples))


@router.get("/{name}", **gives(ServedTask))
def one_task(service: Served, task: Named) -> dict[str, Any]:
    """A task: labels, counts, version, cross-validated quality."""
    return service.describe(task)


@router.delete("/{name}", status_code=204)
def delete_task(service: Served, task: Named) -> None:
    """Delete a task with all its examples and versions."""
    service.delete(task)


@router.get("/{name}/versions", **gives(Versions))
def all_versions(service: Served, task: Named) -> dict[str, Any]:
    """All versions, the newest first."""
    rows = service.store.versions(task)
    return {
        "versions": [
            {
                "version": row.version,
                "created": moment(row.created),
                "num_examples": row.num_examples,
                "state": row.state,
                "quality": summary(row),
            }
            for row in rows
        ]
    }


@router.get("/{name}/examples", **gives(Examples, media_type=CSV))
def all_examples(request: Request, service: Served, task: Named) -> Response:
    """The examples of the newest version, as JSON, or as CSV where that is accepted."""
    found = service.store.examples(task)
    if CSV not in request.headers.get("accept", ""):
        rows = [{"text": one.text, "label": one.label, "version": one.version} for one in found]
        return JSONResponse({"examples": rows})
    text = csv_text([{"text": one.text, "label": one.label} for one in found])
    headers = {"Content-Disposition": f'attachment; filename="{task.name}.csv"'}
    return Response(text, media_type=f"{CSV}; charset=utf-8", headers=headers)


@router.put("/{name}/examples", openapi_extra=takes(AddedExamples), **gives(ServedTask, accepted=Job))
async def add_examples(
    request: Request, service: Served, task: Named, patience: Patience, repeat: Repeated, columns: Columns
) -> Response:
    """Add examples. A text that is there already with another label gets the new label.

    ``new_labels`` are those that the task did not have: one of them may be mistyped.
    """
    found = await given(request, AddedExamples, columns)
    examples = labelled(found.pairs, service.limits)
    act = partial(change, service.store, task, examples, repeat=repeat, limit=service.limits.max_examples)
    return await _learned(service, act, patience, 200, found.left_out(examples))


@router.delete("/{name}/examples", **gives(ServedTask, accepted=Job))
async def remove_examples(body: Texts, service: Served, task: Named, patience: Patience, repeat: Repeated) -> Response:
    """Remove the examples with these texts."""
    gone = frozenset(body.texts)
    return await _learned(service, partial(change, service.store, task, (), gone, repeat), patience, 200)


@router.post("/{name}/relearn", **gives(ServedTask, accepted=Job))
async def learn_again(service: Served, task: Named, patience: Patience, repeat: Repeated) -> Response:
    """Learn the newest examples anew, as a new version."""
    return await _learned(service, partial(relearn, service.store, task, repeat), patience, 200)


def described(service: Service, tasks: list[StoredTask]) -> Iterator[dict[str, Any]]:
    """Tasks as clients see them, but for those that are deleted meanwhile."""
    for task in tasks:
        with suppress(NoSuchTask):
            yield service.describe(task)


async def _learned(
    service: Service, accept: Callable[[], Accepted], patience: float, status: int, left_out: LeftOut | None = None
) -> Response:
    """The task once the job of what is accepted is done, or the job where that takes longer than the client waits.

    Where examples were given either says as well what was left out of them, and which labels are new.
    """
    deadline = time.monotonic() + patience
    accepted, live = await run_in_threadpool(_begun, service, accept)
    task, job = accepted.task, accepted.job
    said: dict[str, Any] = {}
    if left_out is not None:
        new_labels = await run_in_threadpool(service.store.new_labels, task, accepted.version)
        said = {"new_labels": new_labels, "left_out": asdict(left_out)}
    headers = {} if job is None else {"Location": f"/v1/jobs/{job}"}
    if live is not None:
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(live.finished)), patience or 0.001)
        except asyncio.TimeoutError:
            row = await run_in_threadpool(service.job_store.job, task.tenant, live.id)
            return JSONResponse(service.describe_job(row) | said, 202, headers)
        if live.refused is not None:
            raise live.refused
    if job is not None:
        row = await _settled(service, task, job, deadline)
        if row.state == WAITING:
            return JSONResponse(service.describe_job(row) | said, 202, headers)
        if row.state in ("failed", "cancelled"):
            raise Problem(409 if row.state == "cancelled" else 422, f"task '{task.name}': {row.error}")
    return JSONResponse(await run_in_threadpool(service.describe, task) | said, status, headers)


async def _settled(service: Service, task: StoredTask, job: str, deadline: float) -> "Row[Any]":
    """The row of a job, as it is once another server has done it or the client waits no longer."""
    look = partial(service.job_store.job, task.tenant, job)
    row = await run_in_threadpool(look)
    while row.state == WAITING and row.owner != service.server and time.monotonic() < deadline:
        await asyncio.sleep(GLANCE)
        row = await run_in_threadpool(look)
    return row


def _begun(service: Service, accept: Callable[[], Accepted]) -> tuple[Accepted, Live | None]:
    """What is accepted, and its job where it is this server's to do: begun at once, whether or not the client stays."""
    accepted = accept()
    if accepted.job is None:
        return accepted, None
    row = service.job_store.job(accepted.task.tenant, accepted.job)
    if row.state in ("failed", "cancelled"):  # it is asked for again, and may do better now
        service.job_store.again(row.id)
        row = service.job_store.job(accepted.task.tenant, accepted.job)
    if row.state == "done" or row.owner != service.server:
        return accepted, None
    return accepted, service.jobs.start(row.id, row.task, row.version, row.kind, row.how)


def _refuse_unlearnable(service: Service, body: NewTask, examples: list[Labelled]) -> None:
    check_labels({one.label for one in examples}, body.label_order)
    if body.how == "full" and body.name == BASE:
        raise DataError(f"name: '{BASE}' is the language model's own name; choose another one")
    if body.how == "full" and service.resident.stepping is None:
        raise DataError("how: 'full' takes gradient steps from a theta; start the server with a training run")
    order = body.label_order or []
    if len(set(order)) < len(order) or (order and body.how == "full"):
        what = "only a head learns an order" if body.how == "full" else "has a label twice; name every label once"
        raise DataError(f"label_order: {what}")
