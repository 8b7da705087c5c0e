"""How a model hub is asked: huggingface.co, or the one of HF_ENDPOINT."""

import os
from collections.abc import Sequence
from fnmatch import fnmatch

from huggingface_hub import DatasetInfo, HfApi, ModelInfo

SECONDS = 7.0  # to be connected, and again to be answered: the libraries themselves try for a minute


def hub_api(token: str | None = None) -> HfApi:
    """The hub's interface; without a ``token`` the user's own, if there is one."""
    return HfApi(os.environ.get("HF_ENDPOINT"), token=token)


def sizes_of(info: ModelInfo | DatasetInfo, patterns: Sequence[str]) -> list[int]:
    """The size in bytes of every file of a repository that one of the ``patterns`` names."""
    named = [one for one in info.siblings or [] if any(fnmatch(one.rfilename, own) for own in patterns)]
    return [one.size or 0 for one in named]
