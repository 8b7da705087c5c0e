"""The head: a Bayesian classifier on the features of a frozen model (``posterior/head.py``), which no gradient teaches.

One forward pass over each example is all that a task costs. ``head`` reads the model as it was downloaded, with the
prior that comes with the package; ``meta-head`` learns the prior from the training tasks; ``abmll-head`` does so with
the features of ABMLL's theta, ``lora-head`` with those of regular LoRA's.
"""

from abmll.methods.lora import Pretrained, Unchanged
from abmll.posterior.tempering import TemperedHead


class Head(Pretrained):
    """Features of the pretrained model."""

    name = "head"
    label = "Head"
    classifier = TemperedHead


class MetaHead(Head):
    """The same; theta's part, the prior, is learned from the training tasks."""

    name = "meta-head"
    label = "Head, meta-learned"
    learns_head_prior = True


class AbmllHead(Unchanged):
    """Features of a theta that ABMLL has learned."""

    name = "abmll-head"
    label = "ABMLL with head"
    is_trained = False
    base_method = "abmll"
    classifier = TemperedHead
    learns_head_prior = True


class LoraHead(AbmllHead):
    """Features of a theta that regular LoRA has learned."""

    name = "lora-head"
    label = "Regular LoRA with head"
    base_method = "regular-lora"
