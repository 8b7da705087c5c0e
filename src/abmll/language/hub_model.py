"""A language model of the Hugging Face hub: asked for once, announced with its size, or read from the cache alone."""

from collections.abc import Callable

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from abmll.common.errors import CheckpointError
from abmll.common.hub_access import SECONDS, hub_api, in_time, sizes_of
from abmll.common.hub_errors import UNREACHABLE, explained, out_of_reach

FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt")  # what transformers reads of a repository


def only_cached(name: str, announce: Callable[[str], None]) -> bool:
    """Whether the model ``name`` can be read from the cache alone; otherwise it is on the hub, and may be fetched.

    ``announce`` is told what will be fetched, from where, how large. Raises ``CheckpointError`` in one line where the
    hub has no such model, or cannot be reached and nothing was fetched before, and for what can be no name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        known, at, revision = name.partition("@")
        fetch = f"hf download {known} --revision {revision} --local-dir FOLDER"
        remedy = f"for a revision give a folder, made by: {fetch}" if at else "check the name"
        raise CheckpointError(f"model: {name[:100]} is no folder, and no name on a hub; {remedy}") from error
    is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    api = hub_api()
    with explained(api.endpoint, name, None):
        try:
            info = in_time(lambda: api.model_info(name, files_metadata=True, timeout=SECONDS))
        except (OfflineModeIsEnabled, HfHubHTTPError, *UNREACHABLE) as error:
            if not is_cached:
                raise
            announce(f"{name}: {out_of_reach(api.endpoint, error)}, so the copy in the cache is used")
            return True
    if not is_cached:
        size = sum(sizes_of(info, FETCHED)) / 1e6
        announce(f"fetching {name} ({size:,.1f} MB, once) from {api.endpoint}")
    return False
