"""How many passes a model has made, and how many tokens it has read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass
class Passes:
    """Counts that only grow. Those inside of a compiled graph, which tells nobody, are added by whoever calls it."""

    forward: int = 0
    gradient: int = 0  # of the forward passes, those that a gradient is taken of
    tokens: int = 0  # padding included

    def watch(self, model: PreTrainedModel) -> None:
        """Count the passes of ``model`` from now on."""
        model.base_model.register_forward_pre_hook(self._see, with_kwargs=True)

    def add(self, tokens: int) -> None:
        """One pass that reads so many tokens."""
        self.forward += 1
        self.gradient += torch.is_grad_enabled()
        self.tokens += tokens

    def _see(self, module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            read = keywords.get("input_ids", inputs[0] if inputs else None)  # ours are keywords; others may come too
            self.add(0 if read is None else read.numel())
