"""Saved folders that were changed: each is refused in one line, or read as what it was.

Somebody who also makes the hashes fit again may change a value into another valid one; everything else stays refused.
"""

import copy
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from abmll import AbmllModel, TaskPosterior
from abmll.common.errors import AbmllError
from abmll.experiments.html.reading import read_report
from abmll.model.classifier import AbmllClassifier
from abmll.tasks import Example

SEED = int(os.environ.get("ABMLL_SEED", "0"))
SECONDS = 60  # after which a reader hangs
QUESTIONS = [Example("q", "toy 3 b", ("yes", "no"), None)]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 10**30, -0.0, 1e308, 0.5, "", "x", "é\u202e", "a\nb", "../x", "/etc/passwd"),
    *([], [None], [[]], {}, {"a": 1}, ["x"] * 300, "x" * 20_000, [1e300] * 3, "NaN", "1"),
]


@contextmanager
def no_hanging() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def posterior_content(model: AbmllModel, folder: Path) -> Any:
    """All that is read of a posterior, down to its answers."""
    posterior = TaskPosterior.from_pretrained(folder, scorer=model.scorer)
    bundle = posterior.bundle()
    tensors = {f"{group} {key}": one.tolist() for group, own in bundle.tensors.items() for key, one in own.items()}
    return [bundle.document, tensors, posterior.predict(QUESTIONS).probs.tolist()]


def run_content(model: AbmllModel, folder: Path) -> Any:
    found = AbmllModel.from_pretrained(folder, model=model.scorer.base.twin())
    theta = {key: one.tolist() for key, one in found.theta.state_dict().items()}
    return [theta, found.learning, found.num_tasks, found.calibration_prior]


def classifier_content(model: AbmllModel, folder: Path) -> Any:
    found = AbmllClassifier.from_pretrained(folder)
    return [found.get_params(), found.classes_.tolist(), found.predict_proba(["toy 3 b"]).tolist()]


def report_content(model: AbmllModel, folder: Path) -> Any:
    report = read_report(folder)
    methods = {key: [one.label, one.tasks, one.mean, one.pooled] for key, one in report.methods.items()}
    return [methods, report.settings, str(report.methods)]


READERS: dict[str, Callable[[AbmllModel, Path], Any]] = {
    "posterior": posterior_content,
    "mixture": posterior_content,
    "head": posterior_content,
    "run": run_content,
    "classifier": classifier_content,
    "evaluation": report_content,
}
ALL = READERS | {"report": report_content}  # of a run


def copied(original: Path, folder: Path) -> Path:
    """A copy to be changed, in the place of the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(document: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """The document with one change at a place."""
    if not path:
        return value
    document = copy.deepcopy(document)
    outer = document
    for key in path[:-1]:
        outer = outer[key]
    if how == "drop":
        del outer[path[-1]]
    elif how == "rename" and isinstance(outer, dict):
        outer[f"{path[-1]}x"] = outer.pop(path[-1])
    elif how == "nest":
        outer[path[-1]] = [outer[path[-1]]]
    elif how == "text":
        outer[path[-1]] = str(outer[path[-1]])
    else:
        outer[path[-1]] = value
    return document


def reseal(folder: Path) -> None:
    """Make the hashes fit again: a document's own, and those of the manifests."""
    for path in folder.rglob("*.json"):
        try:
            document = json.loads(path.read_bytes())
        except ValueError:
            continue
        if isinstance(document, dict) and isinstance(document.get("sha256"), str):
            rest = {key: value for key, value in document.items() if key != "sha256"}
            text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
            path.write_text(json.dumps(rest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))
    for manifest in folder.rglob("manifest.json"):
        hashes = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in manifest.parent.iterdir()
                  if one.is_file() and one != manifest and one.suffix in (".json", ".safetensors")}  # fmt: skip
        hashes.pop("classifier.json", None)
        manifest.write_text(json.dumps({"sha256": hashes}))


def verdict(kind: str, model: AbmllModel, folder: Path) -> Any:
    """What was read, or the one line with which it was refused."""
    try:
        with no_hanging():
            return ALL[kind](model, folder)
    except AbmllError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        return line


@pytest.fixture(scope="session")
def originals(model: AbmllModel, folders: Path) -> dict[str, Any]:
    """What the folders hold."""
    return {kind: read(model, folders / kind) for kind, read in READERS.items()}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("resealed", [False, True], ids=["as it is", "hashes made to fit"])
def test_changed_documents(
    kind: str, resealed: bool, model: AbmllModel, folders: Path, originals: dict[str, Any],
    tmp_path: Path, tries: Callable[[int], int],
) -> None:  # fmt: skip
    @seed(SEED)
    @settings(max_examples=tries(170))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        folder = copied(folders / kind, tmp_path / "changed")
        files = sorted(path for path in folder.rglob("*.json") if path.parent.name != "report")
        path = data.draw(st.sampled_from(files), "file")
        document = json.loads(path.read_bytes())
        place = data.draw(st.sampled_from(list(places(document))[:4000]), "place")
        how = data.draw(st.sampled_from(["drop", "rename", "nest", "text", "odd", "odd", "odd", "twice"]), "how")
        value = data.draw(st.sampled_from(ODD), "value")
        if how == "twice" and isinstance(document, dict) and document:
            key, text = next(iter(document)), json.dumps(document)
            path.write_text(f"{{{json.dumps(key)}: {json.dumps(value)}, {text[1:]}")
        else:
            path.write_text(json.dumps(changed(document, place, how, value)))
        if resealed:
            reseal(folder)
        found = verdict(kind, model, folder)
        assert resealed or isinstance(found, str) or found == originals[kind]

    check()


@pytest.mark.parametrize("kind", READERS)
def test_changed_bytes(
    kind: str, model: AbmllModel, folders: Path, originals: dict[str, Any], tmp_path: Path, tries: Callable[[int], int]
) -> None:
    @seed(SEED)
    @settings(max_examples=tries(100))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        folder = copied(folders / kind, tmp_path / "changed")
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors"))
        path = data.draw(st.sampled_from(files), "file")
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, max(len(content) - 1, 0)), "at")
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "empty", "remove", "folder"]), "how")
        if how == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9), "bytes")
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how != "remove":
            path.write_bytes({"cut": content[:at], "empty": b""}.get(how, content))
        found = verdict(kind, model, folder)
        of_lines = path.suffix == ".jsonl" or path.name in OPTIONAL
        assert isinstance(found, str) or found == originals[kind] or of_lines

    check()


def put_in_place(path: Path, how: str) -> None:
    """Something else under the name of a file."""
    outside = path.with_name(f"outside {path.name}") if how == "link within" else path.parents[1] / "outside"
    path.rename(outside)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if how == "device" else outside)


@pytest.mark.parametrize("how", ["pipe", "device", "folder", "link out", "link within"])
@pytest.mark.parametrize("kind", ALL)
def test_what_is_no_file_of_the_folder(
    kind: str, how: str, model: AbmllModel, folders: Path, originals: dict[str, Any], tmp_path: Path
) -> None:
    source, refused = folders / ("run" if kind == "report" else kind), set[str]()
    original = report_content(model, source) if kind == "report" else originals[kind]
    for file in sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file()):
        folder = copied(source, tmp_path / source.name)
        put_in_place(folder / file, how)
        found = verdict(kind, model, folder)
        assert isinstance(found, str) or found == original, file  # the same: of a file that is not read
        if isinstance(found, str):
            refused.add(file.name)
    if how == "link within":
        assert not refused
    else:
        assert refused >= READ[kind]


# What every reader must have come upon.
OF_POSTERIOR = {"manifest.json", "posterior.json", "phi.safetensors"}
READ = {
    "posterior": OF_POSTERIOR,
    "mixture": {"manifest.json", "posterior.json"},
    "head": {"manifest.json", "posterior.json", "head.safetensors"},
    "run": {"manifest.json", "state.json", "theta.safetensors", "calibration.json"},
    "classifier": {"manifest.json", "posterior.json", "classifier.json"},
    "evaluation": {"metrics.json", "predictions.jsonl"},
    "report": {"metrics.jsonl", "timing.jsonl", "config.yaml"},
}
OPTIONAL = ("calibration.json",)  # without it a run is read as one that learned none


@pytest.mark.parametrize("kind", ["posterior", "head", "run"])
def test_changed_tensors_whose_hashes_fit(
    kind: str, model: AbmllModel, folders: Path, tmp_path: Path, tries: Callable[[int], int]
) -> None:
    @seed(SEED)
    @settings(max_examples=tries(70))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        folder = copied(folders / kind, tmp_path / "changed")
        files = sorted(path for path in folder.rglob("*.safetensors") if load(path.read_bytes()))
        path = data.draw(st.sampled_from(files), "file")
        tensors = load(path.read_bytes())
        name = data.draw(st.sampled_from(sorted(tensors)), "tensor")
        how = data.draw(st.sampled_from(["nan", "inf", "drop", "add", "rename", "half", "int", "shape", "one"]), "how")
        tensor = tensors.pop(name)
        if how in ("nan", "inf") and tensor.is_floating_point():
            tensor = tensor.clone()
            tensor.view(-1)[0] = float(how)
        tensor = {"half": tensor.half, "int": tensor.int, "one": tensor[:1].clone if tensor.dim() else tensor.clone,
                  "shape": tensor[None].clone}.get(how, tensor.clone)()  # fmt: skip
        if how != "drop":
            tensors[f"{name}x" if how == "rename" else name] = tensor
        if how == "add":
            tensors["more"] = torch.zeros(2)
        path.write_bytes(save(tensors, metadata={"format": "pt"}))
        reseal(folder)
        verdict(kind, model, folder)

    check()
