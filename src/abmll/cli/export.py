"""``abmll export``: the posterior mean for other programs."""

from pathlib import Path
from typing import Literal

from abmll.cli.console import print_result
from abmll.common.config import PlaceConfig
from abmll.common.errors import ConfigError


def export(
    run_or_posterior: Path,
    *,
    format: Literal["peft", "merged"],
    output_dir: Path,
    place: PlaceConfig,
    member: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write the mean as a plain LoRA adapter that PEFT loads, or as a whole model with the update merged in.

    Args:
        run_or_posterior: what 'abmll adapt' wrote, or a training run, as a folder or user/name on a model hub
            (of a run theta is exported)
        format: 'peft' for an adapter, 'merged' for a model
        output_dir: folder to write to
        member: of an ensemble or a mixture the member to export, counted from 0 (default: the average of their updates)
        overwrite: replace an export of the same format in the output folder
    """
    from abmll.cli.loading import load_posterior
    from abmll.cli.places import check_folder

    check_folder(output_dir, overwrite, f"{format} export")
    posterior = load_posterior(run_or_posterior, None, "task", place, quiet)
    base = str(posterior.scorer.base.model.name_or_path)  # of the embedded model too its folder
    if Path(base).expanduser().resolve() == output_dir.resolve():
        raise ConfigError(f"{output_dir} is the folder of the language model itself; choose another place")
    write = posterior.export_peft if format == "peft" else posterior.export_merged
    lost = write(output_dir, overwrite, member)
    layers, members = len(posterior.scorer.shapes), len(posterior.members)
    what = f"LoRA adapter of {layers} layers" if format == "peft" else f"model with {layers} layers merged"
    if member is not None:
        what += f", member {member} of {members}"
    elif members > 1:
        what += f", the average of {members} members to within {100 * lost:.1g} %"
    result = {"format": format, "output_dir": str(output_dir), "base_model": base, "layers": layers}
    result |= {"members": members, "member": member}
    print_result(result, {"export": str(output_dir), "what": what, "base model": base}, quiet, json)
