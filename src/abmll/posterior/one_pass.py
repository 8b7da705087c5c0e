"""A scalar function of tensors whose forward pass yields its gradients too, so that nothing large outlives it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Evaluate = Callable[..., tuple[Tensor, Gradients]]


class _ScalarWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        evaluate, *tensors = args
        value, gradients = evaluate(*tensors)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Gradients:
        # torch's once_differentiable would not notice here: the saved gradients are constants, so a second
        # derivative through this term would silently be zero.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "this term (of output space, sigma_rank > 1 or a floor) is differentiable only once"
            )
        return (None, *(None if gradient is None else grad_outputs[0] * gradient for gradient in ctx.saved_tensors))


def in_one_pass(evaluate: Evaluate, tensors: Sequence[Tensor]) -> Tensor:
    """The scalar that ``evaluate`` returns for ``tensors``, together with its gradient for each (None: not needed)."""
    value = _ScalarWithGradients.apply(evaluate, *tensors)
    assert isinstance(value, Tensor)
    return value
