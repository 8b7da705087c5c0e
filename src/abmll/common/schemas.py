"""What each JSON document of the project holds: names, types and ranges, and nothing else.

``documents.py`` reads and writes them. What two files must have in common, such as the members of a posterior and
their tensors, is checked where both are at hand.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from abmll.common import config
from abmll.common.settings import Checked, Kind, kinds_of

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Alone: of samples of the weights, as 0.2.0 wrote it. Behind the +: of what only fp32 holds.
Fingerprint = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64}|sha256:[0-9a-f]{64}(\+[0-9a-f]{64})?)$")]
Short = Annotated[str, StringConstraints(max_length=10_000)]
Long = Annotated[str, StringConstraints(max_length=10_000_000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Positive = Annotated[float, Field(gt=0, le=1e300)]
NotNegative = Annotated[float, Field(ge=0, le=1e300)]
Share = Annotated[float, Field(ge=0, le=1)]
Numbers = dict[Short, Number | None]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,250}$")]  # of a file


@cache
def _kinds() -> Mapping[str, tuple[Kind, ...]]:
    """By the name of a setting what it may be; a few groups have a setting of the same name and another kind."""
    groups = [one for one in vars(config).values() if isinstance(one, type) and issubclass(one, Checked)]
    kinds: dict[str, tuple[Kind, ...]] = {}
    for group in groups:
        for name, kind in kinds_of(group).items():
            kinds[name] = (*kinds.get(name, ()), kind)
    return kinds


def _known_settings(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        kinds = _kinds().get(name.removeprefix("adapt_"), _kinds().get(name))
        if name == "written" and isinstance(value, bool):  # of a posterior: whether its task's answers are written
            continue
        if kinds is None:
            raise ValueError(f"no setting is called {name[:60]!r}")
        given = tuple(value) if isinstance(value, list) else value
        if not any(kind.accepts(given) for kind in kinds):
            raise ValueError(f"{name} {kinds[0].refusal(value)[:200]}")
    return values


Settings = Annotated[dict[Short, Any], AfterValidator(_known_settings)]


class Strict(BaseModel):
    """No conversion of types, no key that is not named, no number that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Sealed(Strict):
    """A document that lies by itself; ``sha256`` is that of all other keys, which version 0.2.0 did not write yet."""

    format: Short
    sha256: Hash | None = None


class Manifest(Strict):
    """The files of a folder."""

    sha256: Annotated[dict[Name, Hash], Field(min_length=1, max_length=1000)]


class Checkpoint(Strict):
    format: Short
    tensors: list[Name] | None = None  # the groups, a file each; 0.2.0 did not write them yet
    episode: Count
    num_tasks: Count
    tasks: list[Short]
    data_sha256: Hash | None  # None: theta alone was saved, and no training goes on from it
    validation_sha256: Hash | None = None  # an earlier checkpoint has none
    base_fingerprint: Fingerprint
    settings: Settings
    head_prior: dict[Short, Any] | None = None


class Best(Sealed):
    """Which checkpoint is the run's."""

    episode: Count


class Points(Strict):
    """A task's calibration: P points of 1 + L numbers."""

    points: Annotated[list[Annotated[list[Number], Field(min_length=1, max_length=1001)]], Field(min_length=1)]
    labels: list[Short]


class Head(Strict):
    method: Short
    labels: list[Short]
    keys: list[Short]
    seed: Seed
    ordered: bool = False  # 0.2.0 did not write it yet
    prior: dict[Short, Any]
    is_multi_label: bool = False


class ShippedTheta(Strict):
    name: Name
    sha256: Hash


class Posterior(Strict):
    format: Short
    tensors: list[Name] | None = None
    task_name: Long
    is_posterior: bool
    members: Annotated[int, Field(ge=0, le=1000)]
    demonstrations: list[tuple[Long, Annotated[list[Long], Field(min_length=2, max_length=200)], Count]]
    calibration: Points | None
    head: Head | None
    theta: ShippedTheta | None = None  # 0.2.0 had none
    labels: Annotated[list[Long], Field(max_length=200)] = []  # 0.2.0 did not write them yet
    measured: Numbers = {}
    base_fingerprint: Fingerprint
    settings: Settings


class Prior(Strict):
    mean: NotNegative
    std: Positive
    bias_std: Positive


class Calibration(Sealed):
    episode: Count
    prior: Prior
    settings: dict[Short, Count]
    cost: Numbers


class Classes(Strict):
    type: Literal["bool", "int", "float", "str"]
    values: Annotated[list[bool | int | float | Long], Field(min_length=2, max_length=200)]


class Classifier(Sealed):
    parameters: dict[Short, Any]
    classes: Classes


Plain = bool | int | Number | Long | None
Values = dict[Short, Plain | list[Plain]]  # settings of an experiment: `experiments/budget.py` knows what they may be


class Measured(Sealed):
    """What results of tasks have in common."""

    truncated_prompts: Count
    demonstrations_left_out: Count
    tasks: dict[Short, Numbers]
    mean: Numbers
    pooled: Numbers


class OfSuite(Sealed):
    """What was evaluated, on which tasks."""

    method: Short
    label: Short
    run: Short
    suite: Short
    seed: Seed
    missing: list[Short]
    known_leaks: list[Short]
    settings: Settings
    versions: dict[Short, Short]


class Evaluation(Measured, OfSuite):
    """Of tasks whose answers are chosen."""


class WrittenEvaluation(OfSuite):
    """Of tasks whose answers are written."""

    truncated_prompts: Count
    tasks: dict[Short, Numbers]
    mean: Numbers


class Training(Strict):
    """The run that a cell continues."""

    method: Short
    seed: Seed
    settings: Values
    data: Short
    kept_episodes: list[Count]
    name: Short


class Cost(Strict):
    training: Numbers
    evaluation: Numbers


class Cell(Measured):
    suite: Short
    method: Short
    preset: Short
    row: Short
    label: Short
    seed: Seed
    hash: Short
    is_main: bool
    settings: Values
    training: Training | None
    versions: dict[Short, Short]
    commit: Short | None
    command: Long
    missing: list[Short]
    known_leaks: list[Short]
    base_fingerprint: Fingerprint
    cost: Cost
    calibration: dict[Short, Any] | None
    predictions: Name
    temperatures: dict[Short, Any]
    out_of_distribution: dict[Short, Any]


class Failure(Strict):
    method: Short
    seed: Seed
    error: Long


class Comparison(Sealed):
    suite: Short
    seeds: list[Seed]
    reference: Short | None
    uniform_nll: Number | None = None  # an earlier comparison has none
    missing: list[Short]
    known_leaks: list[Short]
    settings: Values
    versions: dict[Short, Short]
    commits: list[Short]
    failures: list[Failure]
    methods: dict[Short, dict[Short, Any]]


class Trial(Strict):
    settings: dict[Short, Plain]
    nll: Number | None
    accuracy: Share | None = None
    ece: Share | None = None
    error: Long | None = None


class Trials(Sealed):
    trials: list[Trial]


class Found(Sealed):
    """Settings that a search has found; a hand-written file may have the methods alone."""

    methods: dict[Short, Values]
    suite: Short | None = None
    validation: list[Short] = []
    seeds: list[Seed] = []
    trials: Any = None
    command: Long | None = None
    scores: dict[Short, Trial] = {}


class Fetched(Strict):
    """A task of a fetched collection."""

    sha256: Hash
    rows: Count
    options: list[Count]
    family: Short
    canary: Long | None
    description: Long | None


class Collection(Sealed):
    archive: Short
    archive_sha256: Hash
    tasks: dict[Short, Fetched]


class FetchedTask(Strict):
    """A task that was made of a dataset of the hub; ``commit`` is None for a copy on the disk, which does not say."""

    sha256: Hash
    train: Count
    test: Count
    options: list[Count]
    dataset: Short
    config: Short
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None
    is_pinned: bool
    licence: Short
    sensitive: bool
    recipe: Hash


class HubCollection(Sealed):
    collection: Short
    tasks: dict[Short, FetchedTask]


class Size(Sealed):
    """What a demonstration computes on this machine."""

    given: dict[Short, Count]
    size: dict[Short, Count]


class Peak(Sealed):
    peak_memory_mb: NotNegative | None


class OfBase(Sealed):
    """The fingerprint of a base model whose files have not changed."""

    base_fingerprint: Fingerprint


class Converted(Strict):
    """The embedded model's folder."""

    source: Short
    gguf_sha256: Hash
    sha256: Annotated[dict[Name, Hash], Field(min_length=1, max_length=100)]


SCHEMAS: Mapping[str, type[Strict]] = {
    "manifest": Manifest,
    "converted": Converted,
    "checkpoint": Checkpoint,
    "best": Best,
    "posterior": Posterior,
    "calibration": Calibration,
    "classifier": Classifier,
    "evaluation": Evaluation,
    "written evaluation": WrittenEvaluation,
    "cell": Cell,
    "comparison": Comparison,
    "settings": Found,
    "trials": Trials,
    "bigbench": Collection,
    "collection": HubCollection,
    "size": Size,
    "peak": Peak,
    "fingerprint": OfBase,
}


def problem_of(kind: str, data: bytes) -> str | None:
    """What is wrong with a document of that kind, in a few words; None where nothing is."""
    try:
        SCHEMAS[kind].model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"] if part != "function-after")
        return f"{place or 'document'}: {first['msg'].removeprefix('Value error, ')}"
    return None
