"""The rows of a Parquet file, in memory that a few of them bound."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.common.errors import DataError
from abmll.tasks.file_limits import ANY_PARQUET, Unpacking, check_header, refuse_long

if TYPE_CHECKING:
    import pyarrow

BATCH = 32  # rows; a value that the file has once may stand in each of them


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, from 1, and its values by column.

    Raises ``DataError`` where pyarrow is missing, for a file that it cannot read, for one that unpacks to too much,
    and for a value that Python does not have, with its row and column: a text that is no UTF-8, a date of the year 0.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f'{path}: reading Parquet needs pyarrow; run: pip install "abmll[data]"') from error
    remedy = "where that is meant, take a part of it"
    number, claim, unpacking = 0, *(Unpacking(path, remedy, least=ANY_PARQUET) for _ in range(2))
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            about = file.metadata
            check_header(file.schema_arrow.names, str(path))
            refuse_long(about.num_rows, str(path))
            coded = [own.name for own in file.schema_arrow if pyarrow.types.is_dictionary(own.type)]
            for index in range(about.num_row_groups):
                claim.add(about.row_group(index).total_byte_size)
            for batch in file.iter_batches(batch_size=BATCH):
                whole = _written_out(batch, coded) if coded else batch
                unpacking.add(whole.nbytes)
                for values in _rows(whole, path, number):
                    number += 1
                    yield number, values
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _written_out(batch: "pyarrow.RecordBatch", coded: list[str]) -> "pyarrow.RecordBatch":
    """The batch with every value in its row also in ``coded`` columns, which say by numbers what stands where."""
    for name in coded:
        batch = batch.set_column(batch.schema.get_field_index(name), name, batch.column(name).dictionary_decode())
    return batch


def _rows(batch: "pyarrow.RecordBatch", path: Path, before: int) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for index, cell in enumerate(column, start=before + 1):
                _check(cell, f"{path}: row {index}: '{name}'")
        raise


def _check(cell: "pyarrow.Scalar", where: str) -> None:
    try:
        cell.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} holds a text that is not UTF-8; write the file again as UTF-8") from error
    except (ValueError, OverflowError) as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{where} holds a value that cannot be read ({problem}); correct it") from error
