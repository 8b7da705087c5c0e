"""A row of a dataset becomes a question, as the collection's file says: templates, options, the right one.

A row that has no answer (a label of -1, a tie of annotators), or whose options are not distinct, is no question.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from abmll.common.errors import DataError, nearest
from abmll.common.strict_json import parse_json
from abmll.tasks.collection import Answer, Options, Recipe
from abmll.tasks.types import Example

_FIELD = re.compile(r"\{([^{}]+)\}")
_LETTER = re.compile(r"\(([A-Z])\)")
PAIR = ("sentence 1", "sentence 2")  # what the two texts of a ``pair`` are called


def example_of(recipe: Recipe, id: str, row: Mapping[str, Any]) -> Example | None:
    """The question of a row, without a side; None where the row is no question.

    Raises ``DataError`` that names the columns there are, for one that the row does not have.
    """
    values = dict(row)
    if recipe.answer.pair is not None:
        values |= _pair(recipe.answer.pair, row)
    options = _options(recipe.options, values)
    answer = _place(recipe.answer, values, options)
    if answer is None or not 0 <= answer < len(options):
        return None
    text = _text(recipe, values)
    if recipe.shuffle:
        right = options[answer]
        options = sorted(options, key=lambda option: _hash(text + option))
        answer = options.index(right)
    try:
        return Example(id, text, tuple(options), answer)
    except DataError:  # two options alike, one without text, or more than there may be
        return None


def columns_of(recipe: Recipe) -> set[str]:
    """The dataset's columns that a recipe reads."""
    options = recipe.options
    named = [path for path in _FIELD.findall(recipe.input) if recipe.answer.pair is None or path not in _NAMES]
    named += [] if isinstance(options, tuple) else [*(options.columns or ()), *_paths(options, "items scores lettered")]
    named += [*(recipe.answer.pair or ()), *_paths(recipe.answer, "index letter labels text majority rating scores")]
    return {path.split(".")[0] for path in named}


def value_at(row: Any, path: str) -> Any:
    """What stands at a path of keys and places: "choices.text", also where that is a list of {"text": ...}."""
    value, seen = row, ""
    for part in path.split("."):
        seen = f"{seen}.{part}" if seen else part
        if isinstance(value, Mapping):
            if part not in value:
                known = sorted(map(str, value))
                raise DataError(f"no column '{seen}'.{nearest(part, known)} There are: {', '.join(known)}")
            value = value[part]
        elif isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        elif isinstance(value, list):
            value = [value_at(one, part) for one in value]
        else:
            return None
    return value


_NAMES = ("first", "second")


def _paths(part: Options | Answer, names: str) -> list[str]:
    return [path for name in names.split() if (path := getattr(part, name)) is not None]


def _pair(columns: tuple[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
    """The two texts in the order of their hashes, which says nothing of which is right."""
    texts = [str(value_at(row, column)).strip() for column in columns]
    return dict(zip(_NAMES, sorted(texts, key=_hash), strict=True)) | {"": texts[0]}


def _text(recipe: Recipe, row: Mapping[str, Any]) -> str:
    """The question: the template with its columns' values in it, a list's joined by spaces."""
    options = recipe.options
    lettered = options.lettered if isinstance(options, Options) else None

    def filled(match: re.Match[str]) -> str:
        text = _shown(value_at(row, match[1]))
        return _LETTER.split(text)[0].strip() if match[1] == lettered else text

    return _FIELD.sub(filled, recipe.input).strip()


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return "" if value is None else str(value).strip()


def _options(options: tuple[str, ...] | Options, row: Mapping[str, Any]) -> list[str]:
    if isinstance(options, tuple):
        return list(options)
    if options.columns is not None:
        return [_shown(value_at(row, column)) for column in options.columns]
    if options.items is not None:
        return [_shown(one) for one in value_at(row, options.items) or []]
    if options.scores is not None:
        return [str(one).strip() for one in _scores(row, options.scores)]
    # "... (A) one or (B) two": what stands behind the letters
    parts = _LETTER.split(_shown(value_at(row, str(options.lettered))))[2::2]
    return [part.strip().removesuffix(" or").rstrip(" ,;") for part in parts]


def _place(answer: Answer, row: Mapping[str, Any], options: Sequence[str]) -> int | None:
    """The place of the right option, or None where the row does not say."""
    if answer.first:
        return 0
    if answer.pair is not None:
        return 0 if row[""] == row["first"] else 1
    if answer.index is not None:
        return _number(value_at(row, answer.index), answer.start)
    if answer.letter is not None:
        return _labelled(answer, row, len(options))
    if answer.text is not None:
        text = _shown(value_at(row, answer.text))
        return options.index(text) if text in options else None
    if answer.majority is not None:
        votes = Counter(value_at(row, answer.majority) or [])
        return next((_number(place, 0) for place, count in votes.items() if 2 * count > votes.total()), None)
    if answer.rating is not None:
        rating = value_at(row, answer.rating)
        return None if rating is None or answer.low <= rating <= answer.high else int(rating > answer.high)
    scores = list(_scores(row, str(answer.scores)).values())
    return scores.index(1) if sorted(scores) == [0] * (len(scores) - 1) + [1] else None


def _number(value: Any, start: int) -> int | None:
    """A place, counted from 0, of a number, its digits, or a bool; None for a negative one and for anything else."""
    if isinstance(value, str) and not value.strip().isdigit():
        return None
    place = None if value is None else int(value) - start
    return place if place is not None and place >= 0 else None


def _labelled(answer: Answer, row: Mapping[str, Any], number: int) -> int | None:
    labels = [chr(ord("A") + place) for place in range(number)]
    if answer.labels is not None:
        labels = [_shown(one) for one in value_at(row, answer.labels) or []]
    label = _shown(value_at(row, str(answer.letter)))
    return labels.index(label) if label in labels else None


def _scores(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The scores of the options; nothing where the column holds no such thing."""
    value = value_at(row, path)
    if isinstance(value, str):
        try:
            value = parse_json(value.encode())
        except ValueError:
            return {}
    # The library fills the keys of other rows with None.
    return {key: score for key, score in value.items() if score is not None} if isinstance(value, dict) else {}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
