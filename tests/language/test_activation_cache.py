"""Kept Activations: found by what was read, within their bytes, and the same bits wherever they come from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.common.config import ActivationCacheConfig, AdapterConfig, ModelConfig, PromptConfig
from abmll.common.errors import AbmllError
from abmll.language.activation_cache import ActivationCache, disk_cache, identity, open_cache, row_key
from abmll.language.activation_store import ActivationStore
from abmll.language.adapter import Adapter
from abmll.language.base import load_base
from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer

TOP: dict[str, Any] = {"layers_to_transform": "2-3", "target_modules": ("q_proj", "v_proj"), "init_log_sigma": -2.0}


@pytest.fixture
def scorer(make_scorer: Callable[..., OptionScorer], deep_llama: Path) -> OptionScorer:
    """Four blocks, of which the lower two are the lower blocks."""
    return make_scorer(deep_llama, **TOP)


@pytest.fixture
def adapter(scorer: OptionScorer, randomize: Any) -> Adapter:
    return randomize(scorer.new_adapter(0))


def on_disk(scorer: OptionScorer, folder: Path, memory_gb: float = 1.0) -> ActivationCache:
    cache = open_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig(str(folder)), memory_gb)
    assert cache is not None
    return cache


def test_the_cache_keeps_to_its_bytes_and_forgets_the_longest_unused(
    scorer: OptionScorer, ragged: list[Encoded]
) -> None:
    computed: list[Encoded] = []

    def compute(examples: Sequence[Encoded]) -> list[torch.Tensor]:
        computed.extend(examples)
        return [scorer.lower_blocks.output(scorer.batch([example]))[0] for example in examples]

    sizes = {example: len(example) * 32 * 4 for example in ragged}  # tokens x width x bytes
    by_key = {row_key(example): size for example, size in sizes.items()}
    first, second, third, fourth = ragged
    cache = ActivationCache(sizes[first] + sizes[second] + sizes[third])

    def read(*examples: Encoded) -> None:
        cache.rows(examples, compute, scorer.device)
        assert cache.kept.num_bytes == sum(by_key[key] for key in cache.kept) <= cache.kept.max_bytes

    read(first, second, third)
    assert cache.kept.num_bytes == sum(sizes[example] for example in ragged[:3])
    read(first, third)
    assert computed == [first, second, third]
    read(fourth)  # the second one was unused for longest
    assert list(cache.kept) == list(map(row_key, [first, third, fourth]))
    read(second)
    assert computed == [first, second, third, fourth, second]


def scorer_of(model: Path, dtype: Any) -> OptionScorer:
    base = load_base(ModelConfig(str(model), dtype), lambda line: None, True)
    return OptionScorer(base, AdapterConfig(r=2, **TOP), PromptConfig())


@pytest.mark.parametrize("keeps_bits", [True, False])
def test_the_lower_blocks_read_packed_rows_only_where_that_changes_no_bit(
    deep_llama: Path, ragged: list[Encoded], monkeypatch: pytest.MonkeyPatch, keeps_bits: bool
) -> None:
    """Two batches of two: the first is computed both ways, the second as the first has shown."""
    scorer = scorer_of(deep_llama, "bf16")
    alone = [scorer.lower_blocks.output(scorer.batch([one]))[0] for one in ragged]
    together = {2: torch.cat(alone[:2]), 3: torch.cat(alone[2:])}
    read: list[int] = []
    output = scorer.lower_blocks.output

    def count(batch: Batch) -> torch.Tensor:
        read.append(len(batch.answers))
        if len(batch.answers) == 1:
            return output(batch)
        row = together[2 if len(read) == 1 else 3]
        return (row if keeps_bits else row + 1e-3)[None]

    monkeypatch.setattr(scorer.lower_blocks, "output", count)
    cache = ActivationCache(10**9)
    for part in (ragged[:2], ragged[2:]):
        scorer.batch(part, cache)
    assert read == [2, 1, 1, 2] if keeps_bits else [2, 1, 1, 1, 1]
    for one, row in zip(ragged, alone, strict=True):
        assert torch.equal(_kept(cache, row_key(one)), row)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_row_is_to_the_bit_what_it_is_alone(deep_llama: Path, ragged: list[Encoded], dtype: Any) -> None:
    scorer, cache = scorer_of(deep_llama, dtype), ActivationCache(10**9)
    for part in (ragged[:2], ragged[2:]):
        scorer.batch(part, cache)
    for one in ragged:
        assert torch.equal(_kept(cache, row_key(one)), scorer.lower_blocks.output(scorer.batch([one]))[0])


def test_a_cache_that_can_hold_nothing_still_answers(
    scorer: OptionScorer, adapter: Adapter, ragged: list[Encoded]
) -> None:
    cache = ActivationCache(100)
    batch = scorer.batch(ragged, cache)
    assert (cache.kept.num_bytes, len(cache.kept)) == (0, 0)
    full = scorer.scores(scorer.batch(ragged), adapter).options
    torch.testing.assert_close(scorer.scores(batch, adapter).options, full, rtol=2e-5, atol=2e-5)


def test_cached_activations_are_the_same_bits_in_any_company(scorer: OptionScorer, ragged: list[Encoded]) -> None:
    alone, together = ActivationCache(10**9), ActivationCache(10**9)
    for example in ragged:
        scorer.batch([example], alone)
    scorer.batch(ragged, together)
    for key in map(row_key, ragged):
        assert torch.equal(_kept(alone, key), _kept(together, key))


PROMPT, OPTIONS = (5, 6, 7), ((8, 9), (10,), (11, 12, 13))
QUESTION = Encoded(PROMPT, OPTIONS, 0)


@pytest.mark.parametrize(
    "other",
    [
        Encoded(PROMPT, OPTIONS, 2),
        Encoded(PROMPT, OPTIONS, None, truncated=4),
        Encoded(PROMPT, ((8, 20), (21,), (11, 12, 22)), 0),  # a last token is only ever predicted
        Encoded(PROMPT, ((8, 9), (11, 12, 13)), 0),  # an option of one token is not read at all
    ],
)
def test_what_the_lower_blocks_do_not_read_shares_a_row(other: Encoded, scorer: OptionScorer) -> None:
    assert row_key(other) == row_key(QUESTION)
    cache = ActivationCache(10**9)
    assert torch.equal(activations(scorer, cache, [QUESTION]), activations(scorer, ActivationCache(10**9), [other]))
    assert torch.equal(activations(scorer, cache, [other]), activations(scorer, ActivationCache(10**9), [other]))
    assert len(cache.kept) == 1


@pytest.mark.parametrize(
    "other",
    [
        Encoded((5, 6, 8), OPTIONS, 0),
        Encoded((5, 6), ((7, 8, 9), (10,), (11, 12, 13)), 0),
        Encoded((5, 6, 7, 8), ((9,), (10,), (11, 12, 13)), 0),
        Encoded(PROMPT, ((14, 9), (10,), (11, 12, 13)), 0),
        Encoded(PROMPT, ((11, 12, 13), (10,), (8, 9)), 0),
        Encoded(PROMPT, ((8, 11, 12, 13), (10,)), 0),
        Encoded(PROMPT, ((8, 9), (11, 9), (12, 9)), 0),
    ],
)
def test_what_the_lower_blocks_read_otherwise_has_a_row_of_its_own(other: Encoded) -> None:
    assert row_key(other) != row_key(QUESTION)


def activations(scorer: OptionScorer, cache: ActivationCache, examples: list[Encoded]) -> torch.Tensor:
    lower_blocks = scorer.batch(examples, cache).lower
    assert lower_blocks is not None
    return lower_blocks


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_from_the_disk_are_the_bits_that_were_computed(
    dtype: str, make_scorer: Callable[..., OptionScorer], deep_llama: Path, ragged: list[Encoded], tmp_path: Path
) -> None:
    scorer = make_scorer(deep_llama, dtype, **TOP)
    computed = activations(scorer, ActivationCache(10**9), ragged)
    first = on_disk(scorer, tmp_path)
    assert torch.equal(activations(scorer, first, ragged), computed)
    second = on_disk(scorer, tmp_path)
    read = scorer.batch(ragged).with_lower(second.rows(ragged, _refuse, scorer.device)).lower
    assert read is not None
    assert read.dtype == computed.dtype
    assert torch.equal(read, computed)
    assert not second.kept  # the mapped file holds them already


def _refuse(examples: Sequence[Encoded]) -> list[torch.Tensor]:
    raise AssertionError(f"computed again: {examples}")


def test_another_process_finds_what_was_written_meanwhile(
    scorer: OptionScorer, ragged: list[Encoded], tmp_path: Path
) -> None:
    writer, reader = on_disk(scorer, tmp_path), on_disk(scorer, tmp_path)
    activations(scorer, writer, ragged)
    reader.rows(ragged, _refuse, scorer.device)


def test_without_memory_rows_are_read_from_the_disk(
    scorer: OptionScorer, ragged: list[Encoded], tmp_path: Path
) -> None:
    cache = on_disk(scorer, tmp_path, memory_gb=0.0)
    computed = activations(scorer, cache, ragged)
    again = scorer.batch(ragged).with_lower(cache.rows(ragged, _refuse, scorer.device)).lower
    assert again is not None
    assert torch.equal(again, computed)
    assert cache.kept.num_bytes == 0


def test_nothing_is_kept_where_nothing_is_asked_for(scorer: OptionScorer) -> None:
    assert open_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig(), 0.0) is None
    assert disk_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig()) is None


def test_without_lower_blocks_no_folder_is_made(
    make_scorer: Callable[..., OptionScorer], deep_llama: Path, tmp_path: Path
) -> None:
    scorer = make_scorer(deep_llama, layers_to_transform="0,3")
    cache = disk_cache(scorer.base, scorer.lower_blocks, ActivationCacheConfig(str(tmp_path / "cache")))
    assert cache is not None
    assert cache.store is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_at_once(scorer: OptionScorer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AbmllError, match=r"^cannot write .*file/activations-[^\n]*$"):
        on_disk(scorer, tmp_path / "file")


def test_the_folder_tells_apart_what_computes_other_bits(make_scorer: Any, deep_llama: Path, tmp_path: Path) -> None:
    scorer = make_scorer(deep_llama, **TOP)
    deeper = make_scorer(deep_llama, **TOP | {"layers_to_transform": "3"})
    halved = make_scorer(deep_llama, "bf16", **TOP)
    other = make_scorer.fresh(deep_llama, **TOP)
    other.base = replace(other.base, fingerprint="of other weights")
    rotated = make_scorer.fresh(deep_llama, **TOP)
    rotated.base.model.config.rms_norm_eps = 1e-3  # the same weights, another computation
    scorers = [scorer, deeper, halved, other, rotated]
    folders = [
        ActivationStore(tmp_path, identity(one.base, len(one.lower_blocks.blocks)), 10**9).folder for one in scorers
    ]
    assert len(set(folders)) == len(scorers)
    same = make_scorer.fresh(deep_llama, **TOP | {"target_modules": ("up_proj",), "r": 3})
    assert ActivationStore(tmp_path, identity(same.base, len(same.lower_blocks.blocks)), 10**9).folder == folders[0]


def _kept(cache: ActivationCache, key: str) -> torch.Tensor:
    row = cache.kept.get(key)
    assert row is not None
    return row
