"""``abmll estimate``: what a model would cost on a device that is not at hand."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abmll.cli.console import in_words, print_facts, print_json, print_table
from abmll.common.config import EstimateConfig

if TYPE_CHECKING:
    from abmll.experiments.costs import Estimate, Gpu, Shape

PARTS = ("weights", "adapters", "optimizer", "gradients", "activations", "logits", "total")  # of the memory


def estimate(*, settings: EstimateConfig, quiet: bool = False, json: bool = False) -> None:
    """Memory, operations and time of a gradient step and of an episode, from the model's shape alone.

    ABMLL beside plain LoRA (PEFT and Trainer), the published algorithm and second-order MAML, all at the same batch.
    Nothing is downloaded and no weights are made. Bytes are those of tensors: add what the driver and the allocator
    take (about 1 GB on a GPU). GB are 10^9 bytes.

    Args:
        quiet: the table alone
        json: print JSON instead of a table, in bytes, operations and seconds
    """
    from abmll.experiments.costs import estimate_all, find_gpu, load_shape

    gpu = find_gpu(settings.gpu)
    shape = load_shape(settings.model_config, settings.target_modules, settings.layers_to_transform)
    peak = gpu.peak[settings.dtype] if settings.peak_tflops is None else settings.peak_tflops * 1e12
    estimates = estimate_all(shape, settings, gpu, peak * settings.efficiency)
    if json:
        print_json(_document(shape, settings, gpu, peak, estimates))
        return
    if not quiet:
        print_facts(_facts(shape, settings, gpu, peak))
        print()
    columns = [_column(one, gpu) for one in estimates]
    rows = [[title, *(column.get(title, "\N{EN DASH}") for column in columns)] for title in columns[0]]
    print_table(["", *(one.method for one in estimates)], rows)


def _facts(shape: "Shape", settings: EstimateConfig, gpu: "Gpu", peak: float) -> dict[str, str]:
    batch = f"{settings.per_device_train_batch_size} x {settings.sequence_length} tokens"
    lowest = len(shape.blocks) - len(shape.read_back)
    where = f", a gradient through blocks {lowest}-{len(shape.blocks) - 1}" if lowest else ""
    return {
        "model": f"{shape.name}, {shape.parameters:,} parameters in {settings.dtype}",
        "adapters": f"r = {settings.r} on {len(shape.adapted)} layers ({','.join(settings.target_modules)}){where}",
        "batch": f"{batch}, {settings.option_tokens} scored an example, {settings.attention} attention",
        "episode": f"K = {settings.inner_steps} steps on phi, then one on theta where the method has it",
        "device": f"{gpu.name}, {gpu.memory / 1e9:,.2f} GB",
        "speed": f"{peak / 1e12:,.0f} TFLOP/s at an efficiency of {settings.efficiency:g}",
    }


def _column(one: "Estimate", gpu: "Gpu") -> dict[str, str]:
    """A method's column of the table; without gradient checkpointing, where the method cannot do it."""
    column = {"adapter parameters, M": f"{one.adapter_parameters / 1e6:,.2f}"}
    column |= {f"{part}, GB": f"{getattr(one.memory, part) / 1e9:,.2f}" for part in PARTS}
    column |= {
        "fits": "yes" if one.memory.total <= gpu.memory else "no",
        "largest batch that fits": f"{one.largest_batch:,}",
        "TFLOP a step": f"{one.step_flops / 1e12:,.2f}",
        "TFLOP an episode": f"{one.episode_flops / 1e12:,.2f}",
        "time of a step": _duration(one.step_seconds),
        "time of an episode": _duration(one.episode_seconds),
    }
    if one.checkpointed is not None and one.checkpointed_step_flops is not None:
        column |= {
            "checkpointed: activations, GB": f"{one.checkpointed.activations / 1e9:,.2f}",
            "checkpointed: total, GB": f"{one.checkpointed.total / 1e9:,.2f}",
            "checkpointed: fits": "yes" if one.checkpointed.total <= gpu.memory else "no",
            "checkpointed: largest batch": f"{one.checkpointed_largest_batch:,}",
            "checkpointed: TFLOP a step": f"{one.checkpointed_step_flops / 1e12:,.2f}",
        }
    return column


def _document(
    shape: "Shape", settings: EstimateConfig, gpu: "Gpu", peak: float, estimates: "Sequence[Estimate]"
) -> dict[str, Any]:
    methods = []
    for one in estimates:
        document = asdict(one)
        for name, memory in (("memory", one.memory), ("checkpointed", one.checkpointed)):
            if memory is not None:
                document[name] |= {"total": memory.total, "fits": memory.total <= gpu.memory}
        methods.append(document)
    return {
        "settings": asdict(settings),
        "model": {"parameters": shape.parameters, "blocks": len(shape.blocks), "adapted_layers": len(shape.adapted)},
        "device": {"name": gpu.name, "memory": gpu.memory, "peak": peak},
        "methods": methods,
    }


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 1 else in_words(seconds)
