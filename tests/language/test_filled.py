"""Batches filled up to a bucket are scored as they are, whatever is added."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch, collate
from abmll.language.bucket import Bucket
from abmll.language.encoding import Encoded
from abmll.language.filled import filled
from abmll.language.scorer import OptionScorer

MakeScorer = Callable[..., OptionScorer]
Randomize = Callable[..., Adapter]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((1, 1, 1, 1), (32, 4, 8, 8)),
        ((32, 3, 8, 8), (32, 4, 8, 8)),
        ((33, 4, 9, 12), (48, 6, 12, 12)),
        ((49, 5, 13, 17), (64, 6, 16, 24)),
        ((65, 6, 25, 33), (96, 8, 32, 48)),
        ((513, 27, 97, 129), (768, 32, 128, 192)),
    ],
)
def test_sizes(sizes: tuple[int, int, int, int], wanted: tuple[int, ...]) -> None:
    assert Bucket.holding(*sizes) == wanted


def scored(scorer: OptionScorer, batch: Batch, phi: Adapter) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What is said of a batch, and the gradients of the options that it has."""
    own = phi.clone().requires_grad_()
    scores = scorer.scores(batch, own)
    options = scores.options[:, : batch.option_lengths.shape[1]]
    torch.logsumexp(options.masked_fill(batch.option_lengths == 0, -30.0), -1).sum().backward()
    return (
        options.detach(),
        scores.answer_tokens.detach(),
        [one.grad for one in own.mean_tensors() if one.grad is not None],
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bucket", [None, Bucket(64, 8, 48, 64)])
def test_scores_and_gradients_stay(
    family: str,
    packed: bool,
    bucket: Bucket | None,
    make_scorer: MakeScorer,
    ragged: list[Encoded],
    randomize: Randomize,
) -> None:
    scorer = make_scorer(family)
    phi = randomize(scorer.new_adapter(0))
    ragged = [replace(one, prompt=(5, 6, 7, 8, *one.prompt)) for one in ragged]
    for examples in (ragged, ragged[:1]):
        batch = replace(collate(examples, 0, packed), bucket=bucket)
        more = filled(batch)
        sizes = (more.input_ids.shape[1], more.option_lengths.shape[1], len(more.rows), len(more.token_id))
        assert sizes == (bucket or (*((32, 4) if len(examples) == 1 else (48, 6)), *sizes[2:]))
        options, answers, gradients = scored(scorer, batch, phi)
        width = options.shape[1]
        found = scorer.scores(more, phi)
        torch.testing.assert_close(found.options[:, :width], options)
        assert torch.isinf(found.options[:, width:]).all()
        torch.testing.assert_close(found.answer_tokens, answers)
        wider = scored(scorer, more, phi)
        for one, other in zip(wider[2], gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_kept_of_lower_blocks_is_filled_too(
    make_scorer: MakeScorer, ragged: list[Encoded], randomize: Randomize
) -> None:
    scorer = make_scorer("llama", layers_to_transform="1")
    phi = randomize(scorer.new_adapter(0))
    [batch] = scorer.batches([ragged])
    assert batch.lower is not None
    more = filled(batch)
    assert more.lower is not None
    assert more.lower.shape[:2] == more.input_ids.shape == (4, 48)
    wanted = scorer.scores(scorer.batch(ragged), phi)
    torch.testing.assert_close(scorer.scores(more, phi).answer_tokens, wanted.answer_tokens)


def test_nothing_but_the_sizes_of_a_bucket_differs_between_batches(ragged: list[Encoded]) -> None:
    """A compiled graph then serves any of them."""

    def shape(batch: Batch) -> dict[str, Any]:
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return {name: value.shape if isinstance(value, Tensor) else value for name, value in values.items()}

    examples = [one for one in ragged if one.answer is not None]
    bucket = Bucket.of_any(examples, 2)
    pairs = [[examples[i], examples[j]] for i in range(3) for j in range(3)]
    shapes = [shape(filled(replace(collate(pair, 0, True), bucket=bucket))) for pair in pairs]
    assert all(one == shapes[0] for one in shapes)
    assert shapes[0]["mask"] == (2, bucket.length)


def test_the_mask_is_false_on_padding_alone(ragged: list[Encoded]) -> None:
    mask = filled(collate(ragged, 0, True)).mask
    assert mask is not None
    assert mask.sum(1).tolist() == [len(one) for one in ragged]
