"""A rehearsal of a comparison: its methods, seeds and settings on a random model and on generated tasks.

The model has the architecture of the one named and a few hundred thousand weights. The tasks have names, numbers of
options and lengths of the suite's, and a rule that can be learned. Budgets are cut to a step or two. The suite is
called ``NAME-smoke``, by which every table says that its numbers are no results.
"""

import json
import random
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from abmll.common.files import write_text
from abmll.experiments.budget import SMOKE, SharedConfig
from abmll.experiments.costs.shapes import config_of
from abmll.experiments.task_shapes import task_shape
from abmll.language.base import no_progress_bars
from abmll.tasks.definition import SuiteFile, read_suite

TASKS = 3  # kept of each side of a suite, spread over its list
TRAIN, TEST = 12, 6  # examples of a task
TINY: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


def rehearse(folder: Path, suite: str, shared: SharedConfig) -> tuple[Path, SharedConfig]:
    """Write model, tasks and suite below ``folder``; returns the suite's file and the settings with small budgets.

    Raises as ``read_suite``, and ``ConfigError`` for a model whose architecture is not known.
    """
    write_model(folder / "model", shared.model)
    file = read_suite(suite)
    train, evaluation = (_spread(side, TASKS) for side in (file.train, file.evaluation))
    for name in (*train, *evaluation):
        write_text(folder / "tasks" / f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows_of(name)))
    path = folder / f"{file.name}{SMOKE}.yaml"
    write_text(path, yaml.safe_dump(_smaller_suite(file, train, evaluation), sort_keys=False))
    return path, _smaller(shared, folder / "model")


def write_model(folder: Path, model: str) -> None:
    """A random model of the architecture of ``model``, whose tokens are bytes."""
    config = AutoConfig.for_model(config_of(model).model_type, **TINY)
    with torch.random.fork_rng(devices=[]), no_progress_bars():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def rows_of(name: str) -> list[dict[str, Any]]:
    """Examples of a generated task, as long in tokens of one byte as the real ones are in tokens of a real model.

    The last letter of an input decides on its answer.
    """
    shape, draw = task_shape(name), random.Random(name)
    options = [f"{name[:6]} {index}" for index in range(shape.options)]
    rule = {letter: draw.choice(options) for letter in string.ascii_lowercase}
    rows = []
    for index in range(TRAIN + TEST):
        text = f"{name} {index} " + "".join(draw.choices(string.ascii_lowercase + " ", k=shape.tokens))
        text += draw.choice(string.ascii_lowercase)
        split = "train" if index < TRAIN else "test"
        rows.append({"input": text, "options": options, "answer": rule[text[-1]], "split": split})
    return rows


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, from the first to the last."""
    places = {round(index * (len(names) - 1) / max(count - 1, 1)) for index in range(count)}
    return [names[place] for place in sorted(places)]


def _smaller_suite(file: SuiteFile, train: Sequence[str], evaluation: Sequence[str]) -> dict[str, Any]:
    return {
        "name": f"{file.name}{SMOKE}",
        "description": f"Generated tasks in the shape of the suite {file.name}",
        "train": list(train),
        "evaluation": list(evaluation),
        "validation": [name for name in file.validation if name in train],
        "known_leaks": [name for name in file.known_leaks if name in evaluation],
        "prompt": dict(file.prompt),
    }


def _smaller(shared: SharedConfig, model: Path) -> SharedConfig:
    """The settings with the least of everything that costs time; what makes cells and rows stays."""
    return replace(
        shared,
        model=str(model),
        max_length=None,
        max_steps=2,
        save_steps=1,
        inner_steps=1,
        per_device_train_batch_size=min(shared.per_device_train_batch_size, 2),
        limit_train=None if shared.limit_train is None else TRAIN - 2,
        steps=1,
        batch_size=2,
        adapt_examples=tuple(4 + index for index in range(len(shared.adapt_examples))),
        test_examples=TEST - 2,
        num_samples=tuple(range(2, 2 + len(shared.num_samples))),
        episodes=None if shared.episodes is None else (1,),
        ood_examples=min(shared.ood_examples, 2),
    )
