"""``abmll estimate``: what a model would cost on a device that is not at hand."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abmll.cli.console import in_words, print_facts, print_json, print_table
from abmll.common.config import EstimateConfig

if TYPE_CHECKING:
    from abmll.experiments.costs import Estimate, Gpu, Shape


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
    print_table(["", *(one.method for one in estimates)], _rows(estimates, gpu))


def _facts(shape: "Shape", settings: EstimateConfig, gpu: "Gpu", peak: float) -> dict[str, str]:
    batch = f"{settings.per_device_train_batch_size} x {settings.sequence_length} tokens"
    lowest = len(shape.blocks) - len(shape.read_back)
    where = f", a gradient through blocks {lowest}-{len(shape.blocks) - 1}" if lowest else ""
    return {
        "model": f"{shape.name}, {shape.parameters:,} parameters in {settings.dtype}",
        "adapters": f"r = {settings.r} on {len(shape.adapted)} layers ({','.join(settings.target_modules)}){where}",
        "batch": f"{batch}, {settings.option_tokens} scored an example, {settings.attention} attention",
        "episode": f"K = {settings.inner_steps} steps on phi, then one on theta where the method has it",
        "device": f"{gpu.name}, {_gigabytes(gpu.memory)} GB",
        "speed": f"{peak / 1e12:,.0f} TFLOP/s at an efficiency of {settings.efficiency:g}",
    }


def _rows(estimates: "Sequence[Estimate]", gpu: "Gpu") -> list[list[str]]:
    def row(title: str, value: Callable[["Estimate"], Any], show: Callable[[Any], str]) -> list[str]:
        values = [value(one) for one in estimates]
        return [title, *("\N{EN DASH}" if known is None else show(known) for known in values)]

    def fits(total: int) -> str:
        return "yes" if total <= gpu.memory else "no"

    return [
        row("adapter parameters, M", lambda one: one.adapter_parameters, lambda number: f"{number / 1e6:,.2f}"),
        row("weights, GB", lambda one: one.memory.weights, _gigabytes),
        row("adapters, GB", lambda one: one.memory.adapters, _gigabytes),
        row("optimizer, GB", lambda one: one.memory.optimizer, _gigabytes),
        row("gradients, GB", lambda one: one.memory.gradients, _gigabytes),
        row("activations, GB", lambda one: one.memory.activations, _gigabytes),
        row("logits, GB", lambda one: one.memory.logits, _gigabytes),
        row("total, GB", lambda one: one.memory.total, _gigabytes),
        row("fits", lambda one: one.memory.total, fits),
        row("largest batch that fits", lambda one: one.largest_batch, "{:,}".format),
        row("TFLOP a step", lambda one: one.step_flops, _tera),
        row("TFLOP an episode", lambda one: one.episode_flops, _tera),
        row("time of a step", lambda one: one.step_seconds, _duration),
        row("time of an episode", lambda one: one.episode_seconds, _duration),
        row("checkpointed: activations, GB", lambda one: one.checkpointed and one.checkpointed.activations, _gigabytes),
        row("checkpointed: total, GB", lambda one: one.checkpointed and one.checkpointed.total, _gigabytes),
        row("checkpointed: fits", lambda one: one.checkpointed and one.checkpointed.total, fits),
        row("checkpointed: largest batch", lambda one: one.checkpointed_largest_batch, "{:,}".format),
        row("checkpointed: TFLOP a step", lambda one: one.checkpointed_step_flops, _tera),
    ]


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


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.2f}"


def _tera(number: int) -> str:
    return f"{number / 1e12:,.2f}"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 1 else in_words(seconds)
