"""What tuning varies of each method: learning rates, and what is the method's own."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from abmll.experiments.method_spec import Spec


class Range(NamedTuple):
    """The values of one setting that are tried: between two bounds, evenly on a logarithmic scale or a plain one."""

    low: float
    high: float
    log: bool = True


RATES = Range(1e-4, 1e-2)
SCALES = Range(1e-3, 1e-1)
PLAIN = Range(1e-3, 1e-1)  # of plain gradient steps on the sum over a batch
ABMLL: Mapping[str, Range] = {
    "learning_rate": RATES,
    "outer_learning_rate": RATES,
    "scale_learning_rate": SCALES,
    "outer_scale_learning_rate": SCALES,
    "beta": Range(1e-6, 3e-4),  # below, it does nothing
    "init_log_sigma": Range(-7.0, -2.0, log=False),
}
SPACES: Mapping[str, Mapping[str, Range]] = {
    "abmll": ABMLL,
    "abmll-icl": ABMLL,
    "fomaml": {"inner_sgd_rate": PLAIN, "outer_learning_rate": RATES},
    "maml": {"inner_sgd_rate": PLAIN, "outer_learning_rate": RATES},
    "abml": {"inner_sgd_rate": PLAIN, "inner_sgd_scale_rate": PLAIN, "outer_learning_rate": RATES},
    "reptile": {"learning_rate": RATES, "reptile_epsilon": Range(0.1, 1.0)},
    "trained-head": {"outer_learning_rate": RATES},
    "blob": {
        "learning_rate": RATES,
        "scale_learning_rate": SCALES,
        "blob_kl_weight": Range(1e-5, 1e-1),
        "blob_init_log_sigma": Range(-8.0, -2.0, log=False),
    },
    "laplace": {"learning_rate": RATES, "laplace_prior_precision": Range(1.0, 1e4)},
    "ensemble": {"learning_rate": RATES, "ensemble_spread": Range(0.02, 1.0)},
    # Nothing to choose: every trial is the same cell, which is computed once.
    "pretrained": {},
    "icl": {},
    "abmll-mixture": {},  # it has ABMLL's settings, and a calibration that was learned with them
    "mc-dropout": {"learning_rate": RATES, "dropout_rate": Range(0.02, 0.5)},
}
ANY: Mapping[str, Range] = {"learning_rate": RATES}


def search_space(spec: Spec) -> Mapping[str, Range]:
    """The settings that are varied for a method; a new method's learning rate, if it has no row here."""
    return SPACES.get(spec.method, ANY)


def in_range(values: Mapping[str, Any], space: Mapping[str, Range]) -> dict[str, float]:
    """The current values of what is varied, moved to the nearest bound where they lie outside.

    A setting that is not fixed now (None) begins in the middle.
    """
    return {name: _nearest(values[name], own) for name, own in space.items()}


def _nearest(value: float | None, own: Range) -> float:
    if value is None:
        return math.sqrt(own.low * own.high) if own.log else (own.low + own.high) / 2
    return min(max(float(value), own.low), own.high)
