"""Output space, token by token: the sampled outputs of layers that read the same tensor, in few passes over memory.

What n tokens with d_out channels each need of a layer's input are its low-rank coefficients (n, c), so that of the
n x d_out numbers between only the noise is kept for the backward pass.

Layers of one shape that follow each other are a *run*: their products are one operation. What is as large as the
outputs lies in one piece of memory, layer after layer, so that the rest is one operation for all of them.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, cast

import torch
from torch import Tensor

from abmll.posterior.tiles import Gradients

Run = tuple[Tensor, Tensor]  # factors (G, r, d_out) of the means and of log sigma, for a run's G layers


def perturbed(
    x: Tensor, right: Tensor, normal: Tensor, runs: Sequence[Run]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs (n, d_out) of G layers for one input x (n, d_in), in its dtype, and their coefficients (n, c).

    A layer's coefficients are the products with its c rows of ``right`` (G c, d_in). Its output is mu + sigma eps, with
    mu from the first r of them and log sigma from the r that begin at c / 2. ``normal`` is eps of all layers, as the
    outputs lie in memory; what log sigma is at coefficients of zero is in it, as a factor.
    """
    both = cast("tuple[Tensor, ...]", _Perturbed.apply(x, right, normal, *chain(*runs)))
    return both[: len(both) // 2], both[len(both) // 2 :]


def parts(memory: Tensor, num_tokens: int, runs: Sequence[Run]) -> list[Tensor]:
    """Views (G, n, d_out) of every run's part of ``memory``."""
    shapes = [(len(mean), num_tokens, mean.shape[2]) for mean, _ in runs]
    pieces = memory.split(list(map(math.prod, shapes))) if len(shapes) > 1 else [memory]
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        x, right, normal, *factors = args
        runs, wide = _runs(factors), x.to(right.dtype)
        coefficients = wide @ right.mT
        noise, output = (wide.new_empty(normal.numel()) for _ in range(2))
        pieces = zip(parts(output, len(x), runs), parts(noise, len(x), runs), strict=True)
        for run, columns, piece in zip(runs, _columns(coefficients.mT, runs), pieces, strict=True):
            for factor, column, part in zip(run, columns, piece, strict=True):
                torch.bmm(column.mT, factor, out=part)
        noise.exp_().view(normal.shape).mul_(normal)
        output = torch.add(output, noise, out=output if x.dtype == output.dtype else x.new_empty(len(output)))
        ctx.save_for_backward(x, right, wide, coefficients, noise, *factors)
        return *chain(*parts(output, len(x), runs)), *coefficients.chunk(_num_layers(runs), 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Gradients:
        x, right, wide, coefficients, noise, *factors = ctx.saved_tensors
        runs, count = _runs(factors), len(grad_outputs) // 2
        gradients = [one.flatten() for one in grad_outputs[:count]]
        if not torch.is_grad_enabled():
            gradient = torch.cat(gradients, out=torch.empty_like(noise))
        else:  # what was computed on the way is a constant otherwise
            gradient = torch.cat(gradients).to(noise.dtype)
            wide = x.to(right.dtype)
            coefficients = wide @ right.mT
            noise = noise * _one(coefficients, runs)
        by_coefficients = torch.cat([one.mT for one in grad_outputs[count:]])
        by_factors: list[Tensor] = []
        columns = zip(_columns(coefficients.mT, runs), _columns(by_coefficients, runs), strict=True)
        pieces = zip(parts(gradient, len(x), runs), parts(gradient * noise, len(x), runs), strict=True)
        for run, own, piece in zip(runs, columns, pieces, strict=True):
            for factor, column, by_column, by in zip(run, *own, piece, strict=True):
                # A CPU is several times as fast with the thin matrix on the left.
                by_column.baddbmm_(factor, by.mT)
                by_factors.append(torch.bmm(column, by))
        by_x = (by_coefficients.mT @ right).to(x.dtype) if ctx.needs_input_grad[0] else None
        return by_x, by_coefficients @ wide, None, *by_factors


def _runs(factors: Sequence[Tensor]) -> list[Run]:
    return list(zip(factors[::2], factors[1::2], strict=True))


def _num_layers(runs: Sequence[Run]) -> int:
    return sum(len(mean) for mean, _ in runs)


def _columns(coefficients: Tensor, runs: Sequence[Run]) -> list[tuple[Tensor, Tensor]]:
    """Views (G, r, n) of every run's coefficients, of means and of log sigma, in those of all layers (G c, n)."""
    rank, counts = runs[0][0].shape[1], [len(mean) for mean, _ in runs]
    by_layer = coefficients.unflatten(0, (sum(counts), -1))
    half = by_layer.shape[1] // 2
    # Not split: what it gives cannot be changed in place.
    own = [by_layer[stop - count : stop] for count, stop in zip(counts, accumulate(counts), strict=True)]
    return [(run[:, :rank], run[:, half : half + rank]) for run in (own if len(own) > 1 else [by_layer])]


def _one(coefficients: Tensor, runs: Sequence[Run]) -> Tensor:
    """sigma over itself, as the outputs lie in memory: ones that have the derivatives of sigma's logarithm."""
    halves = [half for _, half in _columns(coefficients.mT, runs)]
    logs = torch.cat([torch.bmm(half.mT, factor).flatten() for half, (_, factor) in zip(halves, runs, strict=True)])
    return (logs - logs.detach()).exp()
