"""Datasets of the Hugging Face hub, and folders of that form, through the ``datasets`` library: rows and classes.

A column of classes (``ClassLabel``) becomes the names of its classes; -1 is no label. No dataset's script is ever run:
since version 4 the library has no way to.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from abmll.common.errors import DataError, nearest
from abmll.common.hub_access import SECONDS, in_time, sizes_of
from abmll.tasks.hub_name import HubName
from abmll.tasks.mapping import OPTION, ColumnMapping
from abmll.tasks.rows import Row

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder
    from huggingface_hub import DatasetInfo

Say = Callable[[str], None]
EVALUATION = (
    "test",
    "validation",
    "valid",
    "val",
    "dev",
)  # splits of test examples, the first choice first
LABELS = ("label", "answer", "output")
OFFLINE = "without a network, HF_HUB_OFFLINE=1 uses what was loaded before, and hf:FOLDER a copy on the disk"
PARQUET = "refs/convert/parquet"  # where the hub keeps a copy of every dataset as CONFIG/SPLIT/0000.parquet


class HubUnreachable(DataError):
    """The hub does not answer, or is not to be asked: no other dataset will be had either."""


class Files(NamedTuple):
    """Some files of a dataset: the commit that they are of, and the bytes of all of them."""

    commit: str
    size: int


class HubTable(NamedTuple):
    """The rows of a split; the names of the classes, in their order, of each column that has classes."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    classes: Mapping[str, tuple[str, ...]]


class HubDataset(NamedTuple):
    """A dataset's splits in their order; only the one that the name asks for, where it does."""

    name: HubName
    splits: "Mapping[str, Dataset]"

    def table(self, split: str, mapping: ColumnMapping) -> HubTable:
        """The rows of a split, under its own names; beside options, a class that is the ``answer`` stays a number."""
        data = self.splits[split]
        where = self.name._replace(split=None)
        named = {column: mapping.get(column, column) for column in data.column_names}
        has_options = any(ours == "options" or OPTION.fullmatch(ours) for ours in named.values())
        classes = {
            column: names
            for column, feature in data.features.items()
            if (names := _class_names(feature)) and not (has_options and named[column] == "answer")
        }
        rows = [
            Row(
                f"{where}: {split} row {number}",
                {key: _decoded(value, classes[key]) if key in classes else value for key, value in values.items()},
            )
            for number, values in enumerate(data.to_list(), start=1)
        ]
        return HubTable(tuple(data.column_names), tuple(rows), classes)

    def one_split(self, usual: str | None) -> str:
        """The only split, or the ``usual`` one. Raises ``DataError`` where there are others and none is named."""
        if len(self.splits) > 1 and usual not in self.splits:
            choice = ", ".join(map(str, (self.name._replace(split=split) for split in self.splits)))
            raise DataError(f"{self.name}: has the splits {', '.join(self.splits)}; name one, of {choice}")
        return next(iter(self.splits)) if len(self.splits) == 1 else str(usual)

    def sides(self, mapping: ColumnMapping, say: Say) -> dict[str, HubTable]:
        """The splits to learn from ("train") and to be evaluated on, the first of ``EVALUATION`` that has labels.

        One alone, where there are no two such splits; ``say`` is told what is left out.
        Raises ``DataError`` where nothing says which split is meant.
        """
        if len(self.splits) == 1:
            return {split: self.table(split, mapping) for split in self.splits}
        tables = {split: self.table(split, mapping) for split in self.splits if split == "train"}
        for split in EVALUATION:
            if split in self.splits and _has_labels(table := self.table(split, mapping), mapping):
                tables[split] = table
                break
        if not tables:
            self.one_split(None)
        left_out = [split for split in self.splits if split not in tables]
        if left_out:
            say(f"{self.name}: used: {', '.join(tables)}; left out: {', '.join(left_out)}")
        return tables


def files_of(name: HubName, patterns: Sequence[str]) -> Files:
    """The commit of a dataset's revision, and the size of its files of these patterns.

    Raises ``DataError``: no such dataset, revision or file, the library is missing; ``HubUnreachable``.
    """
    refuse_without_library(name)
    from datasets import config

    if config.HF_HUB_OFFLINE:
        raise HubUnreachable(f"{name}: its files are not known, and HF_HUB_OFFLINE forbids to ask; unset it")
    info = _asked(name, files_metadata=True)
    sizes = sizes_of(info, patterns)
    if not sizes or info.sha is None:
        raise DataError(f"{name}: has no files {', '.join(patterns)}")
    return Files(info.sha, sum(sizes))


def load_hub(
    name: HubName,
    say: Say = lambda line: None,
    quiet: bool = False,
    files: Mapping[str, str] | None = None,
    size: int | None = None,
) -> HubDataset:
    """Load a dataset, from the hub, the library's cache, or a folder.

    ``say`` is told what is downloaded, from where, how large. Progress is shown on a terminal, unless ``quiet``.
    ``files`` are patterns of the splits' files (Parquet or TSV), where the dataset does not say itself which they are,
    and ``size`` their bytes.
    Raises ``DataError``: the library is missing, no such dataset, config or split, the hub cannot be reached.
    """
    refuse_without_library(name)
    import datasets

    folder = name.folder
    if folder is None:
        _refuse_unreachable(name)
    path = name.path if folder is None else str(folder)
    try:
        with _bars(quiet or not sys.stderr.isatty()):
            if folder is not None and any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
                loaded: Any = datasets.load_from_disk(path)
            else:
                builder = _builder(name, path, files)
                _refuse_split(name, builder.info.splits or getattr(builder.config, "data_files", None) or {})
                if folder is None and not Path(builder.cache_dir).is_dir():
                    say(_announced(name, size or builder.info.download_size))
                builder.download_and_prepare()
                loaded = builder.as_dataset()
    except DataError:
        raise
    except Exception as error:  # the library raises its own, httpx's, huggingface_hub's, Arrow's and Python's
        refusal = HubUnreachable if isinstance(error, ConnectionError) else DataError
        raise refusal(_refusal(name, error)) from error
    splits: dict[str, Dataset] = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    _refuse_split(name, splits)
    return HubDataset(name, splits if name.split is None else {name.split: splits[name.split]})


def refuse_without_library(name: HubName | str) -> None:
    """Raise ``DataError`` that names what is asked for where the ``datasets`` library is not installed."""
    try:
        import datasets  # noqa: F401 (whether it is there, and works)
    except ImportError as error:
        raise DataError(f'{name}: needs the datasets library; run: pip install "abmll[data]"') from error


def _builder(name: HubName, path: str, files: Mapping[str, str] | None) -> "DatasetBuilder":
    """What loads the dataset. Raises ``DataError`` where the config is not there, or one must be named."""
    import datasets

    try:
        if files:
            place = path if name.folder else f"hf://datasets/{path}@{name.revision}"
            named = {split: f"{place}/{pattern}" for split, pattern in files.items()}
            is_text = all(pattern.endswith(".tsv") for pattern in files.values())
            # Without ``keep_default_na`` the word "None" would be an empty cell.
            how: dict[str, Any] = {"sep": "\t", "keep_default_na": False} if is_text else {}
            return datasets.load_dataset_builder("csv" if is_text else "parquet", data_files=named, **how)
        return datasets.load_dataset_builder(path, name.config, revision=name.revision)
    except ValueError as error:
        configs = datasets.get_dataset_config_names(path, revision=name.revision)
        shown = ", ".join(configs[:20]) + (", ..." if len(configs) > 20 else "")
        if name.config is None and len(configs) > 1:
            example = name._replace(config=configs[0])
            raise DataError(f"{name}: has the configs {shown}; name one, such as {example}") from error
        if name.config is not None and name.config not in configs:
            hint = nearest(name.config, configs)
            raise DataError(f"{name}: no config '{name.config}'.{hint} There are: {shown}") from error
        raise


def _refuse_split(name: HubName, splits: Mapping[str, Any]) -> None:
    """Raise ``DataError`` where the named split is none of those that are known."""
    known = [str(split) for split in splits]
    if name.split is not None and known and name.split not in known:
        raise DataError(f"{name}: no split '{name.split}'.{nearest(name.split, known)} There are: {', '.join(known)}")


def _refuse_unreachable(name: HubName) -> None:
    """Ask the hub for the dataset, once: the library itself tries again and again, for minutes.

    Raises as ``_asked``, and for a folder that is not there. Asks nothing where it is to be offline.
    """
    from datasets import config

    if name.looks_local:
        near = [path.name for path in Path(name.path).expanduser().parent.glob("*") if path.is_dir()]
        hint = nearest(Path(name.path).name, near)
        raise DataError(f"{name}: no such folder.{hint} Give a clone of a dataset, or what save_to_disk wrote")
    if not config.HF_HUB_OFFLINE:
        _asked(name)


def _asked(name: HubName, files_metadata: bool = False) -> "DatasetInfo":
    """What the hub says of a dataset. Raises ``DataError`` where it does not have it, else ``HubUnreachable``."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    endpoint = config.HF_ENDPOINT
    try:
        api = HfApi(endpoint=endpoint)
        how: Any = {"revision": name.revision, "timeout": SECONDS, "files_metadata": files_metadata}
        return in_time(lambda: api.dataset_info(name.path, **how))
    except RevisionNotFoundError as error:
        raise DataError(f"{name}: no revision '{name.revision}'; name a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        login = "if it is private, log in first: hf auth login"
        raise DataError(f"{name}: no such dataset at {endpoint}, and no such folder; {login}") from error
    except Exception as error:  # which HTTP library raises it is the business of huggingface_hub
        raise HubUnreachable(f"{name}: {endpoint} cannot be reached ({_first_line(error)}); {OFFLINE}") from error


def _refusal(name: HubName, error: Exception) -> str:
    """What to say of an error of the library."""
    from datasets import config

    text = _first_line(error)
    if isinstance(error, ConnectionError) and config.HF_HUB_OFFLINE:
        return f"{name}: was not loaded before, and HF_HUB_OFFLINE forbids the network; unset it, or name a hf:FOLDER"
    if isinstance(error, ConnectionError):
        return f"{name}: the hub cannot be reached ({text}); {OFFLINE}"
    if "scripts are no longer supported" in text:
        return f"{name}: is made by a script, and scripts are never run; look for a copy of it in Parquet"
    return f"{name}: cannot be loaded ({text})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def _announced(name: HubName, size: int | None) -> str:
    from datasets import config

    amount = "size not known" if size is None else f"{size / 1e6:.1f} MB"
    return f"Fetching {name} ({amount}) from {config.HF_ENDPOINT} into {config.HF_DATASETS_CACHE}"


@contextmanager
def _bars(are_hidden: bool) -> Iterator[None]:
    """The library's progress bars are on or off for the whole process; they are put back as they were."""
    import datasets

    if not are_hidden or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a column's classes, also where a cell is a list of them; none for another column."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return tuple(str(name).strip() for name in names or ())


def _decoded(value: Any, names: tuple[str, ...]) -> Any:
    """The class's name, or a list of names; None for a negative number."""
    if isinstance(value, list):
        return [names[one] for one in value if one >= 0]
    return names[value] if isinstance(value, int) and value >= 0 else None


def _has_labels(table: HubTable, mapping: ColumnMapping) -> bool:
    columns = [column for column in table.columns if mapping.get(column, column) in LABELS]
    return any(row.values[column] is not None for row in table.rows for column in columns)
