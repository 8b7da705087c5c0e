"""The commands and the Python of pages on larger models, exports and trackers, on a tiny model."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll import AbmllModel, TrainConfig, load_tasks

PAGES = Path(__file__).parents[2] / "docs" / "howto"
SMALL = "--max-steps 2 --inner-steps 1 --r 2 --layers-to-transform 1 --target-modules q_proj --calibration-tasks 0"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in that language; a command is one line of them."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [block.replace("\\\n", " ") for _, block in found]


def commands(page: str) -> list[str]:
    lines = [line.strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line.removeprefix("abmll ") for line in lines if line.startswith("abmll ")]


@pytest.fixture
def files(work: Any) -> Any:
    """The files that the pages name."""
    for name in ("my_tasks", "held_out"):
        shutil.copytree("tasks", name)
    shutil.copy("toy3.jsonl", "my_task.jsonl")
    shutil.copy("toy3.jsonl", "test_rows.jsonl")
    rows = [f"{word} {number},{word}" for number in range(4) for word in ("good", "bad")]
    Path("tickets.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    Path("new.csv").write_text("text\ngood 7\n", encoding="utf-8")
    Path("questions.csv").write_text("text\n3 1 abcde\n", encoding="utf-8")
    return work


@pytest.mark.usefixtures("few_chains")
def test_larger_models(files: Any, wide_llama: Path, abmll: Callable[..., Any]) -> None:
    lines = commands("larger-models.md")
    assert len(lines) >= 14
    for line in lines:
        command = line.replace("--device cuda", "--device cpu")
        verb = command.split()[0]
        more = "" if verb == "estimate" else "--overwrite"
        if verb in ("train", "classify"):
            more += f" --model {wide_llama}"
        more += f" {SMALL}" if verb == "train" else " --steps 2" if "--adapt full" in command else ""
        code, _, err = abmll(command, more)
        if "--device-map" in command:
            assert (code, err.splitlines()[-1]) == (
                *(2, "abmll: error: device_map: there is no GPU to spread the model over; leave it out"),
            )
        else:
            assert code == 0, (line, err)
    [block] = blocks("larger-models.md", "python")
    names: dict[str, Any] = {"AbmllModel": AbmllModel}
    exec(compile(block.replace("/models/llama3-8b", str(wide_llama)), "larger-models.md", "exec"), names)
    assert names["model"].scorer.base.quantization == "load_in_4bit"


@pytest.mark.usefixtures("few_chains")
def test_exports(files: Any, abmll: Callable[..., Any]) -> None:
    """Those for vLLM have tests of their own, as they need a tokenizer that knows letters."""
    assert abmll("adapt my_task.jsonl --theta run --adapt full --steps 2 --output-dir runs/new").code == 0
    lines = [line for line in commands("exports.md") if "vllm-ensemble" not in line]
    formats = [line for line in lines if line.startswith("export")]
    assert len(formats) == 3
    for line in formats:
        assert abmll(line).code == 0
    assert abmll("adapt my_task.jsonl --theta run --output-dir runs/new --overwrite").code == 0
    assert abmll(formats[0], "--overwrite").code == 0
    [predict] = [line for line in lines if line.startswith("predict")]
    assert abmll(predict, f"--model {files.model}").code == 0
    assert Path("answers.csv").is_file()


def test_a_callback_of_ones_own(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    block = blocks("trackers.md", "python")[-1]
    tasks = load_tasks("my_tasks")
    model = AbmllModel.from_base(
        str(files.model), r=2, layers_to_transform="1", target_modules=["q_proj"], dtype="fp32"
    )
    config = TrainConfig(output_dir="runs/mine", max_steps=2, inner_steps=1, calibration_tasks=0)
    exec(compile(block, "trackers.md", "exec"), {"model": model, "tasks": tasks, "config": config})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]
