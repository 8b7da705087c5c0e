"""``abmll export``: the posterior mean for other programs."""

from pathlib import Path
from typing import Literal

from abmll.cli.console import print_result
from abmll.common.config import PlaceConfig
from abmll.common.errors import ConfigError


def export(
    run_or_posterior: Path,
    *,
    format: Literal["peft", "merged", "lm-eval"],
    output_dir: Path,
    data: Path | None = None,
    place: PlaceConfig,
    member: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write the mean as a plain LoRA adapter that PEFT loads, or as a whole model with the update merged in.

    With a task for lm-evaluation-harness beside it the adapter is measured as any other model is.

    Args:
        run_or_posterior: what 'abmll adapt' wrote, or a training run, as a folder or user/name on a model hub
            (of a run theta is exported)
        format: 'peft' for an adapter, 'merged' for a model, 'lm-eval' for an adapter and a task for that program
        output_dir: folder to write to
        data: with lm-eval, the labelled rows to measure on: a task's file
        member: of an ensemble or a mixture the member to export, counted from 0 (default: the average of their updates)
        overwrite: replace an export of the same format in the output folder
    """
    from abmll.cli.loading import load_posterior
    from abmll.cli.places import check_folder
    from abmll.model.lm_eval_export import harness_name
    from abmll.tasks import load_task

    if (data is None) == (format == "lm-eval"):
        raise ConfigError(
            "data: the format lm-eval needs labelled rows, and no other takes any; give or leave out --data"
        )
    check_folder(output_dir, overwrite, f"{'merged' if format == 'merged' else 'peft'} export")
    examples = [] if data is None else load_task(data).examples
    posterior = load_posterior(run_or_posterior, None, "task", place, quiet)
    base = str(posterior.scorer.base.model.name_or_path)  # of the embedded model too its folder
    if Path(base).expanduser().resolve() == output_dir.resolve():
        raise ConfigError(f"{output_dir} is the folder of the language model itself; choose another place")
    if format == "lm-eval":
        lost = posterior.export_lm_eval(output_dir, examples, overwrite, member)
    else:
        write = posterior.export_peft if format == "peft" else posterior.export_merged
        lost = write(output_dir, overwrite, member)
    layers, members = len(posterior.scorer.shapes), len(posterior.members)
    what = f"LoRA adapter of {layers} layers" if format != "merged" else f"model with {layers} layers merged"
    if member is not None:
        what += f", member {member} of {members}"
    elif members > 1:
        what += f", the average of {members} members to within {100 * lost:.1g} %"
    result = {"format": format, "output_dir": str(output_dir), "base_model": base, "layers": layers}
    result |= {"members": members, "member": member}
    facts = {"export": str(output_dir), "what": what, "base model": base}
    if format == "lm-eval":
        task = f"{harness_name(posterior.task_name)}_calibrated"
        result |= {"task": task, "rows": len(examples)}
        facts["measure"] = (
            f"lm_eval --model hf --model_args pretrained={base},peft={output_dir} --tasks {task} "
            f"--include_path {output_dir}"
        )
    print_result(result, facts, quiet, json)
