"""``abmll serve``: learn and answer tasks for others, over HTTP and on a page."""

import os
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from abmll.cli.console import narrator
from abmll.common.config import AUTO_THETA, PlaceConfig
from abmll.common.errors import ConfigError
from abmll.serving.limits import ServeConfig

HEAPS = 4
# Products that torch's libraries for them keep by shape: oneDNN, and the layer above it. Their own number is 1,024
# each, which come to more than a gigabyte. Every batch has a shape of its own: only those of a pass are met again.
SHAPES = 64
KEPT_SHAPES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def serve(
    theta: Path | None = Path(AUTO_THETA),
    *,
    store: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    database: str | None = None,
    files: str | None = None,
    allowed_hosts: tuple[str, ...] | None = None,
    allowed_origins: tuple[str, ...] | None = None,
    limits: ServeConfig,
    place: PlaceConfig,
    quiet: bool = False,
) -> None:
    """Serve many tasks over one language model: learn them from examples, answer, and show a page to teach them on.

    The page is at the server's address, the interface is described at /docs.

    Args:
        store: folder in which tasks, examples and what was learned of them are kept; it is made
        host: address to listen on; any other than this computer's own needs a token file
        port: port to listen on (0: any that is free)
        token_file: file of lines 'TENANT TOKEN'; each tenant has tasks of its own
        database: SQLAlchemy address of a database that several servers share (default: SQLite in the store)
        files: fsspec address of the posteriors that several servers share (default: a folder in the store)
        allowed_hosts: names under which the server may be asked, such as those of a proxy in front of it
        allowed_origins: sites whose pages may ask (default: none but its own)
    """
    missing = [name for name in ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ConfigError(f'serve: needs {", ".join(missing)}; run: pip install "abmll[serve]"')
    from abmll.common.allocator import keep_freed_memory
    from abmll.common.locks import sole_writer
    from abmll.serving.access import read_tokens, refuse_open
    from abmll.serving.database import file_of
    from abmll.serving.hosts import listen_at
    from abmll.serving.objects import Objects

    if not 0 <= port < 65536:
        raise ConfigError(f"port is {port}; use a whole number from 0 to 65535")
    refuse_open(host, token_file is not None)
    tokens = None if token_file is None else read_tokens(token_file)
    say = narrator(quiet)
    keep_freed_memory(HEAPS)  # of threads that come and go, each could have one
    for variable in KEPT_SHAPES:
        os.environ.setdefault(variable, str(SHAPES))
    store.mkdir(parents=True, exist_ok=True)
    url = database or f"sqlite:///{store / 'store.sqlite'}"
    file, objects = file_of(url), Objects(files or str(store / "posteriors"))
    with ExitStack() as held:
        if file is not None:  # with another database several servers may share all of it
            for own in (store, file, *([Path(objects.root)] if objects.is_local else [])):
                held.enter_context(sole_writer(own))
        listening = held.enter_context(listen_at(host, port))
        # Torch is seconds to import: what can be refused without it has been refused by now.
        from abmll.cli.loading import load_for_serving
        from abmll.serving.running import run

        run(
            partial(load_for_serving, theta, place, quiet),
            url,
            objects.place,
            limits,
            listening,
            host,
            tokens,
            allowed_hosts or (),
            allowed_origins or (),
            say,
        )
