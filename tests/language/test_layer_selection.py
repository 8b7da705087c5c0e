"""Layers chosen by how much they change their input, against transformers' own hidden states."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from abmll import AbmllModel
from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.language.base import Base, load_base
from abmll.language.layer_selection import (
    block_changes,
    choose_layers,
    most_changing,
    refuse_open_choice,
    training_prompts,
)
from abmll.tasks import Example, Task

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
PROMPTS = [(5, 6, 7, 8), (9, 10), (11, 5, 200, 7, 12, 30, 4)]


def load(folder: Path) -> Base:
    return load_base(ModelConfig(str(folder), "fp32", "cpu"), announce=lambda line: None, quiet=True)


def tasks(sizes: dict[str, int]) -> list[Task]:
    return [
        Task(name, tuple(Example(str(n), f"{name} {n}", ("yes", "no"), n % 2, split="train") for n in range(size)))
        for name, size in sizes.items()
    ]


@torch.no_grad()
def expected_changes(folder: Path) -> list[float]:
    """From ``output_hidden_states``; the last of them has the final norm behind it, so it is taken in front of it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    norm = model.base_model.ln_f if hasattr(model.base_model, "ln_f") else model.base_model.norm
    before_norm: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    per_token: list[list[float]] = []
    for tokens in PROMPTS:
        states = list(model.base_model(torch.tensor([tokens]), output_hidden_states=True).hidden_states)
        states[-1] = before_norm.pop()
        for block, (one, two) in enumerate(pairwise(states)):
            per_token += [[]] * (block == len(per_token))
            cosine = F.cosine_similarity(one[0].double(), two[0].double(), dim=-1)
            per_token[block] = [*per_token[block], *(1 - cosine).tolist()]
    return [sum(values) / len(values) for values in per_token]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_a_blocks_change_is_that_of_the_hidden_states_around_it(
    family: str, make_folder: Callable[..., Path], sharp_folder: Callable[[str], Path]
) -> None:
    folder = sharp_folder(family)
    changes = block_changes(load(folder).model, PROMPTS)
    assert max(changes) > 0.01
    assert changes == pytest.approx(expected_changes(folder), rel=1e-4)


def test_every_token_counts_once(deep_llama: Path) -> None:
    model = load(deep_llama).model
    [alone, together] = block_changes(model, PROMPTS[:1]), block_changes(model, PROMPTS[:1] * 2 + PROMPTS[1:2])
    other = block_changes(model, PROMPTS[1:2])
    assert together == pytest.approx([(2 * 4 * a + 2 * b) / 10 for a, b in zip(alone, other, strict=True)])


def test_measuring_leaves_no_hook_behind(deep_llama: Path) -> None:
    model = load(deep_llama).model
    block_changes(model, PROMPTS)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("change", "count", "chosen"),
    [
        ([0.3, 0.1, 0.2, 0.4], 2, [0, 3]),
        ([0.3, 0.1, 0.2, 0.4], 3, [0, 2, 3]),
        ([0.2, 0.2, 0.2, 0.1], 2, [1, 2]),
        ([0.5], 1, [0]),
    ],
)
def test_the_greatest_changes_are_chosen_and_of_equals_the_upper_ones(
    change: list[float], count: int, chosen: list[int]
) -> None:
    assert most_changing(change, count) == chosen


class Turn(nn.Module):
    """A block that turns its input by an angle, so that its change is known."""

    def __init__(self, block: nn.Module, cosine: float) -> None:
        super().__init__()
        self.block = block
        self.cosine = cosine

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        pairs = hidden.unflatten(-1, (-1, 2))
        one, two = pairs.unbind(-1)
        sine = (1 - self.cosine**2) ** 0.5
        return torch.stack([self.cosine * one - sine * two, sine * one + self.cosine * two], -1).flatten(-2)


def turned(folder: Path, cosines: list[float]) -> Base:
    base = load(folder)
    blocks: Any = base.model.base_model.layers
    for index, cosine in enumerate(cosines):
        blocks[index] = Turn(blocks[index], cosine)
    return base


COSINES = [0.9, 0.99, 0.5, 0.95]


def test_known_changes_are_measured_and_chosen_by(deep_llama: Path) -> None:
    base = turned(deep_llama, COSINES)
    assert block_changes(base.model, PROMPTS) == pytest.approx([1 - cosine for cosine in COSINES], abs=1e-5)
    said: list[str] = []
    for wanted, layers in {"top-2": "0,2", "top-half": "0,2", "top-3": "0,2,3", "top-third": "2"}.items():
        adapter = AdapterConfig(layers_to_transform=wanted, layer_selection="similarity")
        chosen = choose_layers(base, adapter, SHORT, tasks({"one": 3}), announce=said.append)
        assert (chosen.layers_to_transform, chosen.layer_selection) == (layers, "similarity")
        assert choose_layers(base, chosen, SHORT, []) == chosen  # what is chosen stays
        refuse_open_choice(chosen)
    assert said[0] == "adapting layers 0,2 of 0-3: those that change their input most"


@pytest.mark.parametrize("layers", [None, "top-2", "1-2"])
def test_by_depth_nothing_is_chosen_or_read(layers: str | None, deep_llama: Path) -> None:
    adapter = AdapterConfig(layers_to_transform=layers)
    assert choose_layers(load(deep_llama), adapter, SHORT, []) is adapter
    refuse_open_choice(adapter)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            None,
            r"^layer_selection: 'similarity' needs a number of layers to choose; set layers_to_transform to 'top-12'",
        ),
        ("top-0", r"^layers_to_transform: 'top-0': the model has decoder layers 0-3$"),
        ("top-many", r"^layers_to_transform: 'top-many' is not '18-29', "),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_read(
    layers: str | None, message: str, deep_llama: Path
) -> None:
    adapter = AdapterConfig(layers_to_transform=layers, layer_selection="similarity")
    with pytest.raises(ConfigError, match=message):
        choose_layers(load(deep_llama), adapter, SHORT, [])


TESTED = Task("tested", (Example("0", "text", ("yes", "no"), 0, split="test"),))


@pytest.mark.parametrize("given", [[], [TESTED]])
def test_without_training_examples_nothing_can_be_chosen(given: list[Task], deep_llama: Path) -> None:
    adapter = AdapterConfig(layers_to_transform="top-2", layer_selection="similarity")
    with pytest.raises(DataError, match=r"^layer_selection: 'similarity' needs training tasks with examples"):
        choose_layers(load(deep_llama), adapter, SHORT, given)


def test_prompts_come_from_each_task_in_turn(deep_llama: Path) -> None:
    base = load(deep_llama)
    given = tasks({"b": 1, "a": 3, "c": 2})

    def first_letters(limit: int) -> list[str]:
        prompts = training_prompts(base, SHORT, given, limit)
        assert len(set(prompts)) == len(prompts)
        return [str(base.tokenizer.decode(list(prompt))) for prompt in prompts]

    names = [next(name for name in "abc" if f" {name} " in text.replace("\n", " ")) for text in first_letters(9)]
    assert names == ["a", "b", "c", "a", "c", "a"]
    assert first_letters(4) == first_letters(9)[:4]
    assert training_prompts(base, SHORT, given[::-1], 9) == training_prompts(base, SHORT, given, 9)


def test_test_examples_play_no_part(deep_llama: Path) -> None:
    base = load(deep_llama)
    mixed = Task(
        "one",
        tuple(Example(str(n), f"text {n}", ("yes", "no"), 0, split="train" if n < 2 else "test") for n in range(9)),
    )
    texts = [str(base.tokenizer.decode(list(prompt))) for prompt in training_prompts(base, SHORT, [mixed])]
    assert sorted(text.partition("text ")[2][0] for text in texts) == ["0", "1"]


def test_a_model_with_an_open_choice_is_refused_and_with_tasks_made(tiny_llama: Path, toy_tasks: list[Task]) -> None:
    wanted: dict[str, Any] = {"layers_to_transform": "top-1", "layer_selection": "similarity", "prompt": SHORT}
    with pytest.raises(DataError, match=r"^layer_selection: 'similarity' needs training tasks"):
        AbmllModel.from_base(str(tiny_llama), **wanted)
    base = load(tiny_llama)
    with pytest.raises(ConfigError, match=r"^layer_selection: the layers 'top-1' are not chosen yet"):
        AbmllModel(base, AdapterConfig(layers_to_transform="top-1", layer_selection="similarity"), SHORT)
    model = AbmllModel.from_base(str(tiny_llama), tasks=toy_tasks, **wanted)
    changes = block_changes(base.model, training_prompts(base, SHORT, toy_tasks))
    assert model.scorer.adapter_config.layers_to_transform == str(changes.index(max(changes)))
    assert model.scorer.settings()["layer_selection"] == "similarity"
