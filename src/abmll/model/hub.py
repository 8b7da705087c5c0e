"""Runs and posteriors on a model hub: by name instead of a folder, and from a folder to a name.

The hub is huggingface.co, or the one of ``HF_ENDPOINT``. What lies there is a folder as it lies on a disk, so that
nothing is known here of what is in the files.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm, validate_repo_id

from abmll.common.checkpoint import DOCUMENT, PREFIX, STATE, load_bundle, model_checkpoint
from abmll.common.errors import CheckpointError, ConfigError
from abmll.common.files import refuse_link_out, restore
from abmll.common.hub_access import SECONDS, hub_api, in_time, sizes_of
from abmll.common.hub_errors import UNREACHABLE, explained, out_of_reach, sibling
from abmll.model.card import NOTHING_SAID, CardOptions, folder_card
from abmll.model.run_folder import CARD, SHARED
from abmll.model.shipped import shipped_theta

FETCHED = ["*.safetensors", "*.json", "*.jsonl", "*.yaml", "*.md"]  # no code, no pickles
# What a push replaces where the repository has it.
OURS = [f"{PREFIX}*", "phi*.safetensors", "head.safetensors", DOCUMENT, "manifest.json", "classifier.json", *SHARED]
EXPORTS = ("abmll.json", "ensemble.json")  # each is in every export of its kind

Say = Callable[[str], None]


def _unsaid(line: str) -> None:
    """Tell nobody."""


def hub_name(place: Path | str) -> tuple[str, str | None] | None:
    """The repository and the revision, if any, that ``user/name@revision`` means; None where it is no such name."""
    text = place.as_posix() if isinstance(place, Path) else place
    name, at, revision = text.partition("@")
    if name.count("/") != 1 or (at and not revision):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name, revision or None


def find_folder(
    place: Path | str, revision: str | None = None, token: str | None = None, announce: Say = _unsaid
) -> Path:
    """The folder ``place``, or the shipped theta or the local copy of the repository of that name, fetched if need be.

    A folder that exists is always meant. ``announce`` is told what is fetched, from where, how large. Raises
    ``CheckpointError``: no such folder or name, no such revision, no network, or nothing of ABMLL in it.
    """
    folder = Path(place)
    restore(folder)
    there = folder if folder.is_dir() else shipped_theta(place)
    if there is not None:
        if revision is not None:
            raise ConfigError(f"{folder}: is a folder, which has no revision '{revision}'; leave the revision out")
        return there
    found = None if folder.exists() else hub_name(place)
    if found is None:
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {what}.{sibling(folder)} Give what 'abmll train' or 'abmll adapt' wrote")
    name, own = found
    return _fetch(name, revision or own, token, announce)


def push_folder(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    card: CardOptions = NOTHING_SAID,
) -> str:
    """Put a run's newest checkpoint and what belongs to it, or a posterior, on the hub as one commit; returns its URL.

    The repository is made where there is none: ``private``, or as its owner's settings have it (None). So is a branch
    ``revision``. The card is written anew. Raises ``CheckpointError`` for a damaged folder, ``ConfigError`` for a name
    that cannot be or without a token.
    """
    if hub_name(name) is None or "@" in name:
        raise ConfigError(f"'{name}' is no name on a hub; write user/name")
    if any((folder / sign).is_file() for sign in EXPORTS):
        raise ConfigError(f"{folder}: is an export, which has its card; push it with: hf upload {name} {folder}")
    files: dict[str, bytes | Path] = {file: folder / file for file in _files(folder)}
    files[CARD] = folder_card(folder, name, card).encode()
    token = token or get_token()
    if token is None:
        raise ConfigError(f"{name}: no token to push with; run 'hf auth login', or set HF_TOKEN to one that may write")
    api = hub_api(token)
    with explained(api.endpoint, name, revision, is_push=True):
        url = _made(api, name, private, revision)
        info = in_time(lambda: api.model_info(name, revision=revision, timeout=SECONDS))
        old = [one.rfilename for one in info.siblings or []]
        gone = [one for one in old if one not in files and any(fnmatch(one, pattern) for pattern in OURS)]
        api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path, is_folder=False) for path in gone),
            ],
            commit_message=commit_message or f"Upload {folder.name} with abmll",
            revision=revision,
        )
    return url if revision is None else f"{url}/tree/{revision}"


class OnHub:
    """What has ``save_pretrained(folder)`` can be pushed."""

    def save_pretrained(self, folder: Path | str) -> None:
        """Write it to a folder."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        datasets: Sequence[str] = (),
    ) -> str:
        """Save it on the hub as ``repo_id`` (user/name), and return its URL; see ``abmll.model.hub.push_folder``.

        ``license`` and ``datasets``, the hub's names of them, stand in the card; without them it says nothing of them.
        """
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder)
            return push_folder(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
                card=CardOptions(license, datasets),
            )


class _Bar(tqdm):
    """No bar: what is fetched was announced, and is small."""

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **{**settings, "disable": True})


def _fetch(name: str, revision: str | None, token: str | None, announce: Say) -> Path:
    """The local copy of a repository."""
    api = hub_api(token)
    with explained(api.endpoint, name, revision):
        try:
            info = in_time(lambda: api.model_info(name, revision=revision, files_metadata=True, timeout=SECONDS))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (OfflineModeIsEnabled, HfHubHTTPError, *UNREACHABLE) as error:
            folder = _cached(api, name, revision)
            if folder is None:
                raise
            why = out_of_reach(api.endpoint, error)
            announce(f"{name}: {why}, so the copy in {folder} is used")
            return folder
        _refuse_foreign(info, name)
        if _cached(api, name, info.sha) is None:
            sizes, place = sizes_of(info, FETCHED), f"{name} at {info.sha or 'main':.7}"
            announce(f"Fetching {place} ({len(sizes)} files, {sum(sizes) / 1e6:.1f} MB) from {api.endpoint}")
        return Path(api.snapshot_download(name, revision=revision, allow_patterns=FETCHED, tqdm_class=_Bar))


def _cached(api: HfApi, name: str, revision: str | None) -> Path | None:
    """The whole copy in the cache, if there is one."""
    try:
        return Path(api.snapshot_download(name, revision=revision, allow_patterns=FETCHED, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _refuse_foreign(info: ModelInfo, name: str) -> None:
    files = [one.rfilename for one in info.siblings or []]
    if DOCUMENT not in files and not any(fnmatch(file, f"{PREFIX}*/{STATE}") for file in files):
        raise CheckpointError(
            f"{name}: the hub has it, but it has no {DOCUMENT} and no {PREFIX}*/{STATE}, so abmll did not write it; a "
            "language model is named with --model"
        )


def _made(api: HfApi, name: str, private: bool | None, revision: str | None) -> str:
    """The URL of the repository, which is made where there is none, as is a branch ``revision``."""
    try:
        in_time(lambda: api.model_info(name, timeout=SECONDS))  # the only call that gives up where nobody answers
    except RepositoryNotFoundError:
        api.create_repo(name, private=private, exist_ok=True)
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(name, branch=revision, exist_ok=True)
    return f"{api.endpoint}/{name}"


def _files(folder: Path) -> list[str]:
    """What is pushed of a folder beside its card, relative to it: what its manifest lists, and for a run its records.

    Raises ``CheckpointError`` where they are damaged or missing, or links to what is not the folder's.
    """
    restore(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder.{sibling(folder)} Give what 'abmll train' or 'abmll adapt' wrote"
        )
    is_posterior = (folder / DOCUMENT).exists()
    saved = folder if is_posterior else model_checkpoint(folder)
    groups = load_bundle(saved, DOCUMENT if is_posterior else STATE).tensors
    parts = [DOCUMENT if is_posterior else STATE, "manifest.json", *(f"{group}.safetensors" for group in groups)]
    beside = [file for file in (["classifier.json"] if is_posterior else SHARED) if (folder / file).is_file()]
    for file in beside:
        refuse_link_out(folder, folder / file, "put the file there, or delete the link", CheckpointError)
    return [*((saved / part).relative_to(folder).as_posix() for part in parts), *beside]
