"""What an earlier summary knows and a new one cannot: the statistics of methods whose predictions are not kept.

The bootstrap's draws are of tasks and examples alone (``abmll.experiments.bootstrap``): a method's intervals are the same
whatever else is resampled beside it, and so are its differences from the reference. They hold as long as its own
numbers, and those of the reference, are what they were.
"""

from collections.abc import Mapping
from pathlib import Path

from abmll.experiments.cells import Document, load_json


def read_earlier(path: Path, form: str, suite: str) -> Document:
    """The summary in that file; empty where there is none of this ``form`` and ``suite``.

    Raises ``CheckpointError`` for a damaged one.
    """
    if not path.exists():
        return {}
    document = load_json(path, "delete it, and it is made again of the cells")
    is_wanted = isinstance(document, dict) and (document.get("format"), document.get("suite")) == (form, suite)
    return document if is_wanted else {}


def known_statistics(earlier: Document, rows: Mapping[str, Document], key: str, reference: str) -> Document:
    """The earlier statistics of the row ``key``: nothing if its numbers have changed, no differences if others have."""
    if not _same(earlier, rows, key):
        return {}
    known = earlier["methods"][key]["statistics"]
    if earlier["reference"] == reference and _same(earlier, rows, reference):
        return known
    return {name: value for name, value in known.items() if name != "differences"}


def _same(earlier: Document, rows: Mapping[str, Document], key: str) -> bool:
    before, now = earlier.get("methods", {}).get(key), rows.get(key)
    return before is not None and now is not None and all(before[part] == now[part] for part in ("tasks", "pooled"))
