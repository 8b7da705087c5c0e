"""The installed version; a source tree that is merely on the path has none."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("abmll")
except PackageNotFoundError:
    __version__ = "0+unknown"
