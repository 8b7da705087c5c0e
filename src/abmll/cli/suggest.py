"""``abmll suggest``: which rows to label next."""

from pathlib import Path

from abmll.cli.console import count, narrator, print_facts, print_json, print_table
from abmll.common.config import AUTO_THETA, PlaceConfig, TableConfig
from abmll.common.errors import ConfigError, DataError

WIDTH = 70  # of a text on the terminal


def suggest(
    labelled: Path,
    *,
    pool: Path | None = None,
    output: Path | None = None,
    number: int = 10,
    columns: TableConfig,
    column_mapping: tuple[str, ...] | None = None,
    theta: Path | None = Path(AUTO_THETA),
    task_name: str | None = None,
    place: PlaceConfig,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Name the rows whose label would teach most (expected information), those first that teach most.

    They are rows of the table that have no label yet, or those of another table.

    Args:
        labelled: table of rows with a text, some of them with a label, or a split of a dataset (hf:NAME:SPLIT)
        pool: table of the rows to choose from (default: the rows of the first table that have no label)
        output: table to write all of these rows to, in that order (default: none is written)
        number: how many to name
        task_name: the task's name in the prompt (default: the file's)
        seed: seed of the posterior's samples
    """
    from abmll.cli.answers import check_form, refuse_inputs, write_table
    from abmll.cli.labelling import learn, read_labelled, text_column
    from abmll.cli.loading import load_for_head
    from abmll.cli.places import check_file
    from abmll.experiments.html.figure import shorten
    from abmll.tasks import Example
    from abmll.tasks.columns import read_table
    from abmll.tasks.hub_name import task_name as name_of
    from abmll.tasks.mapping import parse_mapping

    if number < 1:
        raise ConfigError(f"number is {number}; it must be 1 or more")
    inputs = (labelled,) if pool is None else (labelled, pool)
    if output is not None:
        check_file(output, overwrite)
        check_form(output)
    refuse_inputs(output, inputs)
    say = narrator(quiet)
    table = read_table(labelled, parse_mapping(column_mapping), split="train", announce=say, quiet=quiet)
    task = read_labelled(table, columns, say)
    asked = task.table if pool is None else read_table(pool, announce=say, quiet=quiet)
    of_texts = task.columns.text if pool is None else text_column(asked, task, say)
    texts = asked.texts(of_texts)
    places = list(task.rows.unlabelled) if pool is None else [n for n, own in enumerate(texts) if own is not None]
    if not places:
        raise DataError(f"{asked.where}: no rows without a label to choose from; name a table of them with --pool")
    model = load_for_head(theta, place, quiet)
    posterior = learn(task, task.rows.examples(), model, task_name or name_of(labelled), seed, quiet)
    questions = [Example(str(n), texts[n] or "", task.rows.labels, None) for n in places]
    order = posterior.suggest(questions, quiet)
    if output is not None:
        write_table(output, [asked.rows[places[n]].values for n in order])
    chosen = [places[n] for n in order[:number]]
    if json:
        print_json([{"row": asked.rows[n].where, "text": texts[n]} for n in chosen])
    elif not quiet:
        print_table(["Row", "Text"], [[asked.rows[n].where, shorten(texts[n] or "", WIDTH)] for n in chosen])
        print_facts(
            {"chosen from": count(len(places), "row")} | ({} if output is None else {"all of them": str(output)})
        )
