"""What a model hub or the network refuses, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import errors
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from abmll.common.errors import CheckpointError, nearest

# The first is httpx's or httpx2's, as the version of the library has it: no import of either would fit both.
UNREACHABLE: tuple[type[Exception], ...] = (
    errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    TimeoutError,
)


def sibling(folder: Path) -> str:
    """A hint that names the folder beside it whose name is nearest, or an empty string."""
    return nearest(folder.name, [path.name for path in folder.parent.glob("*") if path.is_dir()])


def out_of_reach(hub: str, error: Exception) -> str:
    """Why the hub did not give what was asked, in a few words."""
    if isinstance(error, OfflineModeIsEnabled):
        return "offline"
    if isinstance(error, HfHubHTTPError):
        return f"{hub} answered {error.response.status_code}"
    return f"{hub} cannot be reached"


@contextmanager
def explained(hub: str, name: str, revision: str | None, is_push: bool = False) -> Iterator[None]:
    """Turn what the hub's library raises into one line of ``CheckpointError``; its advice is for reading or a push."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{name}: {hub} has it, but no revision '{revision}'; name a branch, tag or commit"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(f"{name}: its owner must let you in; ask at {hub}/{name}, and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        if is_push:
            raise CheckpointError(
                f"{name}: {hub} has no such name that this token may write to; check the name, and whose token it is"
            ) from error
        raise CheckpointError(
            f"{name}: no such folder, and {hub} has no such name.{sibling(Path(name))} Is it private? Then run "
            "'hf auth login' or set HF_TOKEN"
        ) from error
    except OfflineModeIsEnabled as error:
        if is_push:
            raise CheckpointError(f"{name}: HF_HUB_OFFLINE forbids to ask {hub}; unset it to push") from error
        raise CheckpointError(
            f"{name}: no such folder, and HF_HUB_OFFLINE forbids to ask {hub}; give a folder, or fetch it while online"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: {hub} went out of reach before all was fetched; try again") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "the token may not do this" if status in (401, 403) else "try again later"
        said = " ".join((error.server_message or "").split())[:200]
        raise CheckpointError(f"{name}: {hub} answered {status}{f' ({said})' * bool(said)}; {remedy}") from error
    except UNREACHABLE as error:
        read = "check the network, or give a folder; with HF_HUB_OFFLINE=1 only what was fetched before is used"
        remedy = "check the network and HF_ENDPOINT, and push again" if is_push else read
        raise CheckpointError(f"{name}: {hub} cannot be reached ({type(error).__name__}); {remedy}") from error
    except (RuntimeError, OSError) as error:  # as the parts of the library that move large files have it
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{name}: the transfer to or from {hub} broke off ({why}); try again") from error
    except JSONDecodeError as error:
        raise CheckpointError(
            f"{name}: {hub} answered, but not as a hub does; check the network and HF_ENDPOINT"
        ) from error
