"""Which numbers are a prior of the head, and how it is kept as JSON."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from abmll.posterior.hypotheses import HeadPrior

WRONG: list[dict[str, Any]] = [
    {"weight_mean": (1.0,)},
    {"weight_mean": (1.0, 1.0)},
    {"weight_mean": (1.0, 0.0, 1.0)},
    {"weight_mean": (math.nan, 1.0, 1.0)},
    {"weight_std": (0.5, -0.3, 1.0)},
    {"bias_std": 0.0},
    {"bias_std": math.inf},
    {"taus": (1.0, 2.0)},
    {"taus": (0.0, 1.0, 2.0, -4.0)},
    {"taus": (), "labelled": ((),) * 3},
    {"labelled": ((0.0,) * 4,) * 2},
    {"labelled": ((0.0, 0.0, 0.0, math.inf), *((0.0,) * 4,) * 2)},
    {"open": (0.0, 0.0)},
    {"open": (0.0,) * 3},
    {"open": (*(0.0,) * 5, math.nan)},
    {"open": (0.0,) * 8},
    {"free_std": (1.0, 0.0, 1.0)},
    {"free_std": (1.0, 1.0)},
    {"depths": ()},
    {"depths": (0.0,)},
    {"depths": (0.5, 1.1)},
]


@pytest.mark.parametrize("change", WRONG)
def test_what_is_no_prior_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no prior"):
        HeadPrior(**change)


def test_a_prior_survives_json() -> None:
    prior = replace(HeadPrior(), weight_mean=(0.1 + 0.2, 1 / 3, 1.0), open=(-0.1, 0.0, *(1e-9,) * 4), depths=(0.5, 1.0))
    assert HeadPrior.of(asdict(prior)) == prior
    assert HeadPrior.of(json.loads(json.dumps(asdict(prior)))) == prior


@pytest.mark.parametrize("document", [{"taus": "x"}, {"taus": 1.0}, {"width": 1.0}, {"bias_std": [1.0]}])
def test_another_document_is_no_prior(document: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        HeadPrior.of(document)


def test_depths_are_shares_of_the_blocks() -> None:
    assert replace(HeadPrior(), depths=(0.01, 0.5, 1.0)).blocks(30) == (1, 15, 30)
    assert replace(HeadPrior(), depths=(0.95, 1.0)).blocks(2) == (2,)
