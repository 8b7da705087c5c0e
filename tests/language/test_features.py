"""Features of examples, against transformers' own hidden states, token by token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from abmll.common.config import PromptConfig
from abmll.common.errors import DataError
from abmll.language import features as module
from abmll.language.activation_store import ActivationStore
from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader
from abmll.language.meter import counted
from abmll.language.scorer import OptionScorer
from abmll.tasks import Example

MakeScorer = Callable[..., OptionScorer]
BLOCKS = (1, 3, 4)  # of four: two hidden states and what is behind the final norm
PAIRS = slice(0, 2), slice(2, None)  # of what is kept of two examples, with and without the input


@pytest.fixture
def started(ragged: list[Encoded]) -> list[Encoded]:
    """Their inputs begin behind no, some or all but one of the prompt's tokens."""
    starts, bare = (0, 5, 2, 11), (3, 5, 6)
    return [replace(one, start=start, bare=bare) for one, start in zip(ragged, starts, strict=True)]


def with_prefix(examples: list[Encoded]) -> list[Encoded]:
    """The examples behind 30 tokens that all begin with."""
    return [replace(one, prompt=(*range(40, 70), *one.prompt), start=one.start + 30) for one in examples]


@torch.no_grad()
def averages(folder: Path, examples: list[Encoded]) -> Tensor:
    """(N, K, d): transformers' hidden states of each prompt alone, averaged from its start on."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for one in examples:
        states = model(torch.tensor([one.prompt]), output_hidden_states=True).hidden_states
        rows.append(torch.stack([states[block][0, one.start :].mean(0) for block in BLOCKS]))
    return torch.stack(rows)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("long", [True, False])
def test_hidden_states_are_transformers_own(
    make_scorer: Any, deep_llama: Path, started: list[Encoded], packed: bool, long: bool
) -> None:
    """Packed behind a shared prefix or not, padded: the same averages as of every prompt read alone."""
    scorer = make_scorer.fresh(deep_llama)
    assert scorer.packed
    scorer.packed = packed
    examples = with_prefix(started) if long else started
    found = FeatureReader(scorer, BLOCKS).read(examples).hidden
    torch.testing.assert_close(found, averages(deep_llama, examples), rtol=2e-5, atol=2e-5)


def test_features_are_the_same_alone_and_in_company(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded]
) -> None:
    scorer = make_scorer(deep_llama)
    together = FeatureReader(scorer, BLOCKS).read(started)
    for number, one in enumerate(started):
        alone = FeatureReader(scorer, BLOCKS).read([one])
        torch.testing.assert_close(alone.hidden[0], together.hidden[number], rtol=2e-5, atol=2e-5)
        count = len(one.options)
        torch.testing.assert_close(alone.scores[0], together.scores[number, :count], rtol=2e-5, atol=1e-4)


def test_the_last_depth_is_behind_the_final_norm(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded]
) -> None:
    """Root mean square norm: each token's state has the length of the norm's weights, whatever came before."""
    scorer = make_scorer(deep_llama)
    one = replace(started[0], start=len(started[0].prompt) - 1)
    state = FeatureReader(scorer, (4,)).read([one]).hidden[0, 0]
    model: Any = scorer.base.model
    assert float((state / model.model.norm.weight.detach()).square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_scores_are_the_scorers_per_token_and_summed(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], oracle: Any
) -> None:
    found = FeatureReader(make_scorer(deep_llama), (2,)).read(started).scores
    assert found.dtype == torch.float64
    for row, example, sums in zip(found, started, oracle(deep_llama, started), strict=True):
        count = len(example.options)
        lengths = torch.tensor([len(option) for option in example.options])
        torch.testing.assert_close(row[:count, 1], torch.tensor(sums).double(), rtol=2e-5, atol=1e-4)
        torch.testing.assert_close(row[:count, 0], row[:count, 1] / lengths)
        assert bool(row[count:].isneginf().all())
    bare = oracle(deep_llama, [one.unasked for one in started])
    for row, without in zip(found, bare, strict=True):
        own = row[: len(without)]
        torch.testing.assert_close(own[:, 2], own[:, 1] - torch.tensor(without).double(), rtol=2e-5, atol=1e-4)


def test_features_are_read_with_the_adapter(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer(deep_llama)
    phi = randomize(scorer.new_adapter(0))
    found, bare = (FeatureReader(scorer, (4,), one).read(started) for one in (phi, None))
    sums = scorer.scores(scorer.batch(started), phi).sums.double()
    present = found.scores[..., 1].isfinite()
    torch.testing.assert_close(found.scores[..., 1][present], sums[present], rtol=2e-5, atol=1e-4)
    assert float((found.hidden - bare.hidden).abs().max()) > 0.05


def test_numbers_that_are_not_finite_are_refused_and_not_kept(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded]
) -> None:
    scorer = make_scorer(deep_llama)
    phi = scorer.new_adapter(0)
    for mean in phi.mean_tensors():
        mean.fill_(torch.inf)
    reader = FeatureReader(scorer, BLOCKS, phi)
    with pytest.raises(DataError, match="are not finite numbers"):
        reader.read(started)
    assert not len(reader.kept)


def test_an_example_is_read_once(make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded]) -> None:
    scorer = make_scorer(deep_llama)
    reader = FeatureReader(scorer, BLOCKS)
    with counted(scorer) as first:
        before = reader.read([*started[:3], started[0]])
    with counted(scorer) as again:
        after = reader.read(started[:3])
    with counted(scorer) as new:
        reader.read(started)
    assert (first.forward_passes, first.gradient_passes, again.forward_passes) == (1, 0, 0)
    assert new.tokens == len(started[3]) + len(started[3].unasked)
    assert torch.equal(before.hidden[:3], after.hidden)
    assert torch.equal(before.hidden[3], after.hidden[0])
    assert torch.equal(before.scores[:3], after.scores)


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({"answer": 0}, 0),
        ({"answer": None}, 0),
        ({"truncated": 3}, 0),
        ({"start": 1}, 1),
        ({"options": ((7,), (8,))}, 1),
        ({"prompt": (9, 8, 7)}, 1),
    ],
)
def test_what_is_read_of_an_example_is_what_is_kept_of_it(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], change: dict[str, Any], passes: int
) -> None:
    scorer = make_scorer(deep_llama)
    reader = FeatureReader(scorer, BLOCKS)
    reader.read(started[:1])
    with counted(scorer) as cost:
        reader.read([replace(started[0], **change)])
    assert cost.forward_passes == passes


def test_the_longest_unused_features_leave_first(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_scorer(deep_llama)
    sizes = [2 * (32 * 4 + len(one.options) * 2 * 8) for one in started]  # with and without the input
    monkeypatch.setattr(module, "MAX_KEPT", sizes[0] + max(sizes[1:3]))
    reader = FeatureReader(scorer, (4,))
    for number in (0, 1, 0, 2):
        reader.read([started[number]])
    kept = [one for number in (0, 2) for one in (started[number], started[number].unasked)]
    keys = list(map(module.read_key, kept))
    assert [set(list(reader.kept)[own]) for own in PAIRS] == [set(keys[own]) for own in PAIRS]


def test_features_on_disk_are_the_bits_that_were_read(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], tmp_path: Path
) -> None:
    """For another process: without a pass. Other blocks, and another adapter, have features of their own."""
    scorer = make_scorer(deep_llama)
    beside = ActivationStore(tmp_path, {"of": "something else"}, 10**9)
    written = FeatureReader(scorer, BLOCKS, beside=beside).read(started)
    with counted(scorer) as cost:
        found = FeatureReader(scorer, BLOCKS, beside=beside).read(started)
    assert cost.forward_passes == 0
    assert torch.equal(found.hidden, written.hidden)
    assert torch.equal(found.scores, written.scores)
    for blocks, phi in (((1, 2, 4), None), (BLOCKS, scorer.new_adapter(0))):
        with counted(scorer) as cost:
            FeatureReader(scorer, blocks, phi, beside).read(started)
        assert cost.forward_passes == 1


def test_more_than_is_kept_is_still_answered(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_scorer(deep_llama)
    whole = FeatureReader(scorer, (4,)).read(started)
    monkeypatch.setattr(module, "MAX_KEPT", 0)
    reader = FeatureReader(scorer, (4,))
    assert torch.equal(reader.read(started).hidden, whole.hidden)
    assert not reader.kept


def test_many_examples_take_several_passes_in_their_own_order(
    make_scorer: MakeScorer, deep_llama: Path, started: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_scorer(deep_llama)
    whole = FeatureReader(scorer, (4,)).read(started)
    monkeypatch.setattr(module, "MAX_TOKENS", 20)
    with counted(scorer) as cost:
        parts = FeatureReader(scorer, (4,)).read(started)
    assert cost.forward_passes > 1
    torch.testing.assert_close(parts.hidden, whole.hidden, rtol=2e-5, atol=2e-5)


def test_the_order_of_the_examples_changes_no_bit(
    make_scorer: Any, deep_llama: Path, started: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples of the same length are spread over passes in the same way."""
    scorer, groups = make_scorer.fresh(deep_llama), []
    alike = [replace(started[0], prompt=(*started[0].prompt[:-1], token)) for token in range(20, 26)]
    monkeypatch.setattr(module, "MAX_TOKENS", 9)
    batch = scorer.batch
    monkeypatch.setattr(scorer, "batch", lambda group: [groups.append(group), batch(group)][1])
    first, second = (FeatureReader(scorer, (4,)).read(order) for order in (alike, alike[::-1]))
    assert len(groups) > 2
    assert groups[: len(groups) // 2] == groups[len(groups) // 2 :]
    assert torch.equal(first.hidden, second.hidden.flip(0))


def test_the_instruction_is_read_but_not_averaged(make_scorer: MakeScorer, deep_llama: Path) -> None:
    """From an encoded example to its features: the input and what follows, behind instruction and name."""
    scorer = make_scorer(deep_llama, prompt=PromptConfig(instruction=True, list_options=True, answer="text"))
    [encoded] = scorer.encode([Example("0", "is it so?", ("yes", "no"), 0)], "name")
    decoded = scorer.base.tokenizer.decode(list(encoded.prompt[encoded.start :]))
    assert decoded == "is it so?\nChoices:\nA) yes\nB) no\nAnswer:"
    found = FeatureReader(scorer, BLOCKS).read([encoded]).hidden
    torch.testing.assert_close(found, averages(deep_llama, [encoded]), rtol=2e-5, atol=2e-5)


def test_too_many_options_are_not_scored(make_scorer: Any, deep_llama: Path, started: list[Encoded]) -> None:
    """The hidden states are those of the prompt, whatever follows it; an example of few options is read as ever."""
    scorer = make_scorer.fresh(deep_llama)
    options = tuple((40 + n // 20, 60 + n % 20) for n in range(module.MAX_SCORED + 1))
    many = [replace(one, options=options, answer=32) for one in started]
    few = replace(started[0], options=options[:-1])
    found = FeatureReader(scorer, BLOCKS).read([*many, few])
    torch.testing.assert_close(found.hidden[:4], averages(deep_llama, started), rtol=2e-5, atol=2e-5)
    assert torch.equal(found.scores[:4], torch.zeros(4, len(options), 3, dtype=torch.float64))
    assert torch.count_nonzero(found.scores[4, :-1]) == 3 * (len(options) - 1)
    with counted(scorer) as meter:
        FeatureReader(scorer, BLOCKS).read(many)
    [bare] = {one.bare for one in many}  # and the same options: read once
    assert meter.tokens == sum(len(prompt) + 1 for prompt in (*(one.prompt for one in many), bare))
