"""The processes whose peak memory is measured: python -m benchmarks.peak_cases CASE SETTINGS (JSON).

Every case loads what it needs, works, and prints one line of JSON: the numbers of bytes asked for. All cases read the
same examples, as tokens, from a file.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig, TrainConfig
from abmll.common.settings import pick
from abmll.language.base import Base, load_base
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule
from abmll.model.meta_learner import AbmllModel
from abmll.tasks import check_leaks, load_task, load_tasks
from abmll.training.trainer import MetaTrainer
from abmll.training.training_tasks import fingerprint, usable
from benchmarks.memory import peak_bytes, resident_bytes

Settings = Mapping[str, Any]


def bare(settings: Settings) -> dict[str, int]:
    """The model loaded, and one forward pass without gradients over two tokens."""
    base = _base(settings)
    with torch.no_grad():
        base.model(input_ids=torch.ones(1, 2, dtype=torch.long, device=base.model.device))
    return {"peak": peak_bytes(settings["device"])}


def ours(settings: Settings) -> dict[str, int]:
    """ABMLL: an inner step on every batch, then the outer step."""
    scorer = OptionScorer(_base(settings), _adapter(settings), PromptConfig())
    rule = make_rule(scorer, TrainConfig(output_dir="unused"), settings["num_tasks"])
    state = rule.init(scorer.new_adapter(0))
    batches = _examples(settings)
    rule.begin_episode(state, done=0.0)
    generator = torch.Generator(scorer.device).manual_seed(0)
    batch = None
    for examples in batches:
        batch = scorer.batch(examples)
        rule.inner_step(state, batch, generator, 1.0)
    assert batch is not None
    rule.outer_step(state, batch, generator, 1.0)
    return {"peak": peak_bytes(settings["device"])}


def plain_lora(settings: Settings) -> dict[str, int]:
    """PEFT LoRA and Trainer: a step on every batch."""
    from benchmarks.plain_lora import PlainLora

    base = _base(settings, attention="sdpa")
    modules, r, alpha = tuple(settings["modules"]), settings["r"], settings["alpha"]
    PlainLora(base.model, base.tokenizer, modules=modules, r=r, alpha=alpha).episode(_examples(settings))
    return {"peak": peak_bytes(settings["device"])}


def published(settings: Settings) -> dict[str, int]:
    """The published algorithm: one episode."""
    from benchmarks.published import Published

    model = _base(settings, attention="sdpa").model
    one = Published(model, modules=tuple(settings["modules"]), num_tasks=settings["num_tasks"])
    one.episode(_examples(settings))
    return {"peak": peak_bytes(settings["device"])}


def tasks(settings: Settings) -> dict[str, int]:
    """``abmll train`` on a folder of tasks, for a few episodes. A calibration would read other tasks."""
    model = AbmllModel(_base(settings), _adapter(settings), pick(PromptConfig, settings["prompt"]))
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"max_steps": settings["episodes"], "inner_steps": 2, "per_device_train_batch_size": 2}
        sizes |= {"calibration_tasks": 0, "save_steps": settings["episodes"]}
        config = TrainConfig(output_dir=str(Path(folder) / "run"), **sizes)
        MetaTrainer(model, load_tasks(settings["folder"]), config).train()
    return {"peak": peak_bytes(settings["device"])}


def posteriors(settings: Settings) -> dict[str, int]:
    """What each further adapted posterior adds to the process, and the bytes of one's file and of its tensors.

    The first ones lie in memory that earlier work has given back to the allocator but not to the system: the growth is
    counted over the second half.
    """
    model = AbmllModel(_base(settings), _adapter(settings), pick(PromptConfig, settings["prompt"]))
    task = load_task(settings["task"])
    example = task.train[:1]
    held, sizes = [], []
    for _ in range(settings["count"]):
        held.append(model.adapt(example, task_name=task.name, steps=1))
        sizes.append(resident_bytes())
    half = len(sizes) // 2
    with tempfile.TemporaryDirectory() as folder:
        held[0].save_pretrained(Path(folder) / "posterior")
        file = (Path(folder) / "posterior" / "phi.safetensors").stat().st_size
    tensors = sum(tensor.nbytes for _, tensor in held[0].phi.named_tensors())
    return {"each": (sizes[-1] - sizes[half - 1]) // (len(sizes) - half), "file": file, "tensors": tensors}


def parquet(settings: Settings) -> dict[str, int]:
    """What reading a folder of Parquet files, as a training run does before its first step, adds to the process."""
    import pyarrow
    import pyarrow.parquet

    folder = Path(settings["folder"]) / str(settings["tasks"])
    folder.mkdir()
    for task in range(settings["tasks"]):
        inputs = [f"{task} {row} of a text of a dozen words, as a sentence has them" for row in range(settings["rows"])]
        labels = [f"label {(row * 7 + task) % 4}" for row in range(settings["rows"])]
        pyarrow.parquet.write_table(pyarrow.table({"text": inputs, "label": labels}), folder / f"{task:05}.parquet")
    before = resident_bytes()
    read = usable(load_tasks(folder, quiet=True), 1)
    fingerprint(read)
    held_out = max(1, len(read) // 10)
    assert check_leaks(read[held_out:], read[:held_out]) == []
    return {"peak": peak_bytes() - before}


CASES: dict[str, Callable[[Settings], dict[str, int]]] = {
    case.__name__: case for case in (bare, ours, plain_lora, published, tasks, posteriors, parquet)
}


def _base(settings: Settings, attention: str | None = None) -> Base:
    config = ModelConfig(settings["model"], settings["dtype"], settings["device"])
    base = load_base(config, lambda line: None, quiet=True)
    if attention is not None:
        base.model.set_attn_implementation(attention)
    return base


def _adapter(settings: Settings) -> AdapterConfig:
    modules, space = tuple(settings["modules"]), settings.get("space", AdapterConfig.space)
    return AdapterConfig(
        r=settings["r"], lora_alpha=settings["alpha"], target_modules=modules, layers_to_transform=None, space=space
    )


def _examples(settings: Settings) -> list[list[Encoded]]:
    batches = json.loads(Path(settings["examples"]).read_text(encoding="utf-8"))
    return [
        [Encoded(tuple(prompt), tuple(map(tuple, options)), answer) for prompt, options, answer in batch]
        for batch in batches
    ]


if __name__ == "__main__":
    case, text = sys.argv[1:]
    print(json.dumps(CASES[case](json.loads(text))))
