"""Questions with many more options than there are letters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from abmll.common.config import PromptConfig
from abmll.language.scorer import OptionScorer
from abmll.tasks import Example


@pytest.mark.parametrize("count", [77, 150])
def test_every_option_is_scored_as_if_read_alone(
    count: int, make_scorer: Callable[..., OptionScorer], sharp_folder: Any, oracle: Any
) -> None:
    options = tuple(f"{n}th" for n in range(count))
    examples = [Example("many", "which?", options, count - 1), Example("few", "yes?", ("yes", "no"), 0)]
    scorer = make_scorer("llama", prompt=PromptConfig(instruction=False, answer="text", length_normalize=False))
    encoded = scorer.encode(examples, "t")
    scores = scorer.scores(scorer.batch(encoded), None).options
    for row, wanted in zip(scores, oracle(sharp_folder("llama"), encoded), strict=True):
        torch.testing.assert_close(row[: len(wanted)], torch.tensor(wanted), rtol=2e-5, atol=1e-4)
        assert torch.isneginf(row[len(wanted) :]).all()
