"""Damaged runs, posteriors and models, and places that cannot be written: one line, and nothing lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Call = Callable[..., Any]

READ_RUN = {
    "train": "{train} --output-dir run --resume --max-steps 3",
    "adapt": "adapt toy3.jsonl --theta run --output-dir out",
    "predict": "predict run --input toy3.jsonl --output out.jsonl",
    "evaluate": "evaluate run --suite suite.yaml --output-dir out",
    "export": "export run --format peft --output-dir out",
}
READ_POSTERIOR = {
    "predict": "predict new --input toy3.jsonl --output out.jsonl",
    "export": "export new --format merged --output-dir out",
}


@pytest.mark.parametrize(
    ("document", "format", "commands"),
    [
        ("run/checkpoint-2/state.json", "abmll-checkpoint-1", READ_RUN.values()),
        ("new/posterior.json", "abmll-posterior-2", READ_POSTERIOR.values()),
    ],
)
def test_what_version_0_1_wrote_is_refused(
    document: str, format: str, commands: Iterable[str], work: Any, refused: Call
) -> None:
    path = Path(document)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": format}))
    manifest = path.with_name("manifest.json")
    hashes = json.loads(manifest.read_text())["sha256"]
    hashes[path.name] = sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps({"sha256": hashes}))
    for command in commands:
        refused(command.format(train=work.train), f"{document}: was written by abmll 0.1, which this version")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON document, or the tensors of a safetensors file, and enter its new hash in the manifest."""
    values = json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)
    change(values)
    if path.suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        save_file(values, path)
    if (manifest := path.with_name("manifest.json")).exists():
        listed = json.loads(manifest.read_text())
        listed["sha256"][path.name] = sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(listed))


def hide_the_damage(path: Path) -> None:
    """A file that was cut before its hash was taken."""
    save_file({}, path)
    rewrite(path, lambda tensors: None)
    path.write_bytes(b"\x08" + path.read_bytes()[1:4])
    manifest = path.with_name("manifest.json")
    listed = json.loads(manifest.read_text())
    listed["sha256"][path.name] = sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(listed))


def fill_with_nan(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).fill_(float("nan"))


# The file, what is done to it, and what the error must say.
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("tensors", truncate, "does not match its sha256 in manifest.json, so it is damaged; "),
    "a bit flipped": ("tensors", flip_a_bit, "does not match its sha256 in manifest.json, so it is damaged; "),
    "missing": ("tensors", Path.unlink, "cannot be read (No such file or directory); "),
    "cut before it was hashed": ("tensors", hide_the_damage, "cannot be read ("),
    "not finite": ("tensors", lambda path: rewrite(path, fill_with_nan), "holds values that are not finite numbers"),
    "document truncated": ("document", truncate, "does not match its sha256"),
    "document of another format": (
        "document",
        lambda path: rewrite(path, lambda document: document.update(format="abmll-9")),
        "is not of the format 'abmll-",
    ),
    "manifest truncated": ("manifest", truncate, "manifest.json: is not valid JSON ("),
    "manifest missing": ("manifest", Path.unlink, "manifest.json: missing; "),
    "another rank": (
        "document",
        lambda path: rewrite(path, lambda document: document["settings"].update(r=5)),
        "it was saved with another rank or model",
    ),
    "another layer": (
        "document",
        lambda path: rewrite(path, lambda document: document["settings"].update(layers_to_transform="0")),
        "it belongs to another model or adapter setting",
    ),
}
RUN_FILES = {"tensors": "theta.safetensors", "document": "state.json", "manifest": "manifest.json"}
POSTERIOR_FILES = {"tensors": "phi.safetensors", "document": "posterior.json", "manifest": "manifest.json"}


@pytest.mark.parametrize("verb", READ_RUN)
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoints(kind: str, verb: str, work: Any, refused: Call) -> None:
    which, damage, fragment = DAMAGES[kind]
    if verb == "train" and kind.startswith("another"):
        fragment = "run: --resume with "  # the command says what the run should be
    damage(Path("run/checkpoint-2", RUN_FILES[which]))
    refused(READ_RUN[verb].format(train=work.train), "run", fragment)


@pytest.mark.parametrize("verb", READ_POSTERIOR)
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_posteriors(kind: str, verb: str, work: Any, refused: Call) -> None:
    which, damage, fragment = DAMAGES[kind]
    damage(Path("new", POSTERIOR_FILES[which]))
    refused(READ_POSTERIOR[verb], "new/", fragment)


def test_an_older_checkpoint_is_there_to_fall_back_on(work: Any, abmll: Call) -> None:
    truncate(Path("run/checkpoint-2/theta.safetensors"))
    command = READ_RUN["train"].format(train=work.train)
    assert "delete the folder to fall back on an older one" in abmll(command).err
    shutil.rmtree("run/checkpoint-2")
    assert abmll(command).code == 0
    assert [json.loads(line)["episode"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_damaged_metrics(work: Any, refused: Call) -> None:
    metrics = Path("run/metrics.jsonl")
    metrics.write_text("{\n" + metrics.read_text())
    refused(READ_RUN["train"].format(train=work.train), "run/metrics.jsonl:1: ")
    refused("report run", "run/metrics.jsonl:1: is not valid JSON")


@pytest.mark.parametrize("command", [*READ_RUN.values(), *READ_POSTERIOR.values()])
def test_another_base_model(command: str, work: Any, refused: Call) -> None:
    shutil.copytree(work.model, "other")
    rewrite(Path("other/model.safetensors"), lambda tensors: tensors["model.embed_tokens.weight"].mul_(1.5))
    fragments = (f"was learned on {work.model}, but the model loaded from other has other weights; name the right one",)
    if "--resume" in command:
        fragments = ("run: --resume with model = other, but the run has model = ",)
    refused(command.format(train=work.train) + " --model other", *fragments)


@pytest.mark.parametrize("command", ["{train} --output-dir out", *READ_POSTERIOR.values()])
def test_a_model_that_is_gone(command: str, work: Any, refused: Call) -> None:
    gone = work.root / "gone"
    rewrite(Path("new/posterior.json"), lambda document: document["settings"].update(model=str(gone)))
    if "--output-dir out" in command and "train" in command:
        command += f" --model {gone}"
    refused(command.format(train=work.train), f"model: there is no folder {gone}; give a folder")


def without_a_weight(folder: Path) -> None:
    rewrite(folder / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))


def with_a_nan(folder: Path) -> None:
    change = {"model.norm.weight": torch.full((32,), float("nan"))}
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update(change))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (lambda folder: truncate(folder / "model.safetensors"), "model: cannot load broken: "),
    "a bit flipped in the header": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            b"\xff" + (folder / "model.safetensors").read_bytes()[1:]
        ),
        "model: cannot load broken: ",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model: cannot load broken: "),
    "a weight missing": (without_a_weight, "model: broken lacks weights: model.norm.weight"),
    "a weight that is no number": (
        with_a_nan,
        "model: broken: its probabilities are not numbers; the weights are damaged",
    ),
    "malformed configuration": (lambda folder: truncate(folder / "config.json"), "model: cannot load broken: "),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "model: cannot load broken: "),
}


@pytest.mark.parametrize("kind", MODELS)
def test_damaged_models(kind: str, work: Any, refused: Call) -> None:
    damage, fragment = MODELS[kind]
    shutil.copytree(work.model, "broken")
    damage(Path("broken"))
    refused(f"{work.train} --output-dir out --model broken", fragment)


WRITE = {
    "train": "{train} --output-dir {out} --max-steps 1",
    "adapt": "adapt toy3.jsonl --theta run --output-dir {out} --steps 1",
    "predict": "predict new --input toy3.jsonl --output {out}.jsonl --num-samples 1",
    "evaluate": "evaluate run --suite suite.yaml --output-dir {out} --steps 1 --num-samples 0",
    "peft": "export new --format peft --output-dir {out}",
    "merged": "export new --format merged --output-dir {out}",
}


@pytest.mark.parametrize("verb", WRITE)
def test_a_place_below_a_file(verb: str, work: Any, refused: Call) -> None:
    command = WRITE[verb].format(train=work.train, out="toy3.jsonl/deep/out")
    refused(command, "cannot write toy3.jsonl/deep/out", ": toy3.jsonl is a file, not a folder; choose another place")


@pytest.mark.parametrize("verb", [verb for verb in WRITE if verb != "predict"])
def test_a_file_is_no_folder(verb: str, work: Any, refused: Call) -> None:
    command = WRITE[verb].format(train=work.train, out="toy3.jsonl") + " --overwrite"
    refused(command, "cannot write toy3.jsonl: toy3.jsonl is a file, not a folder; choose another place")


@pytest.mark.parametrize("verb", WRITE)
def test_a_name_that_is_too_long(verb: str, work: Any, refused: Call) -> None:
    refused(WRITE[verb].format(train=work.train, out="n" * 300), "cannot write nnn", "File name too long")


@pytest.mark.parametrize("verb", WRITE)
def test_a_folder_that_may_not_be_written(verb: str, work: Any, refused: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere; on a read-only file system the system call answers as it does here.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "tasks")
    command = WRITE[verb].format(train=work.train, out="tasks/out")
    refused(command, "cannot write tasks/out", ": tasks is read-only; choose a folder you may write to")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def failing_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """Every flush to the disk fails: a full disk may accept a write and refuse it later."""

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


REMEDIES = {
    errno.ENOSPC: "No space left on device; free some space or choose another folder",
    errno.EROFS: "Read-only file system; choose a folder you may write to",
    errno.EIO: "Input/output error; check the path",
}


@pytest.mark.parametrize(
    ("number", "verb"), [*((errno.ENOSPC, verb) for verb in WRITE), (errno.EROFS, "adapt"), (errno.EIO, "predict")]
)
def test_a_disk_that_fails(number: int, verb: str, work: Any, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    command = WRITE[verb].format(train=work.train, out="out")
    assert abmll(command, "--quiet").code == 0
    before = files_of(work.root)
    with failing_sync(monkeypatch, number):
        code, out, err = abmll(
            command, "--overwrite --seed 1" if verb not in ("peft", "merged") else "--overwrite", "--quiet"
        )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("abmll: error: cannot write out")
    assert REMEDIES[number] in err
    if verb != "train":  # which was told to replace a run: see test_stopped_runs for what it keeps
        assert files_of(work.root) == before


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: a real refusal, which libraries that are not Python meet as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("verb", WRITE)
def test_a_disk_that_takes_no_more(verb: str, work: Any, abmll: Call) -> None:
    before = files_of(work.root)
    with at_most(1400):
        code, out, err = abmll(WRITE[verb].format(train=work.train, out="out"), "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("abmll: error: cannot write out")
    assert "ile too large" in err
    assert "free some space or choose another folder" in err
    after = files_of(work.root)
    if verb == "train":  # the run has begun, and has no checkpoint yet
        for name in ("config.yaml", "metrics.jsonl", "timing.jsonl"):
            after.pop(str(work.root / "out" / name))
    assert after == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "abmll", "--help"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "abmll: error: writing the output: No space left on device\n")
