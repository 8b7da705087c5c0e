"""``abmll export``: the posterior mean for other programs."""

from pathlib import Path
from typing import Literal

from abmll.cli.output import narrator
from abmll.config import PlaceConfig


def export(
    run_or_posterior: Path,
    *,
    format: Literal["peft", "merged"],
    output_dir: Path,
    place: PlaceConfig,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Write the mean as a plain LoRA adapter that PEFT loads, or as a whole model with the update merged in.

    Args:
        run_or_posterior: folder that 'abmll adapt' wrote, or a training run (then theta is exported)
        format: 'peft' for an adapter, 'merged' for a model
        output_dir: folder to write to
        overwrite: replace what is in the output folder
        quiet: say nothing
    """
    from abmll.cli.models import load_posterior, refuse_filled

    refuse_filled(output_dir, overwrite)
    posterior = load_posterior(run_or_posterior, None, place, quiet)
    write = posterior.export_peft if format == "peft" else posterior.export_merged
    write(output_dir, overwrite)
    narrator(quiet)(f"wrote the {format} export: {output_dir}")
