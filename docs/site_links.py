"""A hook of mkdocs.yml: what the pages say of files beside docs/ becomes a link to the repository.

On GitHub ``[results/](../results)`` leads to the folder; the site has none, and links to it where it lies.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/abmll/abmll"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with every link that leaves docs/ turned into an address; one to nothing stays, and is warned of."""

    def address(found: re.Match[str]) -> str:
        target, _, anchor = found[1].partition("#")
        path = (ROOT / "docs" / page.file.src_uri).parent.joinpath(target).resolve()
        inside = path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT) or not path.exists()
        if inside:
            return found[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\((\.\./[^)\s]+)\)", address, markdown)
