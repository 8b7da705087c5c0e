"""laplace-torch on the option scores of a language model, as a function of an adapter's mean factors.

The only file that needs the extra ``abmll[laplace]``.
"""

import math
from functools import partial
from typing import Any

import torch
from laplace import DiagLaplace
from laplace.curvature import GGNInterface
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from abmll.language.adapter import Adapter
from abmll.methods.support import Support
from abmll.posterior.numerics import bisect

ABSENT = -1e4  # score of an option that an example does not have: no probability, no gradient
SMALLEST, LARGEST = 1e-6, 1e12  # where the prior's precision is looked for
HALVINGS = 60


class OptionScores(nn.Module):
    """(b,) numbers of examples -> (b, C) scores of their options; the parameters are the mean factors of ``phi``."""

    def __init__(self, phi: Adapter, support: Support, width: int) -> None:
        super().__init__()
        self.support, self.width = support, width
        own = {shape: nn.ParameterList([stack.mean_A, stack.mean_B]) for shape, stack in phi.clone().stacks.items()}
        self.means = nn.ModuleList(own.values())
        stacks = {
            shape: stack._replace(mean_A=own[shape][0], mean_B=own[shape][1]) for shape, stack in phi.stacks.items()
        }
        self.adapter = Adapter(stacks, phi.layers)

    def forward(self, numbers: Tensor) -> Tensor:
        """See the class."""
        scores = self.support.scorer.scores
        rows = [scores(self.support.batch([number]), self.adapter).options[0] for number in numbers.tolist()]
        rows = [row.masked_fill(row.isneginf(), ABSENT) for row in rows]
        return torch.stack([F.pad(row, (0, self.width - len(row)), value=ABSENT) for row in rows])


class ScoreJacobians(GGNInterface):
    """Per-example Jacobians by a backward pass for each option: functorch's ways do not lead through every model."""

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """(b, C, P) and (b, C) for the examples' numbers ``x`` (b,); detached, whatever ``enable_backprop``."""
        jacobians, values = [], []
        for number in x:
            with torch.enable_grad():
                scores = self.model(number[None])[0]
            rows = [torch.autograd.grad(score, self.params, retain_graph=True) for score in scores.unbind()]
            jacobians.append(torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]))
            values.append(scores.detach())
        return torch.stack(jacobians), torch.stack(values)


def diagonal_laplace(phi: Adapter, support: Support, precision: float | None = None) -> DiagLaplace:
    """laplace-torch's diagonal posterior around the mean factors of ``phi`` from all examples of a task.

    Its parameters come in the order of ``Adapter.mean_tensors``. ``precision`` is the prior's, one number for all of
    them; None: where the marginal likelihood is greatest.
    """
    width = max(len(example.options) for example in support.encoded)
    answers = torch.tensor([example.answer for example in support.encoded])
    laplace = DiagLaplace(OptionScores(phi, support, width), "classification", backend=ScoreJacobians)
    laplace.fit(DataLoader(TensorDataset(torch.arange(len(answers)), answers), batch_size=1))
    laplace.prior_precision = best_precision(laplace.H, laplace.mean) if precision is None else precision
    return laplace


def best_precision(curvature: Tensor, mode: Tensor) -> float:
    """The prior precision q of N(0, 1 / q) that maximises the Laplace marginal likelihood, for a diagonal curvature h.

    Its derivative by log q is half of  sum_i h_i / (h_i + q) - q |mode|^2  (MacKay 1992), which falls with q: its root
    is found by bisection. laplace-torch's own search, Adam in the model's precision, stops far from it where few of
    very many entries are determined by the data.
    """
    curvature, square = curvature.double(), float(mode.double().square().sum())
    slope = partial(_negative_slope, curvature, square)
    return math.exp(bisect(slope, math.log(SMALLEST), math.log(LARGEST), HALVINGS))


def _negative_slope(curvature: Tensor, square: float, log_precision: float) -> float:
    """Minus twice the derivative of the log marginal likelihood by log q; ``square`` is |mode|^2."""
    precision = math.exp(log_precision)
    return precision * square - float((curvature / (curvature + precision)).sum())
