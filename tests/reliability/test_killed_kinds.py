"""Saves of every kind, killed or refused at a system call: the old state or the new one is there, whole.

``tests/common/test_killed_saves.py`` does it at every call of the save that all folders share; here each kind writes
what it really writes, in a process that is forked from this one.
"""

import errno
import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllClassifier, AbmllModel, MetaTrainer, TrainConfig
from abmll.common.errors import AbmllError
from abmll.common.files import restore
from abmll.experiments.cells import load_cell, load_predictions, save_cell
from abmll.serving.objects import Objects
from tests.reliability.conftest import task

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WATCHED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
CELL = Path(__file__).parents[1] / "fixtures/0.2.0/comparison/cells/mine/reptile-s0-2ae387edfad7.json"
Save = Callable[[], object]


def in_a_process(root: Path, save: Save, number: int, how: str) -> int:
    """Save in a process of its own, which ends, or is refused, at the ``number``-th call that changes ``root``.

    With ``how`` "write" its files end after so many bytes. Returns the number of calls (``number`` 0), or the code.
    """
    if (pid := os.fork()) == 0:
        code = 70
        try:
            code = _stopped(root, save, number, how)
        except (AbmllError, OSError) as error:  # of the latter the command line makes a line too
            code = 2 if len(str(error).splitlines()) == 1 else 71
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _stopped(root: Path, save: Save, number: int, how: str) -> int:
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            if how == "kill":
                os._exit(137)
            raise OSError(errno.ENOSPC, "No space left on device")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (event in WATCHED or opened) and str(root) in str(arguments[0]):
            step()

    if how == "write":
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    else:
        sys.addaudithook(hook)
        sync = os.fsync
        os.fsync = lambda descriptor: (step(), sync(descriptor))[1]  # pyright: ignore[reportAttributeAccessIssue]
    save()
    return 0 if number else min(seen, 255)


def content(folder: Path) -> dict[str, str]:
    """All files of a folder, by their hash."""
    restore(folder)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def points(total: int, some: int) -> list[int]:
    """At which calls, spread over all of them."""
    return sorted({1 + round(n * (total - 1) / max(some - 1, 1)) for n in range(some)})


@pytest.fixture(scope="session")
def posteriors(model: AbmllModel) -> dict[str, tuple[Any, Any]]:
    """Two things of each kind that is saved as a folder: the old one and the new one."""
    found: dict[str, tuple[Any, Any]] = {}
    hows: dict[str, dict[str, Any]] = {"posterior": {"steps": 1, "how": "full"}, "head": {"how": "head"}}
    for kind, how in hows.items():
        old, new = (model.adapt(task(name).examples, **how) for name in ("new", "newer"))
        found[kind] = (old.save_pretrained, new.save_pretrained)
        if kind == "posterior":
            found["peft"] = (old.export_peft, new.export_peft)
            found["merged"] = (old.export_merged, new.export_merged)
    texts = [[f"{name} {n} {'ab'[n % 2]}" for n in range(12)] for name in ("old", "new")]
    two = [AbmllClassifier(model=model.scorer.base.name).fit(own, [n % 2 for n in range(12)]) for own in texts]
    found["classifier"] = (two[0].save_pretrained, two[1].save_pretrained)
    found["theta"] = (model.save_pretrained, model.continue_as("abmll-mixture", ensemble_size=2).save_pretrained)
    return found


@pytest.mark.parametrize("kind", ["posterior", "head", "peft", "merged", "classifier", "theta"])
@pytest.mark.parametrize("how", ["kill", "refuse", "write"])
def test_a_folder(
    kind: str, how: str, posteriors: dict[str, tuple[Any, Any]], tmp_path: Path, tries: Callable[[int], int]
) -> None:
    write_old, write_new = posteriors[kind]
    write_old(tmp_path / "old")
    write_new(tmp_path / "new")
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    folder = tmp_path / "x" / "thing"
    total = in_a_process(tmp_path / "x", lambda: write_new(folder), 0, "count")
    assert 5 < total < 255
    codes = set()
    for number in [1, 200, 2000] if how == "write" else points(total + 4, tries(20)):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        write_old(folder)
        code = in_a_process(tmp_path / "x", lambda: write_new(folder, overwrite=True), number, how)
        codes.add(code)
        assert code in ((0, 137) if how == "kill" else (0, 2))
        found = content(folder)
        assert found in (old, new)
        assert code != 0 or found == new
        write_new(folder, overwrite=True)  # the next save clears what was left
        assert [path.name for path in folder.parent.iterdir()] == ["thing"]
    assert (137 if how == "kill" else 2) in codes


@pytest.mark.parametrize("how", ["kill", "refuse", "write"])
def test_a_cell(how: str, tmp_path: Path, tries: Callable[[int], int]) -> None:
    document = load_cell(CELL)
    assert document is not None
    kept = {key: value for key, value in document.items() if key not in ("format", "predictions")}
    rows, path = list(load_predictions(CELL)), tmp_path / "x" / "cell.json"
    total = in_a_process(tmp_path / "x", lambda: save_cell(path, kept, rows), 0, "count")
    for number in [1, 300, 1000] if how == "write" else points(total, tries(40)):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        in_a_process(tmp_path / "x", lambda: save_cell(path, kept, rows), number, how)
        found = load_cell(path)
        assert found is None or list(load_predictions(path)) == rows
        save_cell(path, kept, rows)
        assert load_cell(path) is not None


@pytest.mark.parametrize("how", ["kill", "refuse", "write"])
def test_an_object_of_a_server(how: str, tmp_path: Path, tries: Callable[[int], int]) -> None:
    def put() -> None:
        Objects(str(tmp_path / "x")).put("tasks/1/posterior.bin", b"whole" * 1000)

    total = in_a_process(tmp_path / "x", put, 0, "count")
    for number in [1, 300] if how == "write" else points(total, tries(20)):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        in_a_process(tmp_path / "x", put, number, how)
        found = [path for path in (tmp_path / "x").rglob("*") if path.is_file() and not path.name.startswith(".")]
        assert [path.read_bytes() for path in found] in ([], [b"whole" * 1000])


def train(folder: Path, model: AbmllModel, cache: Path, resume: bool) -> None:
    fresh = AbmllModel.from_base(
        model.scorer.base.twin(), prompt=model.scorer.prompt, r=2, layers_to_transform="1", target_modules=["q_proj"]
    )
    short: dict[str, Any] = {"inner_steps": 1, "per_device_train_batch_size": 2, "calibration_tasks": 0}
    config = TrainConfig(output_dir=str(folder), max_steps=3, save_steps=1, activation_cache_dir=str(cache), **short)
    MetaTrainer(fresh, [task(f"toy{n}") for n in range(2)], config).train(resume=resume)


def theta(folder: Path, model: AbmllModel) -> dict[str, torch.Tensor]:
    return AbmllModel.from_pretrained(folder, model=model.scorer.base.twin()).theta.state_dict()


@pytest.mark.parametrize("how", ["kill", "refuse"])
def test_a_run_and_the_cache_of_activations(
    how: str, model: AbmllModel, tmp_path: Path, tries: Callable[[int], int]
) -> None:
    train(tmp_path / "whole", model, tmp_path / "no cache", resume=False)
    expected, root = theta(tmp_path / "whole", model), tmp_path / "x"
    total = in_a_process(root, lambda: train(root / "run", model, root / "cache", resume=False), 0, "count")
    assert total > 20
    for number in points(total, tries(40)):
        shutil.rmtree(root, ignore_errors=True)
        code = in_a_process(root, lambda: train(root / "run", model, root / "cache", resume=False), number, how)
        assert code in ((137,) if how == "kill" else (0, 2))
        begun = any((root / "run").glob("checkpoint-*"))
        if not begun:
            shutil.rmtree(root / "run", ignore_errors=True)
        train(root / "run", model, root / "cache", resume=begun)
        found = theta(root / "run", model)
        assert all(torch.equal(found[name], own) for name, own in expected.items())
        lines = (root / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["episode"] for line in lines] == [1, 2, 3]
