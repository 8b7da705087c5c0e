"""Training, adapting and predicting with activations kept on disk: the same bits, cold, warm or without."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.config import ActivationCacheConfig, EvaluateConfig
from abmll.common.files import sha256_file
from abmll.experiments.few_shot import evaluate_tasks
from abmll.language.activation_cache import disk_cache
from abmll.language.encoding import Encoded
from abmll.tasks import Task


@pytest.fixture
def train(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Theta after a short run; keywords are settings."""
    count = iter(range(100))

    def run(**settings: Any) -> dict[str, torch.Tensor]:
        short: dict[str, Any] = {"max_steps": 4, "inner_steps": 2, "per_device_train_batch_size": 3}
        config = TrainConfig(**short | settings, output_dir=str(tmp_path / f"run{next(count)}"))
        MetaTrainer(tiny_model, toy_tasks, config).train()
        return {name: tensor.clone() for name, tensor in tiny_model.theta.named_tensors()}

    return run


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def computed(tiny_model: AbmllModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every time that the lower blocks compute."""
    calls: list[int] = []
    whole = tiny_model.scorer.lower_blocks.output

    def count(batch: Any) -> torch.Tensor:
        calls.append(len(calls))
        return whole(batch)

    monkeypatch.setattr(tiny_model.scorer.lower_blocks, "output", count)
    return calls


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_training_gives_the_same_bits_cold_warm_and_without_a_disk_cache(
    memory: float, train: Callable[..., Any], computed: list[int], tmp_path: Path
) -> None:
    plain = train()
    assert computed
    there: dict[str, Any] = {"activation_cache_dir": str(tmp_path / "activations"), "activation_cache_gb": memory}
    computed.clear()
    assert_same(train(**there), plain)
    assert computed
    computed.clear()
    assert_same(train(**there), plain)
    assert computed == []


def test_another_seed_or_method_computes_only_what_no_run_has_read(
    train: Callable[..., Any], computed: list[int], tmp_path: Path
) -> None:
    there: dict[str, Any] = {"activation_cache_dir": str(tmp_path / "activations")}
    train(**there, max_steps=12)
    computed.clear()
    train(**there, max_steps=12, method="structured-lora")
    assert computed == []
    train(**there, max_steps=12, seed=1)
    shared = len(computed)
    computed.clear()
    train(max_steps=12, seed=1)
    assert shared < len(computed)


def test_an_interrupted_run_leaves_what_it_has_computed(
    tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path
) -> None:
    config = TrainConfig(
        max_steps=2,
        inner_steps=2,
        per_device_train_batch_size=3,
        output_dir=str(tmp_path / "run"),
        activation_cache_dir=str(tmp_path / "activations"),
    )
    trainer = MetaTrainer(tiny_model, toy_tasks, config)
    batches = trainer.episodes.batches

    def interrupted(episode: int) -> Any:
        yield next(batches(episode))
        raise KeyboardInterrupt

    vars(trainer.episodes)["batches"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(list(tmp_path.glob("activations/activations-*/*.safetensors"))) == 3  # of the batch it had read


def test_evaluation_gives_the_same_numbers_cold_and_warm(
    tiny_model: AbmllModel, toy_tasks: list[Task], computed: list[int], tmp_path: Path
) -> None:
    config = EvaluateConfig(steps=2, adapt_examples=4, test_examples=5, num_samples=2)
    scorer, results = tiny_model.scorer, []
    for _ in range(2):
        computed.clear()
        cache = disk_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig(str(tmp_path)))
        results.append(evaluate_tasks(tiny_model, toy_tasks, config, cache=cache).predictions)
    assert computed == []
    assert results[0] == results[1]


def test_reading_leaves_the_files_as_they_are(train: Callable[..., Any], tmp_path: Path) -> None:
    there: dict[str, Any] = {"activation_cache_dir": str(tmp_path / "activations")}
    train(**there)
    files = {path: sha256_file(path) for path in tmp_path.glob("activations/*/*")}
    assert len(files) > 2
    train(**there)
    assert {path: sha256_file(path) for path in tmp_path.glob("activations/*/*")} == files


def _refuse(examples: Sequence[Encoded]) -> list[torch.Tensor]:
    raise AssertionError(f"computed again: {examples}")


def test_what_was_computed_for_a_batch_is_read_for_it(tiny_model: AbmllModel, tmp_path: Path) -> None:
    scorer = tiny_model.scorer
    one, two = Encoded((5, 6, 7), ((8, 9), (10, 11)), 0), Encoded((5, 6, 7, 8, 9), ((8,), (10, 11, 12)), 1)
    cache = disk_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig(str(tmp_path)))
    together = scorer.batch([one, two], cache).lower
    cache = disk_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig(str(tmp_path)))
    assert cache is not None
    again = scorer.batch([one, two]).with_lower(cache.rows([one, two], _refuse, scorer.device)).lower
    assert together is not None
    assert again is not None
    assert torch.equal(together, again)
