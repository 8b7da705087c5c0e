"""Plain LoRA in the same loop: structured (task after task), regular (shuffled union), and not trained at all.

One set of mean factors, no posterior, no reset: theta and phi are the same adapter. In the paper's terms structured
LoRA takes K consecutive steps per task, regular LoRA shuffles all tasks' examples, and the pretrained model meets an
unseen task with a fresh adapter.
"""

from abmll.language.adapter import Adapter
from abmll.methods.rule import PhiState, Rule
from abmll.methods.support import Support


class StructuredLora(Rule[PhiState]):
    """K steps on each task in turn, nothing reset in between."""

    name = "structured-lora"
    label = "Structured LoRA"

    def init(self, theta: Adapter) -> PhiState:
        """One adapter in both roles; only its mean factors learn."""
        adapter = theta.clone()
        for tensor in adapter.mean_tensors():
            tensor.requires_grad_()
        return PhiState(adapter, adapter, self.phi_optimizer(adapter))


class RegularLora(StructuredLora):
    """The same steps on batches from the shuffled union of all tasks."""

    name = "regular-lora"
    label = "Regular LoRA"
    draws_from = "union"


class PretrainedAdapted(StructuredLora):
    """No meta-training: an unseen task is learned from a fresh adapter, that is, from the pretrained model."""

    name = "pretrained-adapted"
    label = "Pretrained, adapted"
    is_trained = False


class Unchanged(StructuredLora):
    """A rule that takes no gradient step on an unseen task."""

    def num_batches(self, support: Support) -> int:
        """None is read."""
        return 0

    def adapt(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """Theta as it is."""
        return (theta.clone(),)


class Pretrained(Unchanged):
    """The pretrained model as it is: zero-shot."""

    name = "pretrained"
    label = "Pretrained"
    is_trained = False
