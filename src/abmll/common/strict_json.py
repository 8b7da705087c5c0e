"""JSON as it was meant: no key twice, no NaN or infinity, no nesting without end."""

import json
import math
from typing import Any

MAX_DEPTH = 64


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text (bytes: UTF-8, UTF-16 or UTF-32).

    Raises ``ValueError`` for what is no JSON, for an object with a key twice, for a number that is not finite, and for
    values more than 64 arrays and objects deep.
    """
    try:
        whole = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        value = _DECODER.decode(whole)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    if whole.count("[") + whole.count("{") > MAX_DEPTH:  # most texts have not
        _refuse_deep(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > 40:  # Python itself refuses only from 4,300 digits on
        raise ValueError(f"the number {text[:40]}... is too large")
    return int(text)


def _refuse_deep(value: Any) -> None:
    """Level by level, so that no depth can exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for outer in level for inner in outer]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


# Made once: making one takes longer than most texts do.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
)
