"""Examples out of what a program has at hand: a table, dicts, pairs of text and label, or texts alone.

    a DataFrame, dicts    a column ``text`` or ``input``, and ``label`` or ``output``; or those that are named. With a
                          column ``options`` every row has its own, as in a file (``abmll.tasks.fields``)
    pairs                 (text, label)
    texts                 a list, an array or a Series, where the labels are known already

A label is taken as its text, whatever its type. Tables are known by what they can do: nothing here needs pandas.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from abmll.common.errors import DataError, nearest
from abmll.tasks.fields import example_of, text_of
from abmll.tasks.rows import Row
from abmll.tasks.types import MAX_OPTIONS, Example

TEXT, LABEL = ("text", "input"), ("label", "output")  # names of columns, the preferred one first
FORMS = "Examples, dicts, (text, label) pairs or texts"
Data = Iterable[Any]  # of these; a DataFrame too, although what it iterates over are its columns


class Entry(NamedTuple):
    """A text with the text of its label; None where it has none."""

    where: str
    text: str
    label: str | None


def examples_of(
    data: Data,
    known: Sequence[str] = (),
    *,
    text: str | None = None,
    label: str | None = None,
    require_answer: bool = False,
    name: str = "examples",
) -> list[Example]:
    """The examples that ``data`` describes, in its order; Examples stay as they are.

    Args:
        known: the labels, in the order that the options shall have. Without them they are the distinct ones of the
            data, sorted, where an answer is required; else every row must have options of its own.
        text, label: columns of these names, instead of the usual ones.
        require_answer: refuse a row without a label; otherwise its answer is None.
        name: what messages call the data.

    Raises:
        DataError: what is wrong with which row (``examples[3]``, counted from 0), and what to do.
    """
    rows = listed(data, name)
    form = _form(rows, name)
    if form in ("", "an Example"):
        return rows
    columns = _Columns.of(rows, text, label, name) if form == "a dict" else None
    if columns is not None and columns.has_options:
        return [columns.example(row, number, require_answer, name) for number, row in enumerate(rows)]
    entries = _entries(rows, form, columns, name)
    if require_answer:
        _refuse_unlabelled(entries, columns, name)
    elif not known:
        raise DataError(f"{name}: nothing says what the labels are; give Examples, or dicts with 'options'")
    options = tuple(known) or _distinct_labels(entries, name)
    return [_example(entry, number, options) for number, entry in enumerate(entries)]


def pairs_of(
    data: Data, *, text: str | None = None, label: str | None = None, name: str = "examples"
) -> list[tuple[str, str]]:
    """Each text of ``data`` with its label, for what knows the other labels itself: one alone is enough here.

    Arguments are those of ``examples_of``. Raises ``DataError`` as it does, and for a row without a label.
    """
    rows = listed(data, name)
    form = _form(rows, name)
    columns = _Columns.of(rows, text, label, name) if form == "a dict" else None
    if form == "an Example" or (columns is not None and columns.has_options):
        examples = examples_of(rows, text=text, label=label, require_answer=True, name=name)
        answers = [None if one.answer is None else one.options[one.answer].strip() for one in examples]
        entries = [Entry(f"{name}[{n}]", examples[n].input, answer) for n, answer in enumerate(answers)]
        columns = None
    else:
        entries = _entries(rows, form, columns, name)
    _refuse_unlabelled(entries, columns, name)
    return [(entry.text, entry.label) for entry in entries if entry.label is not None]


def texts_of(data: Data, name: str = "X") -> list[str]:
    """The texts of a list, an array or a Series, or of the only column of a table or a two-dimensional array.

    Raises ``DataError`` for a row that has no text, or more than one.
    """
    texts = []
    for number, row in enumerate(listed(data, name)):
        cells = list(row.values()) if isinstance(row, Mapping) else row
        if not isinstance(cells, list | tuple):
            cells = [cells]
        if len(cells) != 1:
            raise DataError(f"{name}[{number}]: has {len(cells)} columns; give the one that holds the texts")
        texts.append(_text(cells[0], f"{name}[{number}]"))
    return texts


def listed(data: Data, name: str) -> list[Any]:
    """The rows of ``data``, those of a table as dicts. Raises ``DataError`` for what has no rows."""
    table: Any = data
    if isinstance(data, str | bytes | Mapping | Example):
        raise DataError(f"{name}: is one {type(data).__name__}; give a list, of {FORMS}")
    if hasattr(data, "to_dicts"):  # Polars
        return table.to_dicts()
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas
        return table.to_dict("records")
    for method in ("to_list", "tolist"):  # a Series, an array
        if hasattr(data, method):
            data = getattr(data, method)()
            break
    if not isinstance(data, Iterable):
        raise DataError(f"{name}: is {_described(data)}; give a list, of {FORMS}")
    return list(data)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or pandas' NaT or NA, which does not even say whether it equals itself."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and value != value


def label_text(value: Any, where: str) -> str:
    """A label as text. Raises ``DataError`` for an empty one, and for several at once."""
    if isinstance(value, Mapping | list | tuple | set) or getattr(value, "shape", ()):
        raise DataError(f"{where}: its label is {_described(value)}; give one text or number")
    label = str(value).strip()
    if not label:
        raise DataError(f"{where}: its label is empty; give every label a text")
    return label


class _Columns(NamedTuple):
    """The columns of a table; ``label`` is None where it has none."""

    text: str
    label: str | None
    names: tuple[str, ...]
    has_options: bool

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], text: str | None, label: str | None, name: str) -> "_Columns":
        names = tuple(dict.fromkeys(str(key) for row in rows for key in row))
        for given in (text, label):
            if given is not None and given not in names:
                raise DataError(f"{name}: no column '{given}'.{nearest(given, names)} There are {', '.join(names)}")
        found = [next((one for one in usual if one in names), None) for usual in (TEXT, LABEL)]
        column = text or found[0]
        if column is None:
            raise DataError(f"{name}: no column 'text' or 'input'; name it with text=..., of {', '.join(names)}")
        return cls(column, label or found[1], names, "options" in names)

    def pair(self, row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
        """Text and label of a row."""
        if self.text not in row:
            raise DataError(f"{where}: no key '{self.text}', which other rows have; add it")
        return row[self.text], None if self.label is None else row.get(self.label)

    def example(self, row: Mapping[str, Any], number: int, require_answer: bool, name: str) -> Example:
        """The example of a row with options of its own, of which the label is one, or its index."""
        where = f"{name}[{number}]"
        text, label = self.pair(row, where)
        values = {"input": text, "answer": row.get("answer")}
        if "options" in row:
            values["options"] = listed(row["options"], f"{where}: 'options'")
        if not is_missing(label):
            is_index = isinstance(label, Integral) and not isinstance(label, bool)
            values["answer"] = int(label) if is_index else label_text(label, where)
        return example_of(Row(where, values), str(number), (), require_answer, cells_are_text=False)


def _form(rows: Sequence[Any], name: str) -> str:
    """What the rows are, all of them alike; "" where there is none."""
    form = ""
    for number, row in enumerate(rows):
        own = _form_of(row, f"{name}[{number}]")
        if form and own != form:
            raise DataError(f"{name}[{number}]: is {own}, but {name}[0] is {form}; give all rows the same form")
        form = own
    return form


def _form_of(row: Any, where: str) -> str:
    if isinstance(row, Example):
        return "an Example"
    if isinstance(row, Mapping):
        return "a dict"
    if isinstance(row, list | tuple) and len(row) == 2:
        return "a pair"
    if isinstance(row, str):
        return "a text"
    raise DataError(f"{where}: is {_described(row)}; give {FORMS}")


def _entries(rows: Sequence[Any], form: str, columns: _Columns | None, name: str) -> list[Entry]:
    """The rows of a form that has no options of its own."""
    pairs: Iterable[tuple[Any, Any]] = ((row, None) for row in rows)
    if columns is not None:
        pairs = (columns.pair(row, f"{name}[{number}]") for number, row in enumerate(rows))
    elif form == "a pair":
        pairs = rows
    return [_entry(*pair, f"{name}[{number}]") for number, pair in enumerate(pairs)]


def _entry(text: Any, label: Any, where: str) -> Entry:
    return Entry(where, _text(text, where), None if is_missing(label) else label_text(label, where))


def _text(value: Any, where: str) -> str:
    if is_missing(value):
        raise DataError(f"{where}: its text is missing ({value}); give one, or leave the row out")
    text = str(text_of(Row(where, {"text": value}), "text"))  # of NumPy's own kind of text as well
    if not text.strip():
        raise DataError(f"{where}: its text is empty; give one, or leave the row out")
    return text


def _refuse_unlabelled(entries: Sequence[Entry], columns: _Columns | None, name: str) -> None:
    """Raise ``DataError`` for a row without a label, or where no row has one."""
    unlabelled = next((entry for entry in entries if entry.label is None), None)
    if columns is not None and columns.label is None:
        raise DataError(f"{name}: no column 'label' or 'output'; name it with label=..., of {', '.join(columns.names)}")
    if unlabelled is not None:
        raise DataError(f"{unlabelled.where}: has no label to learn from; give one, or leave the row out")


def _distinct_labels(entries: Sequence[Entry], name: str) -> tuple[str, ...]:
    labels = sorted({entry.label for entry in entries if entry.label is not None})
    if len(labels) == 1:
        raise DataError(f"{name}: all have the label {labels[0]!r}; there must be at least 2")
    if len(labels) > MAX_OPTIONS:
        raise DataError(f"{name}: {len(labels)} distinct labels; at most {MAX_OPTIONS} are possible")
    return tuple(labels)


def _example(entry: Entry, number: int, options: tuple[str, ...]) -> Example:
    """Its options are those."""
    if entry.label is None:
        return Example(str(number), entry.text, options, None)
    places = [option.strip() for option in options]
    if entry.label not in places:
        raise DataError(
            f"{entry.where}: the label {entry.label[:60]!r} is none of {', '.join(places)}; correct it, or learn anew"
        )
    return Example(str(number), entry.text, options, places.index(entry.label))


def _described(value: Any) -> str:
    """A value and its type, in short."""
    return f"{str(value)[:40]!r} ({type(value).__name__})"
