"""LoRA ensemble (Wang et al., arXiv 2310.00035; Lakshminarayanan et al., arXiv 1612.01474): M adapters, one task.

Members of a published LoRA ensemble differ in the random start of A and in the order of the data. Here all of them
continue one theta, whose B is no longer zero, so that an independent A would throw away what theta has learned. A
member's A therefore starts at theta's plus ``ensemble_spread`` times a fresh random A, its B at theta's, and it meets
the examples in an order of its own. Their disagreement is less than that of members trained apart from the very start,
which would cost M runs. A prediction costs M forward passes.
"""

import torch

from abmll.language.adapter import Adapter
from abmll.methods.lockstep import learn_each
from abmll.methods.lora import StructuredLora
from abmll.methods.support import Support
from abmll.tasks.order import sample_seed


class Ensemble(StructuredLora):
    """Plain LoRA steps for every member."""

    name = "ensemble"
    label = "LoRA ensemble"
    is_trained = False
    base_method = "regular-lora"
    settings_read = ("ensemble_size", "ensemble_spread", "members_at_once")

    def num_batches(self, support: Support) -> int:
        """Every member takes all steps."""
        return self.config.ensemble_size * support.steps

    def adapt(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """M members, each with its own start and order."""
        starts = [self.start(theta, support.seed, member) for member in range(self.config.ensemble_size)]
        return learn_each(self, starts, support)

    @torch.no_grad()
    def start(self, theta: Adapter, seed: int, member: int) -> Adapter:
        """Where a member starts."""
        start, fresh = theta.clone(), self.scorer.new_adapter(sample_seed(seed, "ensemble", member))
        for shape, stack in start.stacks.items():
            stack.mean_A.add_(fresh.stacks[shape].mean_A, alpha=self.config.ensemble_spread)
        return start
