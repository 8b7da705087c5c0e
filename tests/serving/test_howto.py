"""The page on serving says what happens: its lines are sent to a server, its Python is run."""

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from abmll import AbmllModel
from abmll.common.config import LearningConfig
from abmll.serving.app import make_app
from abmll.serving.limits import ServeConfig
from abmll.serving.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "serve.md"
ADDRESS = "http://127.0.0.1:8000"
CSV = "body,queue\n" + "".join(f"Charged {n},billing\nCrash {n},bug\n" for n in range(3))


@pytest.fixture
def address(few_chains: None, tiny_model: AbmllModel, tmp_path: Path, listen: Callable[[Any], str]) -> str:
    tiny_model.learning = LearningConfig(method="head")
    service = Service(tiny_model, f"sqlite:///{tmp_path / 'store.sqlite'}", str(tmp_path / "files"), ServeConfig())
    return listen(make_app(service))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_its_lines_do_what_the_page_says(address: str) -> None:
    httpx = pytest.importorskip("httpx")
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    asked = [shlex.split(line)[1:] for line in lines if line.startswith("curl")]
    assert len(asked) == 5
    found = []
    for words in asked:
        flags = dict(pairwise(words))
        url = next(word for word in words if word.startswith(ADDRESS)).replace(ADDRESS, address)
        body = flags.get("-d") or (CSV if "--data-binary" in flags else None)
        kind = [flags["-H"].split(": ")] if "-H" in flags else []
        response = httpx.request(flags.get("-X", "GET"), url, content=body, headers=kind, timeout=60)
        assert response.is_success, response.text
        found.append(response.json())
    learned, predicted, changed, suggested, task = found
    assert learned["counts"] == {"billing": 3, "bug": 3}
    assert [set(one["probabilities"]) for one in predicted["answers"]] == [{"billing", "bug"}] * 2
    assert (changed["version"], changed["counts"]["bug"]) == (2, 4)
    assert len(suggested["order"]) == 1
    assert task["version"] == 2


def test_its_python_runs(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = blocks("python")
    names: dict[str, Any] = {}
    exec(code.replace(ADDRESS, address), names)
    assert names["answer"].label in ("billing", "bug")
    assert (tmp_path / "mail.zip").stat().st_size > 1000
