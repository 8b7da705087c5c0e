"""``abmll predict``: answer questions, with probabilities and uncertainty."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.cli.console import count, cut_in_words, narrator, print_result
from abmll.common.config import ActivationCacheConfig, PlaceConfig, PredictConfig, WriteConfig

if TYPE_CHECKING:
    from abmll.model.prediction import Prediction


def predict(
    run_or_posterior: Path,
    *,
    input: Path,
    output: Path,
    settings: PredictConfig,
    text: str | None = None,
    column_mapping: tuple[str, ...] | None = None,
    review_below: float = 0.8,
    generate: bool = False,
    writing: WriteConfig,
    task_name: str | None = None,
    preset: str = "default",
    place: PlaceConfig,
    activations: ActivationCacheConfig,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Answer the questions of a file: probabilities, the predicted option and its label, and how much is in doubt.

    A task whose labels are known needs texts alone: then the output has all columns of the input and the answers.
    A posterior of a task whose answers are written writes them.

    Args:
        run_or_posterior: what 'abmll adapt' wrote, or a training run, as a folder or user/name on a model hub
            (of a run theta answers, not adapted)
        input: questions with their options, or a table of texts, or a split of a dataset (hf:NAME:SPLIT); answers are
            not needed
        output: file to write, by its ending JSON lines (.jsonl), a table (.csv, .tsv, .xlsx) or Parquet
        text: of a table of texts, the column that has them (default: guessed where only one can be meant)
        review_below: of a table of texts, the confidence below which an answer is for a person to look at
        generate: write answers with a training run too, or with what has learned to choose
        task_name: the task's name in the prompt (default: the one adapted to, else the file's)
        seed: seed of the posterior samples
    """
    from abmll.cli.answers import check_form, refuse_inputs, write_answers, write_table
    from abmll.cli.labelling import answer, check_confidence, refuse_taken
    from abmll.cli.loading import load_posterior
    from abmll.cli.places import check_file
    from abmll.cli.sources import Reading
    from abmll.cli.written_answers import learned_to_write, refuse_unread, write_file
    from abmll.experiments.few_shot import prediction_rows
    from abmll.language.activation_cache import disk_cache
    from abmll.model.hub import find_folder
    from abmll.tasks.columns import find_text, is_task_file, read_table
    from abmll.tasks.hub_name import task_name as name_of
    from abmll.tasks.mapping import parse_mapping
    from abmll.tasks.read import task_of

    check_file(output, overwrite)
    check_form(output)
    refuse_inputs(output, (input,))
    say = narrator(quiet)
    check_confidence(review_below)
    run_or_posterior = find_folder(run_or_posterior, announce=say)
    if generate or learned_to_write(run_or_posterior):
        refuse_unread(settings, "written, not chosen")
        how = Reading(parse_mapping(column_mapping), say, quiet, True)
        return write_file(run_or_posterior, input, output, writing, text, task_name, place, seed, how, json=json)
    refuse_unread(writing, "chosen, not written (add --generate to have them written)")
    table = read_table(input, parse_mapping(column_mapping), announce=say, quiet=quiet)
    if text is None and is_task_file(input, table):
        questions = task_of(table, input, name=task_name, require_answer=False, announce=say)
        posterior = load_posterior(run_or_posterior, task_name, questions.name, place, quiet)
        cache = disk_cache(posterior.scorer.base, posterior.scorer.lower_blocks, activations, say)
        prediction = posterior.predict(questions.examples, settings, seed=seed, cache=cache, quiet=quiet)
        write_answers(output, questions.examples, prediction_rows(posterior.task_name, questions.examples, prediction))
        chosen = zip(questions.examples, prediction.answers.tolist(), strict=True)
        right = [own == example.answer for example, own in chosen if example.answer is not None]
    else:
        of_texts = find_text(table, text)
        posterior = load_posterior(run_or_posterior, task_name, name_of(input), place, quiet)
        refuse_taken(table, posterior.labels)
        answers = answer(posterior, table, of_texts, None, review_below, say, quiet, settings, seed)
        write_table(output, answers.rows)
        prediction, right = answers.prediction, answers.right
    sampled = posterior.is_posterior and settings.predictive == "samples"
    samples = posterior.share(settings.num_samples) if sampled else 0
    if posterior.head is not None:
        samples = posterior.head.posterior.samples
    about = {"output": str(output), "samples": samples, "members": len(posterior.members)}
    summary = about | _summary(prediction, right)
    print_result(summary, _facts(summary), quiet, json)


def _summary(prediction: "Prediction", right: Sequence[bool]) -> dict[str, Any]:
    """Means over all questions, in nats; the accuracy over those whose answer the file has (None: it has none)."""
    return {
        "examples": len(prediction.probs),
        "truncated": prediction.truncated,
        "confidence": float(prediction.probs.amax(-1).mean()),
        "entropy": float(prediction.entropy.mean()),
        "mutual_information": float(prediction.mutual_information.mean()),
        "answered": len(right),
        "accuracy": sum(right) / len(right) if right else None,
    }


def _drawn(summary: Mapping[str, Any]) -> str:
    if summary["members"] > 1:
        samples = f"{count(summary['samples'], 'sample')} each" if summary["samples"] else "each at its mean"
        return f"{summary['members']:,} members, {samples}"
    return f"{summary['samples']:,} of the posterior" if summary["samples"] else "none, answered at the mean"


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "answers": summary["output"],
        "questions": f"{summary['examples']:,}",
        "samples": _drawn(summary),
        "confidence": f"{summary['confidence']:.3f} on average, the probability of the answer given",
        "entropy": f"{summary['entropy']:.3f} nats on average, all doubt",
    }
    if summary["samples"] or summary["members"] > 1:
        doubt = f"how far the {'posterior samples' if summary['samples'] else 'members'} disagree"
        facts["mutual information"] = f"{summary['mutual_information']:.3f} nats on average, {doubt}"
    if summary["accuracy"] is not None:
        known = "" if summary["answered"] == summary["examples"] else f", {summary['answered']:,} with a known answer"
        facts["accuracy"] = f"{summary['accuracy']:.3f}{known}"
    if summary["truncated"]:
        facts["truncated"] = cut_in_words(summary["truncated"], summary["examples"])
    return facts
