"""A frozen base whose layers lie on several devices of one process, placed by accelerate.

accelerate's hooks bring the inputs of a layer to where its weights are, and weights that lie in the computer's memory
to a GPU. Batches and adapters stay on the device of the first layer, and what adapters add is computed there.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from abmll.common.errors import ConfigError


def refuse_unplaceable(device: torch.device) -> None:
    """Raise ``ConfigError`` where nothing can be spread: without accelerate or a GPU, or over others' GPUs."""
    if (count := int(os.environ.get("LOCAL_WORLD_SIZE") or 1)) > 1:
        raise ConfigError(
            f"device_map: each of the {count} processes of this computer would spread the model over the same GPUs; "
            "start one process, or use shard_base"
        )
    if find_spec("accelerate") is None:
        raise ConfigError('device_map: needs accelerate; run: pip install "abmll[quantized]"')
    if device.type != "cuda":
        raise ConfigError("device_map: there is no GPU to spread the model over; leave it out")


def device_map_of(model: PreTrainedModel, how: str) -> dict[str, Any]:
    """The device of every part of ``model``, which lies on the CPU, by accelerate's rule ``how``.

    What fits on no GPU stays on the CPU. Raises ``ConfigError`` where it would be on disk, where no gradient finds it.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = {"dtype": model.dtype, "no_split_module_classes": list(model._no_split_modules or [])}
    memory = None if how == "sequential" else get_balanced_memory(model, **whole)
    found = dict(infer_auto_device_map(model, max_memory=memory, **whole))
    if "disk" in found.values():
        raise ConfigError(
            "device_map: the model does not fit into the memory of the GPUs and the computer together; quantise it"
        )
    return found


def spread(model: PreTrainedModel, places: Mapping[str, Any], folder: Path | None = None) -> None:
    """Put the parts of ``model`` where ``places`` says; ``folder`` takes those that are to lie on disk."""
    from accelerate import dispatch_model

    skipped = list(model._skip_keys_device_placement or [])
    dispatch_model(model, dict(places), offload_dir=folder, skip_keys=skipped)


def kept_elsewhere(model: PreTrainedModel) -> list[object]:
    """What accelerate's hooks hold of weights that lie elsewhere than they compute: twins must share it."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    every = [one for hook in hooks for one in (hook, *getattr(hook, "hooks", ()))]
    held = [getattr(hook, name, None) for hook in every for name in ("weights_map", "tied_params_map")]
    return [one for one in held if one is not None]


@contextmanager
def at_hand(layer: nn.Module) -> Iterator[Tensor]:
    """The weight of a layer as it is, also where it lies elsewhere than it computes: then inside of the block alone."""
    if not layer.get_parameter("weight").is_meta:
        yield layer.get_parameter("weight")
        return
    from accelerate.utils import align_module_device

    with align_module_device(layer):
        yield layer.get_parameter("weight")
