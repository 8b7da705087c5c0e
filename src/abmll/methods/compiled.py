"""A step's loss as one compiled graph: the model's pass with its noise, the likelihood, the divergence.

Its gradient is a second graph, which torch makes of the first. The noise is a function of a key, which the step's
generator draws. So a step is a function of the seed as ever, but its numbers are others than those of a plain one.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.filled import filled
from abmll.language.scorer import OptionScorer, Pass
from abmll.methods.loss import Loss
from abmll.posterior import Factors, Noise, WeightSpace
from abmll.posterior.counted import counted_layers
from abmll.posterior.counter import new_key

if TYPE_CHECKING:
    from abmll.methods.rule import Rule

WRITTEN = "compile: only steps on options are compiled, and the answers of these tasks are written; leave it out"
# The first is a step's loss, the others are what a graph makes it of: they must come from one class to agree.
PARTS = "inner_loss", "noise", "with_terms"


def compiled_loss(rule: "Rule[Any]", phi: Adapter, theta: Adapter, batch: Batch, generator: torch.Generator) -> Loss:
    """The rule's ``inner_loss`` of one part of a batch, by the scorer's compilation; theta is a constant.

    Raises ``ConfigError`` for answers that are written.
    """
    if batch.is_written:
        raise ConfigError(WRITTEN)
    compilation, noise, key = rule.scorer.compilation, rule.noise(None, generator), new_key(generator)
    assert compilation is not None
    how = None if noise is None else (noise.kind, noise.rank)
    constant = {shape: Factors(*(tensor.detach() for tensor in stack)) for shape, stack in theta.stacks.items()}
    whole = filled(batch)
    _keep_gradient(phi)
    found = compilation.call(step_terms, rule, phi, Adapter(constant, theta.layers), whole, how, key)
    rule.scorer.passes.add(whole.input_ids.numel())
    # Copies, as a CUDA graph writes what it finds next time to the same memory (``Compilation``).
    total, nll, kl, prior, correct, options = (tensor.clone() for tensor in found)
    options = options[:, : batch.option_lengths.shape[1]]
    return Loss(total, nll, kl, prior, correct, len(batch.answers), batch.num_tokens, options=options)


def _keep_gradient(phi: Adapter) -> None:
    """Copy the gradient that the parts before left: torch took it as it was, and the next pass writes to its memory."""
    for _, tensor in phi.named_tensors():
        if tensor.grad is not None:
            tensor.grad = tensor.grad.clone()


def step_terms(
    rule: "Rule[Any]",
    phi: Adapter,
    theta: Adapter,
    batch: Batch,
    noise: tuple[Literal["local", "shared"], int] | None,
    key: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is compiled: the first five fields of ``Loss`` and its options. ``noise`` is its kind and rank."""
    scorer, stacks = rule.scorer, list(phi.stacks.values())
    if noise is None:
        each = [scorer.space.layers(stack, None) for stack in stacks]
    else:
        count, length = batch.input_ids.shape
        each = counted_layers(stacks, scorer.space.scaling, *noise, (count, length), key)
    names = [name for own in phi.layers.values() for name in own]
    updates = dict(zip(names, [update for own in each for update in own], strict=True))
    loss = rule.with_terms(rule.read(scorer.scores(batch, None, Pass(updates=updates)), batch), phi, theta)
    assert loss.options is not None
    return loss.total, loss.nll, loss.kl, loss.prior, loss.correct, loss.options


def refuse_uncompiled(rule: "Rule[Any]") -> None:
    """Raise ``ConfigError`` for a rule whose steps are not those of ``compiled_loss``, and for what was not tried."""
    scorer = rule.scorer
    sources = {_source(rule, part) for part in PARTS}
    if len(sources) > 1 or _source(rule, "inner_step") is not _source(rule, "step_loss"):
        raise ConfigError(f"compile: {rule.name} takes steps of its own, which are not compiled; leave it out")
    noise = rule.noise(None, torch.Generator(scorer.device))
    if noise is not None and not _has_counted_noise(scorer, noise):
        raise ConfigError(
            "compile: noise is compiled in the space 'weight' alone, with sigma_rank 1, sigma_floor 0 and a noise_rank "
            "above 0; use these, or leave it out"
        )
    for setting, is_there in _kept_elsewhere(scorer).items():
        if is_there:
            raise ConfigError(f"compile: excludes {setting}; leave one of them out")


def _has_counted_noise(scorer: OptionScorer, noise: Noise) -> bool:
    return isinstance(scorer.space, WeightSpace) and scorer.space.has_low_rank_samples(noise)


def _kept_elsewhere(scorer: OptionScorer) -> dict[str, bool]:
    """What changes how a frozen layer computes or what is kept of it, by its setting's name."""
    base = scorer.base
    return {
        "gradient_checkpointing": scorer.gradient_checkpointing,
        "shard_base": base.shards is not None,
        base.quantization or "a quantised model": getattr(base.model, "quantization_method", None) is not None,
        "device_map": hasattr(base.model, "hf_device_map"),
    }


def _source(rule: "Rule[Any]", name: str) -> type:
    """The class that says what the rule's function of that name does."""
    return next(kind for kind in type(rule).__mro__ if name in vars(kind))
