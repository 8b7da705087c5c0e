"""Two replicas under Ray Serve over one database: each task has one that answers it, and any can learn it."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 480  # half a minute where the machine has nothing else to do
TASKS = 4
# In a process of its own, as Ray starts others and takes hold of the process that it is started in.
DRIVER = """
import json, sys
import httpx, ray, ray_serve
from ray import serve

database, files, model, port = sys.argv[1:]
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
try:
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    settings = ray_serve.Settings(database=database, files=files, model=model, cpus=0.5)
    serve.run(ray_serve.build(settings))
    asking = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    rows = [{"text": "ab"[n % 2] * 3 + str(n), "label": "xy"[n % 2]} for n in range(8)]
    found = []
    for number in range(int(TASKS)):
        made = asking.post("/v1/tasks", json={"name": f"t{number}", "examples": rows})
        answers = [asking.post(f"/v1/tasks/t{number}/predict", json={"texts": ["aaa 17"]}) for _ in range(4)]
        found.append([made.status_code, [[one.status_code, one.headers["x-replica"], one.text] for one in answers]])
    missing = asking.get("/v1/tasks/none")
    print(json.dumps([found, missing.status_code, missing.headers["content-type"]]))
finally:
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_replicas(shared_database: str, tiny_llama: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(ROOT / "src"), str(ROOT / "examples")]
    given = {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    words = [shared_database, str(tmp_path / "files"), str(tiny_llama), str(port)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.replace("TASKS", str(TASKS)), *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **given},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("[[")]  # Ray says more
    found, status, kind = json.loads(line)
    assert (status, kind) == (404, "application/problem+json")
    for made, answers in found:
        assert made == 201
        assert {status for status, _, _ in answers} == {200}
        assert len({(replica, text) for _, replica, text in answers}) == 1
    assert len(list((tmp_path / "files").rglob("*.posterior.safetensors"))) == TASKS
