"""ABMLL's posterior as a mixture of Gaussians: q(phi | D) = 1/C sum_c q_c(phi), one component an order of the examples.

A few gradient steps end elsewhere for every order in which they meet the examples, and by more than one component's
sigma tells. Every order's end is as good a guess as the others, so the posterior is their equal mixture. Theta, its
training and its calibration are ABMLL's own; samples of a prediction are spread over the components.
"""

from typing import ClassVar

from abmll.language.adapter import Adapter
from abmll.methods.abmll import Abmll
from abmll.methods.support import Support, continued, fit_members


class AbmllMixture(Abmll):
    """``adapt`` is the fit of one component."""

    name: ClassVar[str] = "abmll-mixture"
    label: ClassVar[str] = "ABMLL mixture"
    is_trained: ClassVar[bool] = False
    base_method: ClassVar[str | None] = "abmll"
    settings_read: ClassVar[tuple[str, ...]] = ("ensemble_size",)

    def num_batches(self, steps: int, size: int) -> int:
        """Every component takes all steps."""
        return continued(self.config).ensemble_size * steps

    def fit(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """``ensemble_size`` components, all from theta, each in an order and with noise of its own."""
        return fit_members(self, support, [theta] * continued(self.config).ensemble_size)
