"""Output space, token by token: the sampled outputs of layers that read the same tensor, in few passes over memory.

What n tokens with d_out channels each need of a layer's input are its low-rank coefficients (n, c), so that of the
n x d_out numbers between only the noise is kept for the backward pass.

Layers of one shape that follow each other are a *run*: their products are one operation. What is as large as the
outputs lies in one piece of memory, layer after layer, so that the rest is one operation for all of them.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, cast

import torch
from torch import Tensor

from abmll.posterior.tiles import Gradients

Run = tuple[Tensor, Tensor]  # left factors (G, d_out, r) of the means and of log sigma, for a run's G layers


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
    shapes = [(len(mean), num_tokens, mean.shape[1]) for mean, _ in runs]
    pieces = memory.split([torch.Size(shape).numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        x, right, normal, *lefts = args
        runs, wide = _runs(lefts), x.to(right.dtype)
        coefficients = wide @ right.mT
        means, halves = _columns(coefficients.mT, runs)
        noise, output = (wide.new_empty(normal.numel()) for _ in range(2))
        for (mean_left, half_left), mean, half, *into in zip(
            runs, means, halves, parts(output, len(x), runs), parts(noise, len(x), runs), strict=True
        ):
            torch.bmm(mean.mT, mean_left.mT, out=into[0])
            torch.bmm(half.mT, half_left.mT, out=into[1])
        noise.exp_().view(normal.shape).mul_(normal)
        output = torch.add(output, noise, out=output if x.dtype == output.dtype else x.new_empty(len(output)))
        ctx.save_for_backward(x, right, wide, coefficients, noise, *lefts)
        return *chain(*parts(output, len(x), runs)), *coefficients.chunk(_num_layers(runs), 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Gradients:
        x, right, wide, coefficients, noise, *lefts = ctx.saved_tensors
        runs, count = _runs(lefts), len(grad_outputs) // 2
        gradients = [one.flatten() for one in grad_outputs[:count]]
        if not torch.is_grad_enabled():
            gradient = torch.cat(gradients, out=torch.empty_like(noise))
        else:  # what was computed on the way is a constant otherwise
            gradient = torch.cat(gradients).to(noise.dtype)
            wide = x.to(right.dtype)
            coefficients = wide @ right.mT
            noise = noise * _one(runs, _columns(coefficients.mT, runs)[1])
        by_half = gradient * noise
        by_coefficients = torch.cat([one.mT for one in grad_outputs[count:]])
        by_lefts: list[Tensor] = []
        columns = zip(*_columns(coefficients.mT, runs), *_columns(by_coefficients, runs), strict=True)
        pieces = zip(parts(gradient, len(x), runs), parts(by_half, len(x), runs), strict=True)
        for run, of_run, (mean, half, by_mean, by_log) in zip(runs, pieces, columns, strict=True):
            for left, by, column, by_column in zip(run, of_run, (mean, half), (by_mean, by_log), strict=True):
                # A CPU is several times as fast with the thin matrix on the left.
                by_column.baddbmm_(left.mT, by.mT)
                by_lefts.append(torch.bmm(column, by).mT)
        by_x = (by_coefficients.mT @ right).to(x.dtype) if ctx.needs_input_grad[0] else None
        return by_x, by_coefficients @ wide, None, *by_lefts


def _runs(lefts: Sequence[Tensor]) -> list[Run]:
    return list(zip(lefts[::2], lefts[1::2], strict=True))


def _num_layers(runs: Sequence[Run]) -> int:
    return sum(len(mean) for mean, _ in runs)


def _columns(coefficients: Tensor, runs: Sequence[Run]) -> tuple[list[Tensor], list[Tensor]]:
    """Views (G, r, n) of every run's coefficients, those of means and those of log sigma, in (G c, n) of all layers."""
    rank, counts = runs[0][0].shape[2], [len(mean) for mean, _ in runs]
    by_layer = coefficients.unflatten(0, (sum(counts), -1))
    # Not split: what it gives cannot be changed in place.
    own = [by_layer[stop - count : stop] for count, stop in zip(counts, accumulate(counts), strict=True)]
    start = by_layer.shape[1] // 2
    return [run[:, :rank] for run in own], [run[:, start : start + rank] for run in own]


def _one(runs: Sequence[Run], halves: Sequence[Tensor]) -> Tensor:
    """sigma over itself, as the outputs lie in memory: ones that have the derivatives of sigma's logarithm."""
    logs = torch.cat([torch.bmm(half.mT, left.mT).flatten() for (_, left), half in zip(runs, halves, strict=True)])
    return (logs - logs.detach()).exp()
