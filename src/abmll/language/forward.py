"""A pass of the frozen model over a batch: the last hidden states, and from them logits where options are scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from abmll.language.batch import Batch
from abmll.language.targets import decoder_blocks


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The hidden states (R, L, d) after the final norm, on the device of the batch."""
    additive = torch.full_like(batch.visible, torch.finfo(model.dtype).min, dtype=model.dtype)
    additive.masked_fill_(batch.visible, 0.0)
    output = model.base_model(
        input_ids=batch.input_ids,
        attention_mask=additive,
        position_ids=batch.position_ids,
        use_cache=False,
        **({} if batch.packing is None else {"packing": batch.packing}),
    )
    return output.last_hidden_state.to(batch.input_ids.device)


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (H, V) of the hidden states (H, d) that are scored; the model's own forward computes all positions'.

    Cohere multiplies its logits by a number, Granite divides them by one, Gemma 2 and 3 cap them.
    """
    config = model.config.get_text_config()
    head: Any = model.get_output_embeddings()
    values = head(hidden).to(hidden.device)
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    values = values if factor == 1.0 else values * factor
    cap = getattr(config, "final_logit_softcapping", None)
    return values if cap is None else torch.tanh(values / cap) * cap


@contextmanager
def collected(model: nn.Module, hidden: dict[int, Tensor]) -> Iterator[None]:
    """Inside, a pass fills ``hidden``: for each key its hidden states (R, L, d) behind so many decoder blocks."""
    device = next(model.parameters()).device

    def keep(depth: int, block: nn.Module, args: object, output: Any) -> None:
        hidden[depth] = (output[0] if isinstance(output, tuple) else output).to(device)

    blocks = decoder_blocks(model)
    handles = [blocks[depth - 1].register_forward_hook(partial(keep, depth)) for depth in hidden]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LastMLP:
    """Lets the last block's MLP compute the scored positions alone: nothing above it reads the others.

    The block's attention still needs every position's keys and values, so all of them pass through the rest of it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Hooks that do nothing until ``only`` says so; none where the last block has no module ``mlp``."""
        mlp = getattr(decoder_blocks(model)[-1], "mlp", None)
        self.rows: Tensor | None = None
        self.length = 0
        if isinstance(mlp, nn.Module):
            mlp.register_forward_pre_hook(self._choose)
            mlp.register_forward_hook(self._put_back)

    @contextmanager
    def only(self, rows: Tensor | None) -> Iterator[None]:
        """Inside, passes over one row (1, L, d) compute the positions ``rows`` (H,), and give zero elsewhere."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None

    def _choose(self, mlp: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.rows is None:
            return args
        hidden, *others = args
        self.length = hidden.shape[1]
        return (hidden.index_select(1, self.rows.to(hidden.device)), *others)

    def _put_back(self, mlp: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.rows is None:
            return output
        first, *others = output if isinstance(output, tuple) else (output,)
        whole = first.new_zeros(1, self.length, first.shape[-1]).index_copy(1, self.rows.to(first.device), first)
        return (whole, *others) if isinstance(output, tuple) else whole
