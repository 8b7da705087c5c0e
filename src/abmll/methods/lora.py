"""Plain LoRA in the same loop: structured (task after task), regular (shuffled union), and not trained at all.

One set of mean factors, no posterior, no reset: theta and phi are the same adapter. In the paper's terms structured
LoRA takes K consecutive steps per task, regular LoRA shuffles all tasks' examples, and the pretrained model meets an
unseen task with a fresh adapter. With ``meta_batch`` above 1 so many episodes start from the same adapter, and it moves
to the mean of where they end (local SGD, arXiv 1805.09767).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.methods.rule import PhiState, Rule
from abmll.methods.support import Support


@dataclass
class OneAdapterState(PhiState):
    """Theta and phi are the same adapter."""

    def passed_on(self) -> dict[str, Tensor]:
        """The adapter too: nothing is reset."""
        return super().passed_on() | {name: tensor.detach() for name, tensor in self.optimizer.named.items()}

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Moments and adapter as they were."""
        super().put_back(tensors)
        for name, tensor in self.optimizer.named.items():
            tensor.detach().copy_(tensors[name])


class StructuredLora(Rule[PhiState]):
    """K steps on each task in turn, nothing reset in between."""

    name = "structured-lora"
    label = "Structured LoRA"

    def init(self, theta: Adapter) -> PhiState:
        """One adapter in both roles; only its mean factors learn."""
        adapter = theta.clone()
        for tensor in adapter.mean_tensors():
            tensor.requires_grad_()
        return OneAdapterState(adapter, adapter, self.phi_optimizer(adapter))


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


class WithoutSteps:
    """A rule that takes no gradient step on an unseen task."""

    def num_batches(self, support: Support) -> int:
        """None is read."""
        return 0

    def adapt(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """Theta as it is."""
        return (theta.clone(),)


class Unchanged(WithoutSteps, StructuredLora):
    """Plain LoRA whose unseen tasks take no step."""


class Pretrained(Unchanged):
    """The pretrained model as it is: zero-shot."""

    name = "pretrained"
    label = "Pretrained"
    is_trained = False
