"""Which decoder blocks get adapters, chosen by what each of them does to the training tasks' prompts.

A block whose output points elsewhere than its input does much of the work; one that hands its input on nearly
unchanged has little to adapt. The change of a block is 1 - cos(input, output) of its hidden states, averaged over the
tokens of some training prompts (the block similarity of ShortGPT, arXiv 2403.03853, there used to drop blocks).

The blocks chosen are usually spread over the whole depth, the first one among them. The lowest adapted block then lies
low, and little or nothing is left below it that a lower_blocks cache could keep or a backward pass could leave out: a choice
by depth ("top-12") is the faster one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abmll.common.config import AdapterConfig, PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.common.progress import progress
from abmll.language.base import Base
from abmll.language.encoding import Encoder
from abmll.language.targets import blocks_path, parse_layers
from abmll.tasks import Task
from abmll.tasks.order import permutation

NUM_PROMPTS = 32


def choose_layers(
    base: Base,
    adapter: AdapterConfig,
    prompt: PromptConfig,
    tasks: Sequence[Task],
    *,
    announce: Callable[[str], None] = lambda line: None,
    quiet: bool = True,
) -> AdapterConfig:
    """``adapter`` with its layers as explicit numbers, where they are to be chosen by similarity; else as it is.

    The choice depends on the model and the training examples of ``tasks`` alone, not on a run's seed, so that runs
    with different seeds or methods adapt the same layers. Layers that are numbers already stay.
    Raises ``ConfigError`` where nothing says how many to choose, ``DataError`` without training examples.
    """
    if not _is_open(adapter):
        return adapter
    if adapter.layers_to_transform is None:
        raise ConfigError(
            "layer_selection: 'similarity' needs a number of layers to choose; set layers_to_transform to 'top-12', "
            "'top-third' or 'top-half'"
        )
    num_blocks = len(_blocks(base.model))
    count = len(parse_layers(adapter.layers_to_transform, num_blocks))
    change = block_changes(base.model, training_prompts(base, prompt, tasks), quiet=quiet)
    chosen = most_changing(change, count)
    layers = ",".join(map(str, chosen))
    announce(f"adapting layers {layers} of 0-{num_blocks - 1}: those that change their input most")
    return replace(adapter, layers_to_transform=layers)


def refuse_open_choice(adapter: AdapterConfig) -> None:
    """Raise ``ConfigError`` where layers are to be chosen by similarity and have not been."""
    if _is_open(adapter):
        raise ConfigError(
            f"layer_selection: the layers '{adapter.layers_to_transform}' are not chosen yet; choose_layers does it, "
            "or AbmllModel.from_base where it is given the training tasks"
        )


def _is_open(adapter: AdapterConfig) -> bool:
    """Whether similarity has to say which layers are meant; numbers say it themselves."""
    wanted = adapter.layers_to_transform
    return adapter.layer_selection == "similarity" and (wanted is None or wanted.startswith("top"))


def most_changing(change: Sequence[float], count: int) -> list[int]:
    """The ``count`` blocks of greatest change in the model's order; of equals the upper one, which is cheaper."""
    ranked = sorted(range(len(change)), key=lambda block: (change[block], block), reverse=True)
    return sorted(ranked[:count])


def training_prompts(
    base: Base, prompt: PromptConfig, tasks: Sequence[Task], limit: int = NUM_PROMPTS
) -> list[tuple[int, ...]]:
    """The tokens of up to ``limit`` training prompts, one of each task in turn. DataError where there are none."""
    encoder = Encoder(base.tokenizer, prompt, base.context)
    orders = {
        task.name: [task.train[index] for index in permutation(len(task.train), 0, "layer selection", task.name)]
        for task in sorted(tasks, key=lambda task: task.name)
    }
    deepest = max(map(len, orders.values()), default=0)
    turns = [(name, order[turn]) for turn in range(deepest) for name, order in orders.items() if turn < len(order)]
    if not turns:
        raise DataError("layer_selection: 'similarity' needs training tasks with examples, to choose the layers by")
    return [encoder.encode(example, name).prompt for name, example in turns[:limit]]


@torch.no_grad()
def block_changes(model: nn.Module, prompts: Sequence[Sequence[int]], *, quiet: bool = True) -> list[float]:
    """The mean of 1 - cos(input, output) over all tokens of ``prompts``, for every decoder block (0 to 2).

    Prompts are read one by one: none needs padding.
    """
    base: Any = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    with _recorded(_blocks(model)) as changes, progress(prompts, "choosing layers", "prompt", quiet=quiet) as bar:
        for tokens in bar:
            base(input_ids=torch.tensor([list(tokens)], device=device), use_cache=False)
    return [float(torch.cat(each).mean()) for each in changes]


@contextmanager
def _recorded(blocks: nn.ModuleList) -> Iterator[list[list[Tensor]]]:
    """Inside, every pass of the model adds each block's change per token, (N * T,) in float64."""
    changes: list[list[Tensor]] = [[] for _ in blocks]

    def record(index: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            before = args[0] if args else keywords["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            similarity = F.cosine_similarity(before.double(), after.double(), dim=-1)
            changes[index].append(1 - similarity.flatten().cpu())

        return hook

    handles = [block.register_forward_hook(record(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        yield changes
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: nn.Module) -> nn.ModuleList:
    blocks = model.get_submodule(blocks_path(model))
    assert isinstance(blocks, nn.ModuleList)
    return blocks
