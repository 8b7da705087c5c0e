"""A step's loss as one compiled graph: the pass of the model, its noise, the likelihood and the divergence.

Its gradient is a second graph, which torch makes of the first. The noise is a function of a key, which is drawn from
the step's generator, so that a step is the same function of the seed as ever, but with other numbers.
"""

from typing import Any

import torch
from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.bucket import bucketed
from abmll.language.compilation import Compilation
from abmll.language.scorer import Pass
from abmll.language.wiring import by_name
from abmll.methods.loss import Loss
from abmll.posterior import Factors, WeightSpace
from abmll.posterior.counted import counted_layers
from abmll.posterior.counter import new_key


def compiled_loss(
    compilation: Compilation, rule: Any, phi: Adapter, theta: Adapter, batch: Batch, generator: torch.Generator
) -> Loss:
    noise = rule.noise(batch.mask, generator)
    key = new_key(generator)
    fixed = Adapter({shape: Factors(*(t.detach() for t in one)) for shape, one in theta.stacks.items()}, theta.layers)
    how = None if noise is None else (noise.kind, noise.rank)
    total, nll, kl, prior, correct, options = compilation.call(_terms, rule, phi, fixed, bucketed(batch), how, key)
    return Loss(total, nll, kl, prior, correct, len(batch.answers), batch.num_tokens, options=options[:, : batch.option_lengths.shape[1]])


def _terms(rule: Any, phi: Adapter, theta: Adapter, batch: Batch, noise: Any, key: Tensor) -> tuple[Tensor, ...]:
    space = rule.scorer.space
    if noise is None:
        updates = by_name(phi, lambda shape: space.layers(phi.stacks[shape], None))
    else:
        found = counted_layers(list(phi.stacks.values()), space.scaling, *noise, tuple(batch.input_ids.shape), key)
        updates = {name: one for names, layers in zip(phi.layers.values(), found, strict=True) for name, one in zip(names, layers, strict=True)}
    scores = rule.scorer.scores(batch, None, Pass(updates=updates))
    loss = rule.with_terms(rule.read(scores, batch), phi, theta)
    assert loss.options is not None
    return loss.total, loss.nll, loss.kl, loss.prior, loss.correct, loss.options
