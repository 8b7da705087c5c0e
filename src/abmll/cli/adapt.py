"""``abmll adapt``: learn one new task from its examples."""

from pathlib import Path

from abmll.cli.output import narrator, print_json
from abmll.config import AdaptConfig, PlaceConfig


def adapt(
    run: Path,
    *,
    task: Path,
    output_dir: Path,
    settings: AdaptConfig,
    task_name: str | None = None,
    place: PlaceConfig,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Learn a new task from its labelled examples, starting from a training run's theta.

    Of a file whose examples carry a split only the training examples are used, of any other file all of them.

    Args:
        run: folder of a training run
        task: file with the task's labelled examples
        output_dir: folder to write the posterior to
        task_name: the task's name in the prompt (default: the file's)
        seed: order of the examples, and noise
        overwrite: replace what is in the output folder
        quiet: no progress bar
        json: print JSON instead of a sentence
    """
    from abmll.cli.models import load_run, refuse_filled
    from abmll.tasks import load_task

    loaded = load_task(task, name=task_name)
    refuse_filled(output_dir, overwrite)
    examples = loaded.train if loaded.examples[0].split else loaded.examples
    meta = load_run(run, place, quiet)
    posterior = meta.adapt(
        examples,
        task_name=loaded.name,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=seed,
        quiet=quiet,
    )
    posterior.save_pretrained(output_dir, overwrite)
    result = {"task": loaded.name, "examples": len(examples), "steps": settings.steps, "output_dir": str(output_dir)}
    if json:
        print_json(result)
    else:
        narrator(quiet)(f"learned '{loaded.name}' from {len(examples)} examples: {output_dir}")
