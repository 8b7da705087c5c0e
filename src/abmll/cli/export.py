"""``abmll export``: what was learned for other programs."""

from pathlib import Path
from typing import Literal

from abmll.cli.console import print_result
from abmll.common.config import PlaceConfig
from abmll.common.errors import ConfigError


def export(
    run_or_posterior: Path,
    *,
    format: Literal["peft", "merged", "lm-eval", "vllm-ensemble"],
    output_dir: Path,
    data: Path | None = None,
    place: PlaceConfig,
    member: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write the mean as a plain LoRA adapter that PEFT loads, or as a whole model with the update merged in.

    With a task for lm-evaluation-harness beside it the adapter is measured as any other model is. An ensemble for vLLM
    has an adapter for every member, or samples of one, and a client that averages their calibrated answers.

    Args:
        run_or_posterior: what 'abmll adapt' wrote, or a training run, as a folder or user/name on a model hub
            (of a run theta is exported)
        format: 'peft' for an adapter, 'merged' for a model, 'lm-eval' for an adapter and a task for that program,
            'vllm-ensemble' for adapters of one vLLM server and a client
        output_dir: folder to write to
        data: with lm-eval, the labelled rows to measure on: a task's file
        member: of an ensemble or a mixture the member to export, counted from 0 (default: the average of their updates)
        samples: with vllm-ensemble, samples of the weights of a posterior with one member, or of --member (default: 4;
            0: its mean)
        seed: of those samples
        overwrite: replace an export of the same format in the output folder
    """
    from abmll.cli.loading import load_posterior
    from abmll.cli.places import check_folder
    from abmll.model.export_notes import HEADED
    from abmll.model.lm_eval_export import harness_name
    from abmll.model.vllm_ensemble import serve_command
    from abmll.tasks import load_task

    if (data is None) == (format == "lm-eval"):
        raise ConfigError(
            "data: the format lm-eval needs labelled rows, and no other takes any; give or leave out --data"
        )
    if samples is not None and format != "vllm-ensemble":
        raise ConfigError("samples: only the format vllm-ensemble has any; leave out --samples")
    check_folder(output_dir, overwrite, f"{'peft' if format == 'lm-eval' else format} export")
    examples = [] if data is None else load_task(data).examples
    posterior = load_posterior(run_or_posterior, None, "task", place, quiet)
    if posterior.is_written and format in ("lm-eval", "vllm-ensemble"):
        raise ConfigError(
            f"format: the answers of this task are written, not chosen; {format} asks for labels: use peft"
        )
    base = str(posterior.scorer.base.model.name_or_path)  # of the embedded model too its folder
    if Path(base).expanduser().resolve() == output_dir.resolve():
        raise ConfigError(f"{output_dir} is the folder of the language model itself; choose another place")
    layers, members = len(posterior.scorer.shapes), len(posterior.members)
    result = {"format": format, "output_dir": str(output_dir), "base_model": base, "layers": layers}
    result |= {"members": members, "member": member}
    facts = {"export": str(output_dir), "what": "", "base model": base}
    if format == "vllm-ensemble":
        ensemble = posterior.export_vllm_ensemble(output_dir, overwrite, member, samples, seed)
        count = len(ensemble.adapters)
        facts["what"] = f"{count} LoRA adapter{'s' * (count > 1)} of rank {ensemble.rank}: {ensemble.what}"
        facts["serve"] = serve_command(ensemble, base, output_dir)
        facts["ask"] = f'python {output_dir / "client.py"} --url http://127.0.0.1:8000 "a text"'
        result |= {"adapters": count, "rank": ensemble.rank, "seed": ensemble.seed, "serve": facts["serve"]}
        return print_result(result, facts, quiet, json)
    if format == "lm-eval":
        lost = posterior.export_lm_eval(output_dir, examples, overwrite, member)
    else:
        write = posterior.export_peft if format == "peft" else posterior.export_merged
        lost = write(output_dir, overwrite, member)
    what = f"LoRA adapter of {layers} layers" if format != "merged" else f"model with {layers} layers merged"
    if member is not None:
        what += f", member {member} of {members}"
    elif members > 1:
        what += f", the average of {members} members to within {100 * lost:.1g} %"
    facts["what"] = what
    if posterior.head is not None:
        result["head"] = str(output_dir / HEADED)
        facts["head"] = f"not in the adapter, but in {output_dir / HEADED}, for 'abmll predict' alone"
    if format == "lm-eval":
        task = f"{harness_name(posterior.task_name)}_calibrated"
        result |= {"task": task, "rows": len(examples)}
        facts["measure"] = (
            f"lm_eval --model hf --model_args pretrained={base},peft={output_dir} --tasks {task} "
            f"--include_path {output_dir}"
        )
    print_result(result, facts, quiet, json)
