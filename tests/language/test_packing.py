"""A packed row against the padded batch, which reads every example on its own: the simple path is the oracle."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, collate
from abmll.language.encoding import Encoded
from abmll.language.packing import Packing, install_packing, remove_packing
from abmll.language.scorer import OptionScorer, Pass, nll
from abmll.posterior import Noise, Prior

FAMILIES = ["llama", "qwen2", "gpt2", "gemma"]


@pytest.fixture
def alike(ragged: list[Encoded]) -> list[Encoded]:
    """The ragged questions behind five tokens that all prompts begin with."""
    start = (11, 12, 13, 14, 15)
    return [Encoded(start + tuple(one.prompt), one.options, one.answer) for one in ragged[:3]]


def behind(examples: list[Encoded], more: int) -> list[Encoded]:
    """The examples behind so many more tokens; 130 attend to themselves once."""
    return [replace(one, prompt=tuple(range(40, 40 + more)) + tuple(one.prompt)) for one in examples]


def padded(examples: list[Encoded]) -> Batch:
    return collate(examples, 0)


def loss_and_gradient(scorer: OptionScorer, adapter: Adapter, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    phi = adapter.clone().requires_grad_()
    scores = scorer.scores(batch, phi)
    nll(scores, batch.answers, "options").backward()
    gradients = [tensor.grad.flatten() for tensor in phi.mean_tensors() if tensor.grad is not None]
    return scores.options.detach(), torch.cat(gradients)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("share_prefix", "more"), [(True, 0), (True, 130), (False, 0)])
def test_scores_and_gradients_are_those_of_the_padded_batch(
    family: str,
    share_prefix: bool,
    more: int,
    make_scorer: Callable[..., OptionScorer],
    alike: list[Encoded],
    randomize: Any,
) -> None:
    """In fp32 to 2e-5 of a score and of the greatest gradient. With ``more``, the prefix attends once for all."""
    scorer = make_scorer(family)
    assert scorer.packed
    adapter = randomize(scorer.new_adapter(0))
    alike = behind(alike, more)
    packed = scorer.batch(alike, share_prefix=share_prefix)
    assert packed.input_ids.shape == (1, sum(map(len, alike)) - (2 * (5 + more) if share_prefix else 0))
    assert (packed.packing is not None and packed.packing.rest is not None) == (more > 0)
    scores, gradient = loss_and_gradient(scorer, adapter, packed)
    wanted, wanted_gradient = loss_and_gradient(scorer, adapter, padded(alike))
    torch.testing.assert_close(scores, wanted, rtol=2e-5, atol=2e-5)
    assert wanted_gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=2e-5 * float(wanted_gradient.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [0, 130])
def test_in_bf16_to_a_few_roundings(
    family: str, more: int, make_scorer: Callable[..., OptionScorer], alike: list[Encoded], randomize: Any
) -> None:
    scorer, alike = make_scorer(family, dtype="bf16"), behind(alike, more)
    adapter = randomize(scorer.new_adapter(0), size=0.1)
    scores, gradient = loss_and_gradient(scorer, adapter, scorer.batch(alike))
    wanted, wanted_gradient = loss_and_gradient(scorer, adapter, padded(alike))
    torch.testing.assert_close(scores, wanted, rtol=1e-2, atol=0.05)
    assert torch.nn.functional.cosine_similarity(gradient, wanted_gradient, dim=0) > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_in_one_kernel_as_on_a_gpu_is_the_same(
    family: str, make_scorer: Any, alike: list[Encoded], randomize: Any
) -> None:
    eager, fused, alike = make_scorer(family), make_scorer.fresh(family), behind(alike, 130)
    model = fused.base.model
    remove_packing(model)
    model.set_attn_implementation("sdpa")
    assert install_packing(model)
    adapter = randomize(eager.new_adapter(0))
    scores, gradient = loss_and_gradient(fused, adapter, fused.batch(alike))
    wanted, wanted_gradient = loss_and_gradient(eager, adapter, padded(alike))
    torch.testing.assert_close(scores, wanted, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=2e-5 * float(wanted_gradient.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_read_before_need_not_be_read_again(
    family: str, make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    """One example behind a beginning of its own, and two behind another one, of which a few tokens are left."""
    scorer, beginnings = make_scorer(family), [(11, 12, 13, 14, 15), (21, 22, 23, 24, 25)]
    adapter = randomize(scorer.new_adapter(0))
    prompts = zip((beginnings[0], beginnings[1], beginnings[1]), ragged, strict=False)
    examples = [replace(one, prompt=start + tuple(one.prompt)) for start, one in prompts]
    first = scorer.batch([Encoded(start, ((0,),), None) for start in beginnings], share_prefix=False)
    seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    scorer.scores(replace(first, packing=replace(first.places, seen=seen)), adapter)
    before = {module: tuple(row[:, :, [0, 1, 2, 5, 6, 7]] for row in pair) for module, pair in seen.items()}
    batch = scorer.batch(examples, share_prefix=False).behind(3, [1, 2])
    assert batch.input_ids.numel() == sum(map(len, examples)) - 9
    batch = replace(batch, packing=replace(batch.places, before=before))
    wanted = scorer.scores(padded(examples), adapter).options
    torch.testing.assert_close(scorer.scores(batch, adapter).options, wanted, rtol=2e-5, atol=2e-5)


def test_no_token_is_padding_and_a_shared_prefix_is_read_once(
    make_scorer: Callable[..., OptionScorer], alike: list[Encoded]
) -> None:
    batch = make_scorer("llama").batch(alike)
    assert batch.mask is None
    assert batch.packing is not None
    assert batch.packing.prefix == 5
    assert batch.num_tokens == sum(map(len, alike)) == batch.input_ids.numel() + 2 * 5
    assert batch.input_ids[0, :5].tolist() == [11, 12, 13, 14, 15]


def test_equal_prompts_keep_their_last_token(make_scorer: Callable[..., OptionScorer], ragged: list[Encoded]) -> None:
    """The first answer token is predicted there, from each example's own place."""
    scorer = make_scorer("llama")
    twins = [ragged[1], ragged[1]]
    batch = scorer.batch(twins)
    assert batch.packing is not None
    assert batch.packing.prefix == len(ragged[1].prompt) - 1
    alone = scorer.scores(scorer.batch(twins[:1]), None).options
    torch.testing.assert_close(scorer.scores(batch, None).options, alone.expand(2, -1), rtol=2e-5, atol=2e-5)


def test_divergences_of_output_space_are_those_of_the_padded_batch(
    make_scorer: Callable[..., OptionScorer], alike: list[Encoded], randomize: Any
) -> None:
    """They are sums over tokens: a prefix counts once for every example that has it."""
    scorer = make_scorer("llama", space="output")
    theta, phi, prior = scorer.new_adapter(0), randomize(scorer.new_adapter(0)), Prior(1.0, 1.0, 0.01)
    sums = []
    for batch in (scorer.batch(alike), padded(alike)):
        terms = scorer.scores(batch, phi, Pass(None, theta)).terms
        assert terms is not None
        sums.append(torch.stack([terms.kl(), terms.negative_log_prior(prior)]))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-4)


def test_a_weight_sample_of_some_rank_meets_every_batch_alike(
    make_scorer: Callable[..., OptionScorer], alike: list[Encoded]
) -> None:
    scorer = make_scorer("llama", init_log_sigma=-1.0)
    adapter = scorer.new_adapter(0)

    def sample(examples: list[Encoded], seed: int = 3) -> torch.Tensor:
        noise = Noise("shared", torch.Generator().manual_seed(seed), rank=4)
        return scorer.scores(scorer.batch(examples), adapter, Pass(noise)).options

    together = sample(alike)
    for row, example in zip(together, alike, strict=True):
        torch.testing.assert_close(row[: len(example.options)], sample([example])[0], rtol=2e-5, atol=2e-5)
    assert (together - sample(alike, seed=4)).abs().nan_to_num().max() > 1e-2


def test_a_model_with_its_own_attention_is_read_padded(
    make_folder: Any, make_scorer: Any, oracle: Any, ragged: list[Encoded]
) -> None:
    folder = make_folder("gptj", n_embd=32, n_head=4, n_layer=3, rotary_dim=8)
    scorer = make_scorer(folder, target_modules=("q_proj", "v_proj"))
    assert not scorer.packed
    batch = scorer.batch(ragged)
    assert batch.packing is None
    assert batch.mask is not None
    for row, wanted in zip(scorer.scores(batch, None).options, oracle(folder, ragged), strict=True):
        assert row[: len(wanted)].tolist() == pytest.approx(wanted, rel=2e-5)


def test_laying_out_and_spreading_are_inverse() -> None:
    packing = Packing.of([4, 2, 3], prefix=1)
    rows = [torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.0], [4]]), torch.tensor([[0.0], [5], [6]])]
    row = packing.lay_out(rows)
    assert row.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert all(map(torch.equal, packing.take_apart(row[0], [4, 2, 3]), rows))
    spread = row[0, packing.spread, 0]
    assert spread.tolist() == [[0, 1, 2, 3], [0, 4, 0, 0], [0, 5, 6, 0]]
    assert spread.flatten()[packing.gather].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert packing.unread.tolist() == [[False] * 4, [True, False, True, True], [True, False, False, True]]
