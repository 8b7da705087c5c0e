"""A server with the real one's interface and no model: it counts words, so that every answer can be foretold."""

import asyncio
import csv
import io
import json
import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from abmll.serving.page_files import router

NOW = "2026-11-29T11:22:33Z"
STEPS = 20
FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 300"><path d="M0 300L300 0" stroke="#888"/></svg>'


@dataclass
class StandIn:
    """What the server knows, and how it is to behave."""

    token: str | None = None
    adapters: bool = False
    step_seconds: float = 0.002  # of a job, which has STEPS of them
    refuse: dict[str, str] = field(default_factory=dict)  # by the last word of a path: the detail of a 503, once
    fail: str = ""  # the error of the next job
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def put(self, name: str, examples: list[tuple[str, str]], how: str = "head") -> None:
        """A task that is there already."""
        self.create(name, how, None)
        self.keep(name, dict(examples))
        self.tasks[name]["version"] = 1

    def create(self, name: str, how: str, order: list[str] | None) -> None:
        self.tasks[name] = {"how": how, "order": order, "version": 0, "examples": {}, "job": None, "damage": None}
        self.tasks[name]["error"] = None

    def keep(self, name: str, new: dict[str, str]) -> None:
        """Note examples, which the next version learns."""
        task = self.tasks[name]
        for text, label in new.items():
            version = task["examples"].get(text, {"version": task["version"] + 1})["version"]
            task["examples"][text] = {"text": text, "label": label, "version": version}

    def shown(self, name: str) -> dict[str, Any]:
        task = self.tasks[name]
        counts = dict(sorted(Counter(one["label"] for one in task["examples"].values()).items()))
        state = "ready" if task["job"] is None else "updating" if task["version"] else "learning"
        state = "damaged" if task["damage"] else state
        return {
            "name": name,
            "state": state,
            "how": task["how"],
            "version": task["version"] or None,
            "labels": list(counts),
            "counts": counts,
            "num_examples": len(task["examples"]),
            "label_order": task["order"],
            "created": NOW,
            "updated": NOW,
            "quality": self.quality(name, bins=False),
            "job": task["job"],
            "error": task["damage"] or task["error"],
        }

    def quality(self, name: str, bins: bool = True) -> dict[str, Any] | None:
        number = len(self.tasks[name]["examples"])
        if number < 4:
            return None
        found: dict[str, Any] = {"num_examples": number, "accuracy": 0.75, "nll": 0.41, "ece": 0.06}
        if bins:
            kept = {"low": 0.9, "high": 1.0, "confidence": 0.93, "accuracy": 1.0, "count": number - 1}
            found["bins"] = [{**kept, "low": 0.5, "high": 0.6, "confidence": 0.55, "accuracy": 0.0, "count": 1}, kept]
        return found

    def answer(self, name: str, text: str) -> dict[str, Any]:
        """Words that a text shares with the examples of a label; doubt of few examples falls with their number."""
        examples = self.tasks[name]["examples"].values()
        words = set(text.lower().split())
        scores = {
            label: 1 + sum(len(words & set(one["text"].lower().split())) for one in examples if one["label"] == label)
            for label in self.shown(name)["labels"]
        }
        probabilities = {label: score / sum(scores.values()) for label, score in scores.items()}
        entropy = -sum(value * math.log(value) for value in probabilities.values())
        return {
            "label": max(probabilities, key=lambda label: probabilities[label]), "probabilities": probabilities,
            "entropy": entropy, "mutual_information": entropy * 2 / (2 + len(examples)), "truncated": len(text) > 400,
        }  # fmt: skip


def problem(status: int, detail: str) -> Response:
    body = {"type": "about:blank", "title": "No", "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")


def stand_in_app(state: StandIn) -> FastAPI:
    """The stand-in as an application, with the page."""
    app = FastAPI(docs_url=None, redoc_url=None)
    app.include_router(router)
    _guard(app, state)
    _read(app, state)
    _write(app, state)
    _answer(app, state)
    return app


def _guard(app: FastAPI, state: StandIn) -> None:
    @app.middleware("http")
    async def guard(request: Request, follow: Any) -> Response:
        path = request.url.path
        state.requests.append(f"{request.method} {path}")
        given = request.headers.get("authorization")
        if path.startswith("/v1/") and state.token and given != f"Bearer {state.token}":
            return problem(401, "This token is not known." if given else "A token is needed.")
        if detail := state.refuse.pop(path.rsplit("/", 1)[-1], None):
            return problem(503, detail)
        if path.startswith("/v1/tasks/") and path.split("/")[3] not in state.tasks:
            return problem(404, f"There is no task '{path.split('/')[3]}'.")
        return await follow(request)


def _read(app: FastAPI, state: StandIn) -> None:
    @app.get("/v1/server")
    def server() -> Any:
        return {"version": "0", "model": "stand-in", "device": "cpu", "tenant": "default", "adapters": state.adapters}

    @app.get("/v1/tasks")
    def tasks(after: str = "", limit: int = 100) -> Any:
        names = sorted(name for name in state.tasks if name > after)
        more = names[limit - 1] if len(names) > limit else None
        return {"tasks": [state.shown(name) for name in names[:limit]], "next": more}

    @app.get("/v1/tasks/{name}")
    def task(name: str) -> Any:
        return state.shown(name)

    @app.get("/v1/tasks/{name}/versions")
    def versions(name: str) -> Any:
        row = {"created": NOW, "num_examples": len(state.tasks[name]["examples"]), "state": "ready"}
        numbers = range(1, state.tasks[name]["version"] + 1)
        return {"versions": [{**row, "version": number, "quality": state.quality(name)} for number in numbers]}

    @app.get("/v1/tasks/{name}/examples")
    def examples(name: str, request: Request) -> Any:
        rows = list(state.tasks[name]["examples"].values())
        if request.headers["accept"] != "text/csv":
            return {"examples": rows}
        text = io.StringIO()
        csv.writer(text).writerows([["text", "label"], *([row["text"], row["label"]] for row in rows)])
        return Response(text.getvalue(), media_type="text/csv")

    @app.get("/v1/tasks/{name}/quality")
    def quality(name: str) -> Any:
        return state.quality(name)

    @app.get("/v1/tasks/{name}/reliability.svg")
    def figure(name: str) -> Response:
        return Response(FIGURE, media_type="image/svg+xml")


def _write(app: FastAPI, state: StandIn) -> None:
    running: set[asyncio.Task[None]] = set()

    def begin(kind: str, name: str, new: dict[str, str]) -> Response:
        job = {"id": f"j{len(state.jobs)}", "task": name, "kind": kind, "state": "running", "done": 0, "total": STEPS}
        job |= {"error": None, "version": None}
        state.jobs[job["id"]], state.tasks[name]["job"] = job, job["id"]
        state.keep(name, new)

        async def work() -> None:
            while job["state"] == "running" and job["done"] < STEPS:
                await asyncio.sleep(state.step_seconds)
                job["done"] += 1
            state.tasks[name]["job"] = None
            if state.fail:
                job.update(state="failed", error=state.fail)
                state.fail = ""
            elif job["state"] == "running":
                state.tasks[name]["version"] += 1
                job.update(state="done", version=state.tasks[name]["version"])
            state.tasks[name]["error"] = job["error"]

        running.add(worker := asyncio.create_task(work()))
        worker.add_done_callback(running.discard)
        return JSONResponse(job, 202, {"Location": f"/v1/jobs/{job['id']}"})

    @app.post("/v1/tasks")
    async def create(request: Request) -> Response:
        body = await request.json()
        if body["name"] in state.tasks:
            return problem(409, f"There is a task '{body['name']}' already; choose another name.")
        state.create(body["name"], body.get("how", "head"), body.get("label_order"))
        return begin("learn", body["name"], {one["text"]: one["label"] for one in body["examples"]})

    @app.put("/v1/tasks/{name}/examples")
    async def add(name: str, request: Request) -> Response:
        body = await request.json()
        return begin("update", name, {one["text"]: one["label"] for one in body["examples"]})

    @app.post("/v1/tasks/{name}/relearn")
    def relearn(name: str) -> Any:
        state.tasks[name].update(damage=None, error=None, version=state.tasks[name]["version"] + 1)
        return state.shown(name)

    @app.delete("/v1/tasks/{name}/examples")
    async def remove(name: str, request: Request) -> Any:
        for text in (await request.json())["texts"]:
            del state.tasks[name]["examples"][text]
        state.tasks[name]["version"] += 1
        return state.shown(name)

    @app.delete("/v1/tasks/{name}")
    def delete(name: str) -> Response:
        del state.tasks[name]
        return Response(status_code=204)

    @app.get("/v1/jobs/{id}")
    def job(id: str) -> Any:
        return state.jobs[id]

    @app.delete("/v1/jobs/{id}")
    def cancel(id: str) -> Response:
        state.jobs[id].update(state="cancelled", error="it was cancelled")
        return Response(status_code=202)

    @app.get("/v1/jobs/{id}/events")
    def events(id: str) -> Response:
        async def lines() -> AsyncIterator[str]:
            while state.jobs[id]["state"] == "running":
                yield f"event: progress\ndata: {json.dumps(state.jobs[id])}\n\n"
                await asyncio.sleep(state.step_seconds)
            yield f"event: end\ndata: {json.dumps(state.jobs[id])}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")


def _answer(app: FastAPI, state: StandIn) -> None:
    @app.post("/v1/tasks/{name}/predict")
    async def predict(name: str, request: Request) -> Any:
        task, texts = state.shown(name), (await request.json())["texts"]
        answers = [state.answer(name, text) for text in texts]
        return {"task": name, "version": task["version"], "labels": task["labels"], "answers": answers}

    @app.post("/v1/tasks/{name}/suggest")
    async def suggest(name: str, request: Request) -> Any:
        doubts = [state.answer(name, text)["mutual_information"] for text in (await request.json())["texts"]]
        order = sorted(range(len(doubts)), key=lambda index: -doubts[index])
        return {"order": order, "mutual_information": [doubts[index] for index in order]}

    @app.post("/v1/tasks/{name}/export")
    async def export(name: str, request: Request) -> Response:
        return Response(b"PK" + (await request.body()), media_type="application/zip")
