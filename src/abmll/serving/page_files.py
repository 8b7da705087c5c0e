"""The page that a browser shows: the files of ``page/``, with headers under which it loads nothing from elsewhere.

A request names a file of a list that is made when this module is imported, or nothing: no path is ever made of it.
"""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
HEADERS = {
    # A figure behind a token is fetched by the page and shown from its memory: that is a ``blob:``.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again with its ETag: after an upgrade no old script meets a new page
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def page() -> FileResponse:
    """The page itself."""
    return file("index.html")


@router.api_route("/docs", methods=["GET", "HEAD"])
def interface() -> FileResponse:
    """What programs can ask, from the server's own description. FastAPI's page would load scripts from elsewhere."""
    return file("docs.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def file(name: str) -> FileResponse:
    """A file of the page. Raises ``HTTPException`` (404) for any other name."""
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(FILES[name], headers=HEADERS, media_type=TYPES[FILES[name].suffix])
