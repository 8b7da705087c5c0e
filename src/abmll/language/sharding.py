"""A frozen base in parts: each of several processes keeps a share of every decoder block, and a block is whole only
while it computes (FSDP2). Embeddings, the final norm and the head are whole in every process, as adapters are.

FSDP2 by itself needs processes whose passes are in step: each gathers a block when its own pass comes to it, and a
process with one pass less than the others makes them wait for ever. Here processes learn different tasks, find other
activations in their caches, and are asked different numbers of questions. So before a block is gathered all of them
say which one they need next, and gather these together, in the same order. Who needs none takes part in ``settle``.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_torch_greater_or_equal

from abmll.common.errors import ConfigError
from abmll.common.processes import PATIENCE, Processes, reachable
from abmll.language.targets import decoder_blocks

NONE = -1  # in the place of a block's number

T = TypeVar("T")


class Shards:
    """The agreement of all processes on which decoder blocks are gathered next."""

    def __init__(self, blocks: list[Any], mesh: DeviceMesh) -> None:
        """``blocks`` are those of one model, each of them sharded over the ``mesh``; all processes come here."""
        self.blocks = blocks
        # Of its own, and of the CPU: what is agreed on must not wait for what a GPU still computes.
        self.group: Any = distributed.new_group(
            distributed.get_process_group_ranks(mesh.get_group()), backend="gloo", timeout=PATIENCE
        )
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._before, index), prepend=True)
            block.register_forward_hook(partial(self._behind, index), prepend=True)

    def settle(self) -> None:
        """Help the other processes until none of them needs a block. All come here before they meet elsewhere."""
        while (wanted := self._agree(NONE)) != [NONE]:
            self._gather(wanted, NONE)

    def ask(self, index: int) -> None:
        """Make block ``index`` whole here, unless it is, and others for the processes that ask for them now."""
        if not _is_sharded(self.blocks[index]):  # it is being computed anew, within its backward pass
            return
        self._gather(self._agree(index), index)

    def _agree(self, index: int) -> list[int]:
        """The blocks that the processes need, each once, in order."""
        own = torch.tensor([index])
        every = [torch.empty_like(own) for _ in range(distributed.get_world_size(self.group))]
        with reachable():
            distributed.all_gather(every, own, group=self.group)
        return sorted({int(one) for one in every})

    def _gather(self, wanted: list[int], own: int) -> None:
        for index in wanted:
            if index == NONE:
                continue
            block = self.blocks[index]
            if not _is_sharded(block):  # left over from a backward pass: the others would gather it without us
                block.reshard()
            block.unshard()
            if index != own:
                block.reshard()

    def _before(self, index: int, block: nn.Module, args: object) -> None:
        self.ask(index)

    def _behind(self, index: int, block: nn.Module, args: object, output: object) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._before_gradients, index))

    def _before_gradients(self, index: int, gradient: Tensor) -> None:
        self.ask(index)


def open_mesh(device: torch.device) -> DeviceMesh:
    """All processes of the group that is open, on devices of that kind.

    With GPUs the group is that of "cpu:gloo,cuda:nccl". Raises ``ConfigError`` where there is none.
    """
    if not is_torch_greater_or_equal("2.6"):
        raise ConfigError("shard_base: needs torch 2.6 or newer; install it, or leave the setting out")
    if not distributed.is_available() or not distributed.is_initialized():
        raise ConfigError(
            "shard_base: needs processes that share the model; run: torchrun --nproc-per-node N -m -- abmll "
            "train, evaluate or adapt"
        )
    return init_device_mesh(device.type, (distributed.get_world_size(),))


def is_reader(mesh: DeviceMesh | None) -> bool:
    """Whether this process reads the weights from disk: the first one does, for all."""
    return mesh is None or mesh.get_rank() == 0


def skeleton(source: str | Path, dtype: torch.dtype, attention: str, cached: bool) -> PreTrainedModel:
    """The model in ``source`` without its weights, for a process that is sent them."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=cached)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def of_reader(mesh: DeviceMesh | None, find: Callable[[], T]) -> T:
    """What ``find`` gives to the process that reads the weights, in all processes; it is JSON-ready."""
    if mesh is None:
        return find()
    return Processes(mesh.get_rank(), mesh.size()).of_first(find() if is_reader(mesh) else None)


def share_out(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> Shards:
    """Send the weights from the process that has read them, block by block, of which each process keeps its share.

    ``model`` is a ``skeleton`` in the others. All is on ``device`` afterwards, and frozen.
    """
    from torch.distributed.fsdp import fully_shard

    blocks = list(decoder_blocks(model))
    paths = {module: f"{name}." for name, module in model.named_modules()}
    dtypes, tied = of_reader(mesh, lambda: _layout(model))
    for block in blocks:
        for name in [name for name in dtypes if name.startswith(paths[block])]:
            _receive(model, name, dtypes.pop(name), mesh, device)
        # Not the model around them: FSDP2 would gather blocks ahead of time then, which nobody has agreed to.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for name, dtype in dtypes.items():
        _receive(model, name, dtype, mesh, device)
    for name, first in tied.items():
        _put(model, name, _get(model, first))
    return Shards(blocks, mesh)


def _layout(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """The precision of every tensor of ``model`` by its name, and of those with several names the others."""
    first: dict[Tensor, str] = {}
    dtypes, tied = {}, {}
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in chain(*named):
        if tensor in first:
            tied[name] = first[tensor]
        else:
            first[tensor] = name
            dtypes[name] = str(tensor.dtype).removeprefix("torch.")
    return dtypes, tied


def _receive(model: nn.Module, name: str, dtype: str, mesh: DeviceMesh, device: torch.device) -> None:
    tensor = _get(model, name)
    if is_reader(mesh):
        value = tensor.detach().to(device)
    else:
        value = torch.empty(tensor.shape, dtype=getattr(torch, dtype), device=device)
    with reachable():
        distributed.broadcast(value, src=0, group=mesh.get_group())
    _put(model, name, nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value)


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)


def _is_sharded(block: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(next(block.parameters()), DTensor)
