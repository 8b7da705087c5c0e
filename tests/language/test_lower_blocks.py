"""Skipping the frozen blocks below the lowest adapted layer must change nothing but the cost."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.lower_blocks import SkippableBlock
from abmll.language.scorer import OptionScorer, Pass, nll
from abmll.posterior import Noise

TOP = {"layers_to_transform": "2-3", "target_modules": ("q_proj", "v_proj"), "init_log_sigma": -2.0}


@pytest.fixture
def scorer(make_scorer: Callable[..., OptionScorer], deep_llama: Path) -> OptionScorer:
    """Four blocks, of which the lower two are the lower blocks."""
    return make_scorer(deep_llama, **TOP)


@pytest.fixture
def adapter(scorer: OptionScorer, randomize: Any) -> Adapter:
    return randomize(scorer.new_adapter(0))


@contextmanager
def counted(scorer: OptionScorer) -> Iterator[Counter[int]]:
    """How often each decoder block computes inside."""
    calls: Counter[int] = Counter()
    blocks: Any = scorer.base.model.base_model.layers
    inner = [block.inner if isinstance(block, SkippableBlock) else block for block in blocks]

    def count(index: int) -> Callable[..., None]:
        return lambda *args: calls.update([index])

    handles = [block.register_forward_hook(count(index)) for index, block in enumerate(inner)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def variants(scorer: OptionScorer, examples: list[Encoded]) -> dict[str, Any]:
    """The same batch: read in full, with the lower blocks computed for all, and from single examples' activations."""
    cache = ActivationCache(10**9)
    return {
        "full": scorer.batch(examples),
        "computed": scorer.lower_blocks.fill(scorer.batch(examples)),
        "missed": scorer.batch(examples, cache),
        "cached": scorer.batch(examples, cache),
    }


@pytest.mark.parametrize("kind", ["bare", "mean", "local", "shared"])
def test_skipped_lower_blocks_give_the_scores_of_the_full_pass(
    kind: Any, scorer: OptionScorer, adapter: Adapter, ragged: list[Encoded]
) -> None:
    results = {}
    for name, batch in variants(scorer, ragged).items():
        noise = Noise(kind, torch.Generator().manual_seed(7), batch.mask) if kind in ("local", "shared") else None
        results[name] = scorer.scores(batch, None if kind == "bare" else adapter, Pass(noise)).options
    for name in ("computed", "missed", "cached"):
        torch.testing.assert_close(results[name], results["full"], rtol=2e-5, atol=2e-5, msg=name)


def test_skipped_lower_blocks_give_the_gradient_of_the_full_pass(
    scorer: OptionScorer, adapter: Adapter, ragged: list[Encoded]
) -> None:
    gradients = {}
    for name, batch in variants(scorer, ragged[:3]).items():
        phi = adapter.clone().requires_grad_()
        nll(scorer.scores(batch, phi), batch.answers, "options").backward()
        gradients[name] = torch.cat([tensor.grad.flatten() for tensor in phi.mean_tensors() if tensor.grad is not None])
    assert gradients["full"].abs().max() > 1e-3
    for name in ("computed", "missed", "cached"):
        torch.testing.assert_close(gradients[name], gradients["full"], rtol=1e-4, atol=1e-5, msg=name)


def test_skipped_lower_blocks_are_not_computed(scorer: OptionScorer, adapter: Adapter, ragged: list[Encoded]) -> None:
    with counted(scorer) as calls:
        scorer.scores(scorer.batch(ragged), adapter)
    assert calls == {0: 1, 1: 1, 2: 1, 3: 1}
    cache = ActivationCache(10**9)
    with counted(scorer) as calls:
        batch = scorer.batch(ragged, cache)
    assert calls[1] == len(ragged)
    with counted(scorer) as calls:
        for _ in range(3):
            scorer.scores(batch, adapter)
        scorer.scores(scorer.batch(ragged[::-1], cache), adapter)
    assert calls == {2: 4, 3: 4}
    assert scorer.lower_blocks.fill(batch) is batch


@pytest.mark.parametrize(
    ("packed", "together", "at_once", "passes"),
    [
        (True, 10_000, 1000, 1),
        (True, 10_000, 16, 4),  # less than the prefix, which counts for nothing: the two shortest are one pass
        (False, 10_000, 16, 5),
        (True, 1, 1000, 3),
        (False, 1, 1000, 3),
    ],
)
def test_the_lower_blocks_read_what_batches_begin_with_once(
    scorer: OptionScorer,
    adapter: Adapter,
    ragged: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    together: int,
    at_once: int,
    passes: int,
) -> None:
    """Each batch scores as it does alone, also a batch of one; only as many as fit the limits are read together."""
    monkeypatch.setattr("abmll.language.scorer.TOGETHER", together)
    monkeypatch.setattr("abmll.language.lower_blocks.READ_AT_ONCE", at_once)
    for reader in (scorer, scorer.lower_blocks):
        monkeypatch.setattr(reader, "packed", packed)
    shown = tuple(range(40, 60))
    behind = [replace(example, prompt=shown + example.prompt) for example in ragged]
    groups = [behind[:2], behind[2:3], behind[3:] + behind[:1]]
    with counted(scorer) as calls:
        batches = list(scorer.batches(groups))
    assert (calls[0], calls[2]) == (passes, 0)
    assert len(batches) == 3
    for batch, group in zip(batches, groups, strict=True):
        alone = scorer.batch(group)
        assert batch.lower is not None
        assert torch.equal(batch.input_ids, alone.input_ids)
        given, wanted = (scorer.scores(one, adapter) for one in (batch, alone))
        torch.testing.assert_close(given.options, wanted.options, rtol=1e-5, atol=1e-5)
    assert list(scorer.batches([])) == []


def test_batches_without_lower_blocks_are_what_they_are_alone(
    make_scorer: Callable[..., OptionScorer], deep_llama: Path, ragged: list[Encoded]
) -> None:
    scorer = make_scorer(deep_llama)
    [one, other] = scorer.batches([ragged[:2], ragged[2:]])
    assert (one.lower, other.lower) == (None, None)
    assert torch.equal(other.input_ids, scorer.batch(ragged[2:]).input_ids)


def test_with_the_first_layer_adapted_there_are_no_lower_blocks(
    make_scorer: Callable[..., OptionScorer], deep_llama: Path, ragged: list[Encoded]
) -> None:
    scorer = make_scorer(deep_llama, layers_to_transform="0,3")
    assert not scorer.lower_blocks.blocks
    batch = scorer.batch(ragged, ActivationCache(10**9))
    assert batch.lower is None
    assert scorer.lower_blocks.fill(batch) is batch
    with pytest.raises(ValueError, match="the first block has an adapter"):
        scorer.lower_blocks.output(batch)


def test_a_model_whose_blocks_cannot_be_skipped_is_read_in_full(
    make_folder: Any, make_scorer: Any, oracle: Any, ragged: list[Encoded]
) -> None:
    folder = make_folder("gptj", n_embd=32, n_head=4, n_layer=3, rotary_dim=8)  # its blocks return tuples
    scorer = make_scorer(folder, layers_to_transform="2")
    assert not scorer.lower_blocks.blocks
    scores = scorer.scores(scorer.batch(ragged, ActivationCache(10**9)), None).options
    expected = oracle(folder, ragged)
    assert scores[1, :3].tolist() == pytest.approx(expected[1], rel=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_every_family_has_lower_blocks_that_change_nothing(
    family: str, make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer(family, layers_to_transform="1")
    adapter = randomize(scorer.new_adapter(0))
    full = scorer.scores(scorer.batch(ragged), adapter).options
    replayed = scorer.scores(scorer.batch(ragged, ActivationCache(10**9)), adapter).options
    assert scorer.batch(ragged, ActivationCache(10**9)).lower is not None
    torch.testing.assert_close(replayed, full, rtol=2e-5, atol=2e-5)


class Broken(Exception):
    pass


@contextmanager
def breaking(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` raises ``Broken`` when it is called."""

    def fail(*args: object) -> None:
        raise Broken

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def test_an_exception_in_the_middle_of_a_pass_leaves_no_trace(
    scorer: OptionScorer, adapter: Adapter, ragged: list[Encoded]
) -> None:
    full = scorer.scores(scorer.batch(ragged), adapter).options
    batch = scorer.lower_blocks.fill(scorer.batch(ragged))
    blocks: Any = scorer.base.model.base_model.layers
    with breaking(blocks[2]), pytest.raises(Broken):  # above the lower blocks, while they are skipped
        scorer.scores(batch, adapter)
    torch.testing.assert_close(scorer.scores(scorer.batch(ragged[::-1]), adapter).options.flip(0)[:, :2], full[:, :2])
    with breaking(blocks[1]), pytest.raises(Broken):  # in the lower blocks, while they compute
        scorer.lower_blocks.output(batch)
    assert not any(block.answer is not None or block.ends_pass for block in scorer.lower_blocks.blocks)
    torch.testing.assert_close(scorer.scores(scorer.batch(ragged), adapter).options, full)


def test_blocks_above_the_lower_blocks_are_not_computed_for_them(scorer: OptionScorer, ragged: list[Encoded]) -> None:
    blocks: Any = scorer.base.model.base_model.layers
    with breaking(blocks[2]):
        scorer.lower_blocks.output(scorer.batch(ragged))


def test_a_skippable_block_answers_for_the_block_in_it() -> None:
    block: Any = nn.Linear(2, 2)
    wrapped: Any = SkippableBlock(block)
    block.attention_type = "sliding_attention"
    assert wrapped.attention_type == "sliding_attention"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing
