"""``abmll tasks``: list, show, check and fetch tasks. Nothing here needs a language model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from abmll.cli.console import complain, count, narrator, one_line, print_json, print_result, print_table, print_text
from abmll.cli.sources import COLLECTION, Reading, choose, read_tasks
from abmll.common.config import PromptConfig
from abmll.common.errors import AbmllError, ConfigError, DataError

if TYPE_CHECKING:
    from abmll.tasks import Task


def ls(
    where: str | None = None,
    *,
    data_dir: Path | None = None,
    allow_missing: bool = False,
    column_mapping: tuple[str, ...] | None = None,
    generate: bool = False,
    json: bool = False,
) -> None:
    """List the tasks of a file, folder, collection or suite.

    Args:
        where: a file, a folder, hf:NAME, a fetched collection such as 'bigbench', or a suite (name or YAML file);
            without it, the suites and collections at hand
        allow_missing: leave out tasks of a suite that are not found
        generate: the outputs are texts to be written, not chosen, whatever the files' form
    """
    from abmll.tasks.mapping import parse_mapping

    how = Reading(parse_mapping(column_mapping), generate=generate)
    rows = _at_hand() if where is None else [_numbers(one) for one in read_tasks(where, how, data_dir, allow_missing)]
    if json:
        print_json(rows)
    elif where is None:
        for row in rows:
            print_text(f"{row['name']} ({row['kind']}): {row['description']}")
    else:
        print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def show(
    where: str,
    *,
    task: str | None = None,
    limit: int = 2,
    data_dir: Path | None = None,
    allow_missing: bool = False,
    column_mapping: tuple[str, ...] | None = None,
    generate: bool = False,
    prompt: PromptConfig,
    json: bool = False,
) -> None:
    """Show a task's numbers and its first examples as prompts, the right answer marked with '*'.

    Args:
        where: a file, a folder, hf:NAME, a fetched collection such as 'bigbench', one of its tasks, or a suite
        task: which one, where there are several
        limit: how many examples to show
        allow_missing: leave out tasks of a suite that are not found
        generate: the outputs are texts to be written, not chosen, whatever the file's form
    """
    from abmll.tasks import render
    from abmll.tasks.mapping import parse_mapping

    if limit < 0:
        raise ConfigError(f"limit must not be negative, but is {limit}")
    how = Reading(parse_mapping(column_mapping), generate=generate)
    chosen = choose(read_tasks(where, how, data_dir, allow_missing), task, where)
    shown = [(example, render(example, chosen.name, prompt)) for example in chosen.examples[:limit]]
    if json:
        examples = [
            {
                "id": example.id,
                "prompt": rendered.prefix + rendered.input + rendered.suffix,
                "continuations": list(rendered.continuations),
                "answer": example.answer,
            }
            for example, rendered in shown
        ]
        print_json({**_numbers(chosen), "examples": examples})
        return
    for name, value in _numbers(chosen).items():
        print_text(f"{name:10}{_cell(value)}")
    for example, rendered in shown:
        print_text(f"\n--- {one_line(example.id)}\n{rendered.prefix}{rendered.input}{rendered.suffix}")
        for index, continuation in enumerate(rendered.continuations):
            print(f"  {'*' if index == example.answer else ' '} {continuation!r}")


def validate(files: tuple[Path, ...], *, answers: bool = True, generate: bool = False, json: bool = False) -> int:
    """Check task files; every one is looked at, and the exit code is 2 if any cannot be used.

    Args:
        files: task files, or folders of them
        answers: every example must have its answer; with --no-answers a file of one task may lack them, as for
            'abmll predict'
        generate: the outputs are texts to be written, not chosen, whatever the files' form
    """
    results = [_validated(path, answers, generate) for path in files]
    if json:
        print_json(results)
    for result in results:
        if result["error"]:
            complain(f"error: {result['error']}")
        elif not json:
            print_text(
                f"{result['file']}: ok, {count(result['tasks'], 'task')}, {count(result['examples'], 'example')}"
            )
    return 2 if any(result["error"] for result in results) else 0


def fetch(
    collection: Literal["bigbench", "chembench", "crossfit", "legalbench", "unifiedqa", "winogrande"],
    *,
    archive: Path | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Download a task collection into the cache and convert it; a second call finds it there.

    Args:
        collection: 'bigbench': the multiple-choice tasks of BIG-bench 1.0.0 (358 MB to download); the others from the
            Hugging Face hub, dataset by dataset, with the licence of each: 'crossfit' (classification, for cls-45, nli
            and para), 'unifiedqa' (multiple choice, for mcqa and cls-23), 'winogrande', 'legalbench', 'chembench'
        archive: use what was downloaded by other means, instead of the network: this source archive, or for the
            others a folder with copies of the datasets' repositories as OWNER/NAME
    """
    say = narrator(quiet)
    if collection == COLLECTION:
        from abmll.tasks.bigbench import fetch_bigbench

        folder = fetch_bigbench(say, quiet=quiet, sdist=archive)
    else:
        from abmll.tasks.fetching import fetch_collection

        folder = fetch_collection(collection, say, quiet=quiet, source=archive)
    tasks = len(list(folder.glob("*.jsonl")))
    result = {"collection": collection, "folder": str(folder), "tasks": tasks}
    print_result(result, {"collection": f"{collection}, {count(tasks, 'task')}", "folder": str(folder)}, quiet, json)


def check_leaks(
    training: str,
    evaluation: str | None = None,
    *,
    data_dir: Path | None = None,
    allow_missing: bool = False,
    json: bool = False,
) -> None:
    """Refuse an overlap of training and evaluation tasks: names, families, or examples.

    Args:
        training: a suite; or, with EVALUATION, the training tasks (file, folder, collection)
        evaluation: the evaluation tasks (file, folder, collection)
        data_dir: folder in which the tasks of a suite, given without EVALUATION, are looked up
        allow_missing: leave out tasks of a suite that are not found
    """
    from abmll.tasks import check_leaks as find_leaks
    from abmll.tasks import load_suite

    if evaluation is None:
        suite = load_suite(training, data_dir, allow_missing=allow_missing)
        sides: tuple[Sequence[Task], Sequence[Task]] = suite.train, suite.evaluation
    elif data_dir is not None:
        raise ConfigError("data_dir: is for a suite without EVALUATION; name the folder itself")
    else:
        how: Any = {"allow_missing": allow_missing}
        sides = read_tasks(training, **how), read_tasks(evaluation, **how)
    findings = find_leaks(*sides)
    counts = f"{count(len(sides[0]), 'training task')} and {count(len(sides[1]), 'evaluation task')}"
    if json:
        print_json({"train": len(sides[0]), "evaluation": len(sides[1]), "leaks": findings})
    elif not findings:
        print(f"no leaks: {counts}")
    else:
        print_text("\n".join(map(one_line, findings)))
    if findings:
        found = count(len(findings), "leak")
        raise DataError(f"{found} between {counts}; leave the tasks named above out of one side")


def _at_hand() -> list[dict[str, Any]]:
    """The shipped suites, and each collection with whether it is in the cache."""
    from abmll.tasks.collection import collection_folders
    from abmll.tasks.definition import read_suite, shipped_suites

    descriptions = {name: " ".join(read_suite(f"suite:{name}").description.split()) for name in shipped_suites()}
    rows = [{"name": name, "kind": "suite", "description": text} for name, text in descriptions.items()]
    for name, folder in collection_folders().items():
        is_here = folder.is_dir()
        state = f"{count(len(list(folder.glob('*.jsonl'))), 'task')} in {folder}" if is_here else "not fetched yet"
        rows.append({"name": name, "kind": "collection", "description": state})
    return rows


def _numbers(task: "Task") -> dict[str, Any]:
    """A task in numbers; "constant" is the accuracy of always giving the commonest answer text.

    A task whose answers are written has 0 options.
    """
    sizes = sorted({len(example.asked) for example in task.examples})
    answers = Counter(example.options[example.answer] for example in task.examples if example.answer is not None)
    return {
        "name": task.name,
        "family": task.family,
        "train": len(task.train),
        "test": len(task.test),
        "options": sizes,
        "constant": max(answers.values()) / answers.total() if answers else None,
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return str(value[0]) if value[0] == value[-1] else f"{value[0]}-{value[-1]}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _validated(path: Path, answers: bool, generate: bool) -> dict[str, Any]:
    from abmll.tasks import load_task, load_tasks

    try:
        if answers:
            tasks = load_tasks(path, generate=generate)
        else:
            tasks = [load_task(path, require_answer=False, generate=generate)]
    except AbmllError as error:
        return {"file": str(path), "tasks": 0, "examples": 0, "error": str(error)}
    return {"file": str(path), "tasks": len(tasks), "examples": sum(len(t.examples) for t in tasks), "error": None}
