"""Monte Carlo dropout (Gal and Ghahramani, arXiv 1506.02142): LoRA fitted under dropout, and sampled with it.

Dropout is on the adapter's input. In fitting every token has a mask of its own where ``noise`` is local, as in PEFT's
``lora_dropout``; at prediction a sample is one mask for all tokens and questions (``prediction_noise`` shared), that
is, one set of weights.
"""

from typing import ClassVar

import torch

from abmll.language.batch import Batch
from abmll.language.scorer import Pass
from abmll.methods.lora import StructuredLora
from abmll.methods.loss import Loss
from abmll.methods.rule import State, likelihood, read_loss
from abmll.posterior import Noise


class McDropout(StructuredLora):
    """Steps on one task's examples from the theta of regular LoRA, each under dropout."""

    name: ClassVar[str] = "mc-dropout"
    label: ClassVar[str] = "MC dropout"
    is_posterior: ClassVar[bool] = True
    is_trained: ClassVar[bool] = False
    base_method: ClassVar[str | None] = "regular-lora"
    settings_read: ClassVar[tuple[str, ...]] = ("dropout_rate",)
    space: ClassVar[str | None] = "dropout"

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL under one draw of the masks."""
        noise = Noise(self.config.noise, generator, batch.mask, self.config.noise_rank)
        nll, scores = likelihood(self.scorer, self.config, state.phi, batch, Pass(noise))
        zero = torch.zeros_like(nll)
        return read_loss(nll, zero, zero, scores, batch)
