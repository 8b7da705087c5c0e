"""``abmll predict``: answer questions, with probabilities and uncertainty."""

import json as json_lines
from pathlib import Path

from abmll.cli.output import narrator, print_json
from abmll.config import PlaceConfig, PredictConfig


def predict(
    run_or_posterior: Path,
    *,
    input: Path,
    output: Path,
    settings: PredictConfig,
    task_name: str | None = None,
    place: PlaceConfig,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Answer the questions of a file, one line of JSON each: id, probs, prediction, entropy, mutual_information.

    Args:
        run_or_posterior: folder that 'abmll adapt' wrote, or a training run (then theta answers, not adapted)
        input: questions with their options; answers are not needed
        output: JSON lines file to write
        task_name: the task's name in the prompt (default: the one adapted to, else the file's)
        seed: posterior samples
        overwrite: replace the output file
        quiet: no progress bar
        json: print JSON instead of a sentence
    """
    from abmll.cli.models import load_posterior, refuse_filled
    from abmll.evaluation import prediction_rows
    from abmll.files import write_text
    from abmll.tasks import load_task

    questions = load_task(input, name=task_name, require_answer=False)
    refuse_filled(output, overwrite)
    posterior = load_posterior(run_or_posterior, task_name or questions.name, place, quiet)
    prediction = posterior.predict(
        questions.examples,
        samples=settings.num_samples,
        noise=settings.prediction_noise,
        seed=seed,
        quiet=quiet,
    )
    rows = prediction_rows(posterior.task_name, questions.examples, prediction)
    write_text(output, "".join(json_lines.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if prediction.truncated:
        narrator(quiet)(f"{prediction.truncated} of {len(rows)} inputs were too long and lost their middle")
    if json:
        print_json({"examples": len(rows), "truncated": prediction.truncated, "output": str(output)})
    else:
        narrator(quiet)(f"answered {len(rows)} questions: {output}")
