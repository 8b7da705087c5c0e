"""Tiny random models of four families, and toy tasks they can learn."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common import progress
from abmll.common.config import LearningConfig, PromptConfig
from abmll.posterior import head
from abmll.tasks import Example, Task
from tests.hub_stand_in import Hub, serving

with suppress(ImportError):
    # Its import closes logging's handlers. One of absl's, made in another test, would take pytest's own file with it.
    import submitit  # noqa: F401

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 259}
FAMILIES = {
    "llama": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 259, "n_positions": 2048},
    "gemma": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "gelu"},
}
LINEAR = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gpt2": ("c_attn", "c_proj"),
    "gemma": ("q_proj", "v_proj"),
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_progress_lines() -> Iterator[None]:
    """What a command says on stderr must not depend on how long a test takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "SECONDS_BETWEEN_LINES", math.inf)
        yield


def shorten_chains(patch: pytest.MonkeyPatch) -> None:
    """Let heads be fitted quickly, and roughly."""
    patch.setattr(head, "CHAINS", 16)
    patch.setattr(head, "FEWEST_CHAINS", 16)


@pytest.fixture
def few_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what holds of any number of chains."""
    shorten_chains(monkeypatch)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus three special ones; adds nothing of its own to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(1)
            config = AutoConfig.for_model(family, **FAMILIES[family], pad_token_id=0, bos_token_id=1, eos_token_id=2)
            model = AutoModelForCausalLM.from_config(config)
            for name, parameter in model.named_parameters():  # biases start at zero, where they would test nothing
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture(scope="session")
def tiny_llama(family_folder: Callable[[str], Path]) -> Path:
    """The folder of a random Llama with two layers."""
    return family_folder("llama")


@pytest.fixture(scope="session")
def wide_llama(family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama with two layers, as wide as a block of 4-bit codes."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(family_folder("llama"), hidden_size=64, intermediate_size=128, head_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


SHORT = PromptConfig(instruction=False, list_options=False, answer="text")


@pytest.fixture
def tiny_model(tiny_llama: Path) -> AbmllModel:
    """The tiny Llama with a fresh adapter on its second layer, which learns tasks by ABMLL's steps."""
    model = AbmllModel.from_base(
        str(tiny_llama), prompt=SHORT, r=2, layers_to_transform="1", target_modules=["q_proj", "v_proj", "up_proj"]
    )
    model.learning = LearningConfig()
    return model


@pytest.fixture
def shipped(tiny_model: AbmllModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbmllModel:
    """A model whose theta comes with the package as "small"."""
    model = copy.copy(tiny_model)
    theta = model.scorer.new_adapter(3)
    for tensor in theta.mean_tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())) / 10)
    model.learned(theta, LearningConfig(method="trained-head"), 2)
    model.save_pretrained(tmp_path / "thetas" / "small")
    monkeypatch.setattr("abmll.model.shipped.THETAS", tmp_path / "thetas")
    return model


def toy_task(name: str, seed: int = 0, size: int = 60) -> Task:
    """Which of two words does the letter stand for? Learnable, and another rule for every seed."""
    rng = random.Random(f"{name} {seed}")
    letters = "abcdefgh"
    rule = {letter: rng.randrange(2) for letter in letters}
    examples = []
    for index in range(size):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(3, 12)))
        examples.append(Example(str(index), f"{index} {text}", ("yes", "no"), rule[text[-1]]))
    return Task(name, tuple(examples))


@pytest.fixture
def toy_tasks() -> list[Task]:
    """Three toy tasks."""
    return [toy_task(f"toy{index}", index) for index in range(3)]


@pytest.fixture
def make_trainer(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> Callable[..., MetaTrainer]:
    """A trainer of a few short episodes in ``run``; keywords are settings."""

    def make(**settings: Any) -> MetaTrainer:
        short: dict[str, Any] = {"max_steps": 3, "inner_steps": 2, "per_device_train_batch_size": 2}
        short["lr_scheduler_type"] = "constant"  # a longer run starts like a shorter one
        config = TrainConfig(**{"output_dir": str(tmp_path / "run"), **short, **settings})
        return MetaTrainer(tiny_model, toy_tasks, config)

    return make


HUB_README = """\
---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train.parquet}
  - {split: validation, path: plain/validation.parquet}
  - {split: test, path: plain/test.parquet}
  - {split: unsupervised, path: plain/unsupervised.parquet}
- config_name: exam
  data_files:
  - {split: test, path: exam/test.parquet}
---
"""
HUB_LABELS = ["refund", "bug", "account"]  # not in the order of the alphabet


@pytest.fixture(scope="session")
def hub_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as it lies on the hub: configs in README.md, splits in Parquet files that know the columns' classes.

    ``plain`` has a sentence and its class; in its test split no row has one. ``exam`` has options of its own, and an
    answer whose class is the option's letter.
    """
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub") / "desk"

    def write(name: str, columns: dict[str, list[Any]], classes: dict[str, list[str]]) -> None:
        data = datasets.Dataset.from_dict(columns)
        for column, names in classes.items():
            data = data.cast_column(column, datasets.ClassLabel(names=names))
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(path)

    for split, size, labelled in (("train", 12, 12), ("validation", 4, 3), ("test", 4, 0), ("unsupervised", 2, 0)):
        labels = [n % 3 if n < labelled else -1 for n in range(size)]
        texts = [f"a {HUB_LABELS[n % 3]} in {split}, row {n}" for n in range(size)]
        columns = {"idx": list(range(size)), "sentence": texts, "category": labels}
        write(f"plain/{split}", columns, {"category": HUB_LABELS})
    exam = {"question": ["1 + 1?", "1 + 2?"], "choices": [["2", "3"], ["2", "3"]], "answer": [0, 1]}
    write("exam/test", exam, {"answer": ["A", "B"]})
    (folder / "README.md").write_text(HUB_README, encoding="utf-8")
    return folder


@pytest.fixture
def hub_folder(hub_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``hub_repository``, with an empty cache of the library."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return hub_repository


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A model hub on this computer, an empty cache of what is fetched, and a token that may write."""
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "right")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        yield hub
