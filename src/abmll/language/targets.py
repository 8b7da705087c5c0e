"""Which linear layers of a causal language model get an adapter: PEFT's words and matching rules."""

from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from abmll.common.errors import ConfigError, nearest

SHARES = {"third": 3, "half": 2}
FORMS = "'18-29', '0,5,7', 'top-12', 'top-third' or 'top-half'"


class Target(NamedTuple):
    """One layer to adapt: its name in the model, the index of its decoder block, and its shape."""

    name: str
    block: int
    d_out: int
    d_in: int


def blocks_path(model: nn.Module) -> str:
    """The name of the list of decoder blocks (``model.layers``, ``transformer.h``).

    That is the longest module list which lies in no other: the list of a block's experts may be longer still.
    """
    lists: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(outer + ".") for outer in lists):
            lists[name] = len(module)
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of decoder blocks; a causal language model is needed")
    return max(lists, key=lambda name: lists[name])


def find_targets(model: nn.Module, target_modules: tuple[str, ...], layers_to_transform: str | None) -> list[Target]:
    """All layers whose name ends in one of ``target_modules`` (or ``all-linear``), in the chosen decoder blocks.

    Raises ``ConfigError`` where a name matches nothing or a block does not exist.
    """
    path = blocks_path(model)
    linear = [
        Target(name, int(name[len(path) + 1 :].split(".")[0]), *shape)
        for name, module in model.named_modules()
        if name.startswith(path + ".") and (shape := _shape(module)) is not None
    ]
    blocks = model.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    wanted = parse_layers(layers_to_transform, len(blocks))
    if target_modules != ("all-linear",):
        _refuse_unmatched(target_modules, linear)
        linear = [target for target in linear if any(_matches(target.name, end) for end in target_modules)]
    chosen = [target for target in linear if target.block in wanted]
    if not chosen:
        raise ConfigError(
            f"layers_to_transform: {layers_to_transform}: none of target_modules {', '.join(target_modules)} lies there"
        )
    return chosen


def parse_layers(text: str | None, num_blocks: int) -> set[int]:
    """``None`` (all), ``"18-29"``, ``"0,5,7"``, ``"top-12"``, ``"top-third"`` or ``"top-half"`` as block indices.

    ``"top-12"`` of a model with fewer blocks means all of them. Raises ``ConfigError`` for another text or block.
    """
    if text is None:
        return set(range(num_blocks))
    try:
        count = num_top(text, num_blocks)
        spans = [_span(part) for part in text.split(",")] if count is None else [(num_blocks - count, num_blocks - 1)]
    except ValueError as error:
        raise ConfigError(f"layers_to_transform: '{text}' is not {FORMS}") from error
    if not all(0 <= first <= last < num_blocks for first, last in spans):
        raise ConfigError(f"layers_to_transform: '{text}': the model has decoder layers 0-{num_blocks - 1}")
    return {block for first, last in spans for block in range(first, last + 1)}


def num_top(text: str, num_blocks: int) -> int | None:
    """How many blocks ``"top-12"``, ``"top-third"`` or ``"top-half"`` means (at least one); None for another form.

    Raises ``ValueError`` for a malformed number.
    """
    if not text.startswith("top-"):
        return None
    share = text[len("top-") :]
    return max(1, round(num_blocks / SHARES[share])) if share in SHARES else min(int(share), num_blocks)


def _span(text: str) -> tuple[int, int]:
    """``"18-29"`` or ``"5"`` as its first and last block. Raises ``ValueError`` for anything else."""
    first, dash, last = text.partition("-")
    return int(first), int(last if dash else first)


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_out, d_in) of a linear layer, a quantised one included; None for anything else."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    out, into = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (out, into) if isinstance(out, int) and isinstance(into, int) else None


def _matches(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _refuse_unmatched(target_modules: tuple[str, ...], linear: list[Target]) -> None:
    known = sorted({target.name.rsplit(".", 1)[-1] for target in linear})
    for end in target_modules:
        if not any(_matches(target.name, end) for target in linear):
            hint = nearest(end, known)
            raise ConfigError(f"target_modules: '{end}' matches no layer.{hint} This model has {', '.join(known)}")
