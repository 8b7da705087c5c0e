"""A file of answers, in the form that its suffix names."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.common.documents import write_json_lines
from abmll.common.errors import ConfigError
from abmll.common.files import atomic_file, write_text

if TYPE_CHECKING:
    from abmll.tasks import Example

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def check_form(path: Path) -> None:
    """Raise ``ConfigError`` where the suffix names no form of answers, or one whose package is missing."""
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(
            f'{path}: Parquet needs pyarrow; run: pip install "abmll[data]", or name a .jsonl, .csv or .tsv file'
        )
    if path.suffix == ".xlsx" and (find_spec("pandas") is None or find_spec("openpyxl") is None):
        raise ConfigError(
            f'{path}: Excel needs pandas and openpyxl; run: pip install "abmll[excel]", '
            "or name a .csv, .tsv or .jsonl file"
        )
    if path.suffix not in (".jsonl", ".parquet", ".xlsx", *SEPARATORS):
        raise ConfigError(
            f"{path}: answers are written as .jsonl, .csv, .tsv, .parquet or .xlsx; name a file that ends so"
        )


def refuse_inputs(output: Path | None, inputs: Sequence[Path]) -> None:
    """Raise ``ConfigError`` where the output is one of the files that are read."""
    for path in inputs:
        if output is not None and output.exists() and path.exists() and output.samefile(path):
            raise ConfigError(f"{output}: is read by this command; name another file to write")
    if [str(path) for path in inputs].count("-") > 1:
        raise ConfigError("-: standard input can be one table only; name a file for the other")


def write_answers(path: Path, examples: "Sequence[Example]", rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of ``prediction_rows``, each with its answer's text as "label", whole or not at all.

    JSON lines and Parquet keep "probs" as a list in the order of the options. A table has a column ``prob_<label>``
    for every option where all questions have the same ones, or else "probs" as JSON by option.
    """
    labelled = [_labelled(example, row) for example, row in zip(examples, rows, strict=True)]
    if path.suffix in (*SEPARATORS, ".xlsx"):
        alike = {frozenset(example.options) for example in examples}
        labels = examples[0].options if len(alike) == 1 else None
        labelled = [_flat(example, row, labels) for example, row in zip(examples, labelled, strict=True)]
    write_table(path, labelled)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of plain values in the form that the suffix names, whole or not at all."""
    if path.suffix == ".jsonl":
        write_json_lines(path, rows)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        with atomic_file(path) as file:
            parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    elif path.suffix == ".xlsx":
        import pandas

        from abmll.experiments.sheets import harmless

        plain = [{harmless(key): harmless(value) for key, value in row.items()} for row in rows]
        with atomic_file(path) as file:
            pandas.DataFrame(plain).to_excel(file, index=False, engine="openpyxl")
    else:
        from abmll.experiments.sheets import csv_text

        write_text(path, csv_text(rows, SEPARATORS[path.suffix]))


def _labelled(example: "Example", row: dict[str, Any]) -> dict[str, Any]:
    """The row with the predicted option's text right after its index."""
    first = {key: row[key] for key in ("task", "id", "probs", "prediction")}
    return first | {"label": example.options[row["prediction"]]} | row


def _flat(example: "Example", row: dict[str, Any], labels: Sequence[str] | None) -> dict[str, Any]:
    """The row of a table: plain values only."""
    probs = dict(zip(example.options, row["probs"], strict=True))
    if labels is None:
        return row | {"probs": json.dumps(probs, ensure_ascii=False)}
    first = {key: row[key] for key in ("task", "id", "prediction", "label")}
    columns = {f"prob_{label}": probs[label] for label in labels}
    return first | columns | {key: value for key, value in row.items() if key != "probs"}
