"""ABMLL's posterior as a mixture of Gaussians: q(phi | D) = 1/C sum_c q_c(phi), one component an order of the examples.

A few gradient steps end elsewhere for every order in which they meet the examples, and by more than one component's
sigma tells. Every order's end is as good a guess as the others, so the posterior is their equal mixture. Theta, its
training and its calibration are ABMLL's own; samples of a prediction are spread over the components.
"""

from abmll.language.adapter import Adapter
from abmll.methods.abmll import Abmll
from abmll.methods.lockstep import learn_each
from abmll.methods.support import Support


class AbmllMixture(Abmll):
    """ABMLL's steps for every component, all components side by side."""

    name = "abmll-mixture"
    label = "ABMLL mixture"
    is_trained = False
    base_method = "abmll"
    settings_read = ("ensemble_size", "members_at_once")

    def num_batches(self, support: Support) -> int:
        """Every component takes all steps."""
        return self.config.ensemble_size * support.steps

    def adapt(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """``ensemble_size`` components, all from theta, each in an order and with noise of its own."""
        return learn_each(self, [theta] * self.config.ensemble_size, support)
