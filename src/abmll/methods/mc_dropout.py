"""Monte Carlo dropout (Gal and Ghahramani, arXiv 1506.02142): LoRA fitted under dropout, and sampled with it.

Dropout is on the adapter's input. In fitting every token has a mask of its own where ``noise`` is local, as in PEFT's
``lora_dropout``; at prediction a sample is one mask for all tokens and questions (``prediction_noise`` shared), that
is, one set of weights.
"""

import torch

from abmll.language.batch import Batch
from abmll.methods.lora import StructuredLora
from abmll.methods.loss import Loss
from abmll.methods.rule import PhiState


class McDropout(StructuredLora):
    """Steps on one task's examples from the theta of regular LoRA, each under dropout."""

    name = "mc-dropout"
    label = "MC dropout"
    is_posterior = True
    is_trained = False
    base_method = "regular-lora"
    settings_read = ("dropout_rate",)
    space = "dropout"

    def inner_loss(self, state: PhiState, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL under one draw of the masks."""
        return self.likelihood(state.phi, batch, self.sampled(batch, generator))
