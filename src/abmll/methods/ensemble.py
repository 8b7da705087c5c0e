"""LoRA ensemble (Wang et al., arXiv 2310.00035; Lakshminarayanan et al., arXiv 1612.01474): M adapters, one task.

Members of a published LoRA ensemble differ in the random start of A and in the order of the data. Here all of them
continue one theta, whose B is no longer zero, so that an independent A would throw away what theta has learned. A
member's A therefore starts at theta's plus ``ensemble_spread`` times a fresh random A, its B at theta's, and it meets
the examples in an order of its own. Their disagreement is less than that of members trained apart from the very start,
which would cost M runs. A prediction costs M forward passes.
"""

from typing import ClassVar

import torch

from abmll.language.adapter import Adapter
from abmll.methods.lora import StructuredLora
from abmll.methods.support import Support, continued, fit_members
from abmll.tasks.order import sample_seed


class Ensemble(StructuredLora):
    """``adapt`` is one member's fit, from where it starts."""

    name: ClassVar[str] = "ensemble"
    label: ClassVar[str] = "LoRA ensemble"
    is_trained: ClassVar[bool] = False
    base_method: ClassVar[str | None] = "regular-lora"
    settings_read: ClassVar[tuple[str, ...]] = ("ensemble_size", "ensemble_spread")

    def num_batches(self, steps: int, size: int) -> int:
        """Every member takes all steps."""
        return continued(self.config).ensemble_size * steps

    def fit(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """M members, each with its own start and order."""
        numbers = range(continued(self.config).ensemble_size)
        return fit_members(self, support, [self.start(theta, support.seed, member) for member in numbers])

    @torch.no_grad()
    def start(self, theta: Adapter, seed: int, member: int) -> Adapter:
        """Where a member starts."""
        start, fresh = theta.clone(), self.scorer.new_adapter(sample_seed(seed, "ensemble", member))
        for shape, stack in start.stacks.items():
            stack.mean_A.add_(fresh.stacks[shape].mean_A, alpha=continued(self.config).ensemble_spread)
        return start
