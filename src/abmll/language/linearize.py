"""The option scores to first order in the adapted weights: a Gaussian, without drawing a single sample.

A weight's uncertainty reaches the scores through their Jacobian at the posterior mean. One forward pass and a backward
pass for each option but the first give it, whatever the number of weights.
"""

import torch
from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass
from abmll.language.wiring import Trace


def linearize(scorer: OptionScorer, phi: Adapter, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores (N, C) of the options at the mean, and the covariance (N, C - 1, C - 1) of their lead over the first.

    Only differences of scores matter to a softmax. ``batch`` must not share a prefix: the gradient of one example
    would pass through another's tokens. Rows and columns of options that an example does not have are zero.
    """
    if batch.packing is not None and batch.packing.prefix:
        raise ValueError("the examples of this batch share a prefix: make it with share_prefix=False")
    trace = Trace()
    with torch.enable_grad():
        scores = scorer.scores(batch, phi, Pass(trace=trace)).options
        leads = (scores - scores[:, :1]).where(batch.option_lengths > 0, 0.0)[:, 1:].sum(0).unbind()
    names, outputs = list(trace.outputs), list(trace.outputs.values())
    by_lead = [
        torch.autograd.grad(lead, outputs, retain_graph=number < len(leads)) for number, lead in enumerate(leads, 1)
    ]
    layers = phi.by_layer()
    covariance = scores.new_zeros(len(scores), len(leads), len(leads), dtype=torch.float64)
    for index, name in enumerate(names):
        gradients = torch.stack([_by_example(row[index], batch) for row in by_lead], dim=1).to(covariance.device)
        inputs = _by_example(trace.inputs[name], batch)
        covariance += scorer.space.linear_covariance(layers[name], inputs, gradients)
    return scores.detach(), covariance


def _by_example(row: Tensor, batch: Batch) -> Tensor:
    """(R, L, d) -> (N, T, d), zero on padding."""
    if batch.packing is not None:
        packing = batch.packing
        return row[0][packing.spread].masked_fill(packing.unread[..., None], 0.0)
    return row if batch.mask is None else row.masked_fill(~batch.mask[..., None], 0.0)
