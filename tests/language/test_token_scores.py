"""Log-probabilities of every token against transformers' own forward pass on each text alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from abmll.common.errors import DataError
from abmll.language import token_scores as module
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.language.token_scores import Place, Wanted, token_scores

MakeScorer = Callable[..., OptionScorer]


def texts_of(*lengths: int) -> list[list[int]]:
    """Random texts, each of which begins with the same two tokens."""
    generator = torch.Generator().manual_seed(3)
    return [[7, 9, *torch.randint(3, 259, (length,), generator=generator).tolist()][:length] for length in lengths]


def assert_is(place: Place, logs: torch.Tensor, token: int, top: int) -> None:
    """A place against the log-probabilities (V,) of the whole vocabulary."""
    assert place.token == token
    assert place.log_prob == pytest.approx(float(logs[token]), abs=2e-5)
    best = logs.topk(top) if top else None
    assert list(place.others) == ([] if best is None else best.indices.tolist())
    assert list(place.others.values()) == pytest.approx([] if best is None else best.values.tolist(), abs=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_every_token_of_texts_read_together(family: str, make_scorer: MakeScorer, sharp_folder: Any) -> None:
    plain = AutoModelForCausalLM.from_pretrained(sharp_folder(family), dtype=torch.float32).eval()
    texts = texts_of(5, 1, 40, 2, 17, 17)
    found = token_scores(make_scorer(family), texts, None, Wanted(every=True, top=3))
    for text, scores in zip(texts, found, strict=True):
        with torch.no_grad():
            logs = torch.log_softmax(plain(torch.tensor([text])).logits[0].double(), -1)
        assert len(scores.text) == len(text) - 1
        for place, row, token in zip(scores.text, logs, text[1:], strict=False):
            assert_is(place, row, token, 3)
        assert_is(scores.following, logs[-1], int(logs[-1].argmax()), 3)


def test_an_adapter_at_its_mean(make_scorer: MakeScorer, sharp_folder: Any, randomize: Any) -> None:
    scorer = make_scorer("llama", r=2)
    phi = randomize(scorer.new_adapter(0))
    plain: Any = AutoModelForCausalLM.from_pretrained(sharp_folder("llama"), dtype=torch.float32).eval()
    [text] = texts_of(12)
    with torch.no_grad():
        for name, layer in phi.by_layer().items():
            update = scorer.adapter_config.lora_alpha / scorer.adapter_config.r * layer.mean_B @ layer.mean_A
            plain.get_submodule(name).weight += update
        logs = torch.log_softmax(plain(torch.tensor([text])).logits[0].double(), -1)
    [found] = token_scores(scorer, [text], phi, Wanted(every=True))
    [bare] = token_scores(scorer, [text], None, Wanted(every=True))
    for place, before, row, token in zip(found.text, bare.text, logs, text[1:], strict=False):
        assert_is(place, row, token, 0)
        assert abs(place.log_prob - before.log_prob) > 1e-4


def test_what_follows_equals_what_options_are_scored(make_scorer: MakeScorer, randomize: Any) -> None:
    scorer = make_scorer("qwen2")
    phi = randomize(scorer.new_adapter(0))
    texts, tokens = texts_of(9, 4), (30, 200, 5)
    found = token_scores(scorer, texts, phi, Wanted(chosen=tokens, top=1))
    examples = [Encoded(tuple(text), tuple((token,) for token in tokens), None) for text in texts]
    sums = scorer.scores(scorer.batch(examples), phi).sums
    for scores, row in zip(found, sums.tolist(), strict=True):
        assert scores.text == ()
        assert list(scores.following.others) == list(tokens)
        assert list(scores.following.others.values()) == pytest.approx(row, abs=2e-5)
        assert scores.following.log_prob >= max(row)


def test_few_places_at_once_are_the_same(make_scorer: MakeScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(30, 11, 2)
    whole = token_scores(make_scorer("llama"), texts, None, Wanted(every=True, top=2))
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "MAX_TOKENS", 16)
    parts = token_scores(make_scorer("llama"), texts, None, Wanted(every=True, top=2))
    for one, other in zip(whole, parts, strict=True):
        places = zip((*one.text, one.following), (*other.text, other.following), strict=True)
        assert all(a.token == b.token and a.log_prob == pytest.approx(b.log_prob, abs=1e-5) for a, b in places)


def test_nothing_is_cut(make_scorer: MakeScorer) -> None:
    scorer = make_scorer("gpt2")
    for text, line in (
        ([], r"prompt\[1\]: is empty"),
        ([5] * (scorer.base.context + 1), r"prompt\[1\]: has [\d,]+ tokens, more than the model's [\d,]+; shorten it"),
        ([5, 259], r"prompt\[1\]: the model's tokens are 0 to 258"),
        ([-1, 5], r"prompt\[1\]: the model's tokens are 0 to 258"),
    ):
        with pytest.raises(DataError, match=line):
            token_scores(scorer, [[1], text], None, Wanted())
    with pytest.raises(DataError, match=r"logprob_token_ids: the model's tokens are 0 to 258"):
        token_scores(scorer, [[1]], None, Wanted(chosen=(259,)))
    assert token_scores(scorer, [], None, Wanted()) == []
