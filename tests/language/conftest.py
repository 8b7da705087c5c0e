"""Scorers on tiny random models, adapters that do something, and transformers' own forward pass as the oracle."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig
from abmll.language.adapter import Adapter
from abmll.language.base import load_base
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer

SHORT = PromptConfig(instruction=False, list_options=False, answer="text", length_normalize=False)
TARGETS = {"gpt2": ("c_attn", "c_proj")}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {"num_hidden_layers": 2, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},
    "gemma": {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8},
}

MakeScorer = Callable[..., OptionScorer]
Oracle = Callable[[Path, list[Encoded]], list[list[float]]]


@pytest.fixture(scope="session")
def make_scorer(sharp_folder: Callable[[str], Path]) -> MakeScorer:
    """make_scorer(family or folder, dtype="fp32", prompt=..., **AdapterConfig's fields), on the CPU.

    A scorer has no state that a test could leave behind, so equal ones are one; ``make_scorer.fresh`` has its own base.
    """

    def fresh(source: str | Path, dtype: Any = "fp32", prompt: PromptConfig = SHORT, **adapter: Any) -> OptionScorer:
        folder = source if isinstance(source, Path) else sharp_folder(source)
        adapter = {"r": 2, "target_modules": TARGETS.get(str(source), ("q_proj", "v_proj"))} | adapter
        base = load_base(ModelConfig(str(folder), dtype, "cpu"), announce=lambda line: None, quiet=True)
        return OptionScorer(base, AdapterConfig(**adapter), prompt)

    make: Any = cache(fresh)
    make.fresh = fresh
    return make


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[..., Path]:
    """make_folder(family, **config): the folder of a random model that is small whatever the family."""

    def make(family: str, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp(family)
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 48}
        settings = sizes | {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | config
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
        for parameter in model.parameters():
            # Far from flat, biases too, so that a mistake anywhere shows in the probabilities.
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.15)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_llama / name, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def sharp_folder(make_folder: Callable[..., Path]) -> Callable[[str], Path]:
    """The folder of a family's random two-layer model: GQA, ties, biases, fused projections, learned positions."""
    return cache(lambda family: make_folder(family, **FAMILIES[family]))


@pytest.fixture(scope="session")
def deep_llama(make_folder: Callable[..., Path]) -> Path:
    """A random Llama with four layers."""
    return make_folder("llama", num_key_value_heads=2)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """oracle(folder, examples): each option's log-probability, prompt and option read alone by a fresh model."""

    @torch.no_grad()
    def scores(folder: Path, examples: list[Encoded]) -> list[list[float]]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        results = []
        for example in examples:
            row = []
            for option in example.options:
                logits = model(torch.tensor([example.prompt + option])).logits[0].double()
                predicted = torch.log_softmax(logits, -1)[len(example.prompt) - 1 : -1]
                row.append(float(sum(predicted[place, token] for place, token in enumerate(option))))
            results.append(row)
        return results

    return scores


@pytest.fixture
def ragged() -> list[Encoded]:
    """Prompts of 3 to 30 tokens with 2 to 5 options of 1 to 7 tokens, some of which begin alike."""
    generator = torch.Generator().manual_seed(5)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 259, (count,), generator=generator).tolist())

    start = tokens(2)
    return [
        Encoded(tokens(7), (tokens(1), tokens(1)), 1),
        Encoded(tokens(30), (tokens(2), tokens(7), tokens(3)), 0),
        Encoded(tokens(3), (start + tokens(1), start + tokens(3), start, tokens(1), tokens(5)), 4),
        Encoded(tokens(12), (tokens(4), tokens(1)), None),
    ]


def randomize(adapter: Adapter, seed: int = 0, size: float = 0.3) -> Adapter:
    """Fill an adapter's mean factors with normal numbers, so that its mean is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter.mean_tensors():
            tensor.copy_(size * torch.randn(tensor.shape, generator=generator))
    return adapter


@pytest.fixture(name="randomize")
def _randomize() -> Callable[..., Adapter]:
    return randomize


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may change."""
    return shutil.copytree(tiny_llama, tmp_path / "model")
