"""Routes that answer with a task, and tell how far its answers can be trusted."""

import asyncio
import io
import json
import tempfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from abmll.experiments.html.figure import standalone
from abmll.experiments.html.plots import reliability
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import Outcomes, reliability_bins
from abmll.model.learned_task import TaskPosterior
from abmll.serving.asking import GLANCE, Named, Seconds, Served, Tenant, while_connected
from abmll.serving.interface import gives, sends
from abmll.serving.job_store import WAITING, NoSuchJob
from abmll.serving.json_bodies import StrictRoute
from abmll.serving.problems import Problem
from abmll.serving.replies import Answers, Job, Quality, Suggestion
from abmll.serving.service import Service, quality_of
from abmll.serving.task_store import StoredTask, in_order
from abmll.serving.wire import Exported, Pool, Question, check_texts

router = APIRouter(prefix="/v1", tags=["answers"], route_class=StrictRoute)
BINS = 10


@router.post("/tasks/{name}/predict", **gives(Answers))
async def predict(body: Question, request: Request, service: Served, task: Named, seconds: Seconds) -> Response:
    """Labels and probabilities of texts, and how much is in doubt.

    The same request to the same version is answered with the same bytes.
    """
    check_texts(body.texts, service.limits)
    row = await run_in_threadpool(service.store.version, task, body.version)
    answers = await while_connected(request, service.answerer.predict(task, row, body.texts, seconds))
    labels = json.dumps(in_order(json.loads(row.labels), task.label_order), ensure_ascii=False)
    head = f'{{"task": {json.dumps(task.name)}, "version": {row.version}, "labels": {labels}, "answers": ['
    headers = {"X-Abmll-Version": str(row.version)}
    return Response(head + ", ".join(answers) + "]}", media_type="application/json", headers=headers)


@router.post("/tasks/{name}/suggest", **gives(Suggestion))
async def suggest(body: Pool, request: Request, service: Served, task: Named, seconds: Seconds) -> dict[str, Any]:
    """Which of unlabelled texts to label next: those first whose label would teach most."""
    check_texts(body.texts, service.limits)
    if task.how != "head":
        raise Problem(422, "only a task that was learned with a head can suggest what to label")
    row = await run_in_threadpool(service.store.version, task)
    answers = await while_connected(request, service.answerer.predict(task, row, body.texts, seconds))
    information = [json.loads(answer)["mutual_information"] for answer in answers]
    order = sorted(range(len(information)), key=lambda n: (-information[n], n))[: body.number]
    return {"order": order, "mutual_information": [information[n] for n in order]}


@router.get("/tasks/{name}/quality", **gives(Quality))
def quality(service: Served, task: Named) -> dict[str, Any]:
    """Accuracy and calibration by cross-validation on the task's examples, with the bins of a reliability figure."""
    found = _quality(service, task)
    each = np.array(found.pop("each"))
    bins = reliability_bins(each[:, 0], each[:, 1], BINS)
    rows = zip(*(part.tolist() for part in bins), strict=True)
    shown = [
        {"low": low, "high": high, "confidence": sure, "accuracy": right, "count": size}
        for low, high, size, sure, right in rows
        if size
    ]
    return {**found, "bins": shown}


@router.get("/tasks/{name}/reliability.svg", **sends("image/svg+xml"))
def figure(service: Served, task: Named) -> Response:
    """The reliability figure."""
    each = np.array(_quality(service, task)["each"])
    nothing = np.zeros(len(each))
    outcomes = Outcomes(each[:, 0], each[:, 1], nothing, nothing, nothing)
    tallest = int(reliability_bins(each[:, 0], each[:, 1]).size.max())
    drawn = standalone(reliability(Method(task.name, outcomes=outcomes), tallest))
    return Response(drawn, media_type="image/svg+xml")


@router.post("/tasks/{name}/export", **sends("application/zip"))
async def export(body: Exported, service: Served, task: Named) -> Response:
    """What was learned, in a zip: for ``abmll predict``, for PEFT, or for vLLM."""
    row = await run_in_threadpool(service.store.version, task)
    posterior = await asyncio.shield(asyncio.wrap_future(service.teacher.known(task, row)))
    data = await run_in_threadpool(_zipped, posterior, body.format, task.name)
    name = f"{task.name}-{body.format}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Abmll-Version": str(row.version)}
    return Response(data, media_type="application/zip", headers=headers)


@router.get("/jobs/{job}", **gives(Job))
def one_job(job: str, service: Served, tenant: Tenant) -> dict[str, Any]:
    """How far a job is."""
    return service.describe_job(service.job_store.job(tenant, job))


@router.delete("/jobs/{job}", status_code=202, **gives(Job, 202))
def cancel_job(job: str, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Cancel a job; what was learned before stays."""
    row = service.job_store.job(tenant, job)
    if row.state != WAITING or not service.jobs.cancel(job):
        raise Problem(409, f"this job is {row.state} already")
    return service.describe_job(service.job_store.job(tenant, job))


@router.get("/jobs/{job}/events", **sends("text/event-stream"))
async def watch_job(job: str, request: Request, service: Served, tenant: Tenant) -> StreamingResponse:
    """A job's progress as server-sent events, until it ends."""
    await run_in_threadpool(service.job_store.job, tenant, job)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(job, service, tenant), media_type="text/event-stream", headers=headers)


async def _events(job: str, service: Service, tenant: str) -> AsyncIterator[str]:
    last = None
    while True:
        try:
            row = await run_in_threadpool(service.job_store.job, tenant, job)
        except NoSuchJob:  # its task was deleted
            yield f"event: end\ndata: {last or '{}'}\n\n"
            return
        document = json.dumps(service.describe_job(row), ensure_ascii=False)
        if document != last:
            last = document
            yield f"event: progress\ndata: {document}\n\n"
        if row.state != WAITING:
            yield f"event: end\ndata: {document}\n\n"
            return
        await asyncio.sleep(GLANCE)


def _quality(service: Service, task: StoredTask) -> dict[str, Any]:
    found = quality_of(service.store.version(task))
    if found is None:
        raise Problem(
            404,
            f"task '{task.name}': its quality is not known; it is measured soon after learning, of a head "
            "with enough examples",
            word="no-quality",
        )
    return found


def _zipped(posterior: TaskPosterior, form: str, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        if form == "posterior":
            posterior.save_pretrained(folder)
        elif form == "peft":
            posterior.export_peft(folder)
        else:
            posterior.export_vllm_ensemble(folder)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(temporary))
    return buffer.getvalue()
