"""Small files of tasks, written where a test asks for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSONL under a file name, and return the path."""

    def write(rows: list[dict[str, Any]], name: str = "task.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def question(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A valid row, with changes; a change to ``...`` removes the key."""
    row = {"input": f"Is {number} even?", "options": ["yes", "no"], "answer": number % 2, **changes}
    return {key: value for key, value in row.items() if value is not ...}


@pytest.fixture(name="question")
def question_fixture() -> Callable[..., dict[str, Any]]:
    """The function ``question(number, **changes)``: a valid row; a change to ``...`` removes the key."""
    return question
