"""What a server answers, as its client hands it out."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence lies between ``low`` and ``high``: how confident, and how many were right."""

    low: float
    high: float
    confidence: float | None
    accuracy: float | None
    count: int


@dataclass(frozen=True)
class Quality:
    """How good a task's answers are, by cross-validation on its examples; ``bins`` where they were asked for."""

    accuracy: float
    nll: float
    ece: float
    num_examples: int
    brier: float | None = None
    bins: list[Bin] = field(default_factory=list)


@dataclass(frozen=True)
class LeftOut:
    """What was not learned of the examples that were given.

    Args:
        empty: rows of a CSV without a text or a label.
        repeated: examples whose text came again; the last one of a text counts.
    """

    empty: int = 0
    repeated: int = 0


@dataclass(frozen=True)
class ServedTask:
    """A task on a server.

    Args:
        state: ``learning`` (nothing answers yet), ``ready``, ``updating`` (``version`` answers while a newer one is
            learned), ``failed`` (``error`` says why) or ``damaged`` (``Client.relearn`` mends it).
        how: ``head`` or ``full``, by gradient steps.
        counts: examples by label.
        quality: None as long as it is not known.
        job: what is being done for it, if anything.
        new_labels: after examples were added, the labels that it did not have before.
        left_out: after examples were given, what of them was not learned.
    """

    name: str
    state: str
    how: str
    version: int | None
    labels: list[str]
    counts: dict[str, int]
    num_examples: int
    created: str
    updated: str
    label_order: list[str] | None = None
    quality: Quality | None = None
    job: str | int | None = None
    error: str | None = None
    new_labels: list[str] = field(default_factory=list)
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class Version:
    """A state of a task: what it had learned from its first ``num_examples`` examples."""

    version: int
    created: str
    num_examples: int
    state: str
    quality: Quality | None = None


@dataclass(frozen=True)
class Job:
    """Learning that goes on: ``done`` of ``total`` steps; ``state`` is waiting, running, done, failed or cancelled.

    ``new_labels`` and ``left_out`` are as in ``ServedTask``.
    """

    id: str | int
    task: str
    kind: str
    state: str
    done: int = 0
    total: int | None = None
    error: str | None = None
    version: int | None = None
    new_labels: list[str] = field(default_factory=list)
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a text. Entropy and mutual information are in nats; the latter comes of few examples."""

    label: str
    probabilities: dict[str, float]
    entropy: float
    mutual_information: float
    truncated: bool = False


@dataclass(frozen=True)
class Suggestion:
    """Which texts to label next: their places in the list, the most informative first, and how informative."""

    order: list[int]
    mutual_information: list[float]


@dataclass(frozen=True)
class StoredExample:
    """A labelled example of a task, and the version that learned it first."""

    text: str
    label: str
    version: int


@dataclass(frozen=True)
class Answers:
    """Answers, the version that gave them, and all labels, in their order where they have one."""

    version: int
    answers: list[Answer]
    labels: list[str] = field(default_factory=list)
    task: str = ""


@dataclass(frozen=True)
class Limits:
    """What a server reads at most at once."""

    texts: int
    text_characters: int
    examples: int
    labels: int
    body_bytes: int


@dataclass(frozen=True)
class About:
    """A server: its model, whose requests these are, whether it learns by gradient steps (``adapters``)."""

    version: str
    model: str
    device: str
    tenant: str
    adapters: bool
    limits: Limits


@dataclass(frozen=True)
class Tasks:
    """A page of tasks, and the name behind which the next one begins."""

    tasks: list[ServedTask]
    next: str | None = None


@dataclass(frozen=True)
class Versions:
    """The versions of a task."""

    versions: list[Version]


@dataclass(frozen=True)
class Examples:
    """The examples of a task."""

    examples: list[StoredExample]
