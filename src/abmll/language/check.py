"""Whether a model can be scored the way this project does it: all options of an example side by side.

That needs attention which keeps to the mask and positions it is given, and logits that follow from the last hidden
state as this project computes them. Convolutions and recurrences over neighbouring positions read one option into the
next, and some architectures scale their logits; such a model would answer, but wrongly. So every model is asked once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from abmll.common.errors import CheckpointError, ConfigError
from abmll.language.encoding import Encoded


def probe_example(model: PreTrainedModel) -> Encoded:
    """Two options of three tokens each behind a prompt of two, from all over the vocabulary; the last one is right."""
    size = model.config.get_text_config().vocab_size
    ids = [size * part // 10 for part in range(1, 9)]
    return Encoded(tuple(ids[:2]), (tuple(ids[2:5]), tuple(ids[5:])), 1)


@torch.no_grad()
def check_scoring(model: PreTrainedModel, name: str, score: Callable[[Sequence[Encoded]], Tensor]) -> None:
    """Compare ``score``, which gives the log-probability of each example's answer (N,), with the model's own forward.

    Raises ``ConfigError`` where the model cannot be called so, where an option's score depends on the one before it,
    or where it is another than that of prompt and option alone; ``CheckpointError`` where it is not a finite number.
    """
    example, kind = probe_example(model), type(model).__name__
    first, last = example.options
    alone_ids = torch.tensor([example.prompt + last], device=model.device)
    try:
        one, other = score([example, replace(example, options=(first[::-1], last))])
        logits = model(input_ids=alone_ids, use_cache=False).logits
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model: {name}: {kind} cannot score options side by side: {reason}") from error
    predicted = logits[0, len(example.prompt) - 1 : -1].float().log_softmax(-1)
    alone = predicted.gather(1, alone_ids[0, len(example.prompt) :, None]).sum()
    if not torch.isfinite(alone):
        raise CheckpointError(f"model: {name}: its probabilities are not numbers; the weights are damaged")
    # Rounding, as far as precision and kernels go.
    allowed = (2e-2 if model.dtype == torch.bfloat16 else 1e-3) * (1 + alone.abs())
    # Beside one neighbour or another the very same operations run: next to no rounding is left to allow for.
    if not ((one - alone).abs() <= allowed and (one - other).abs() <= allowed / 4):
        raise ConfigError(
            f"model: {name}: {kind} gives an option another probability beside others "
            f"({float(one):.4g}, {float(other):.4g}) than alone ({float(alone):.4g}); its architecture is not supported"
        )
