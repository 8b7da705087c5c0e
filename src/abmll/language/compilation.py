"""Functions that torch.compile takes whole: a graph for each shape, without a break, kept as long as the model."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from abmll.common.errors import ConfigError, one_line

SHAPES = 64  # of one function; more would be a graph for every step
# torch's name of the mode in which a CUDA device records a graph's operations once, and replays them as one.
CUDA_GRAPHS = "reduce-overhead"

T = TypeVar("T")


@dataclass
class Compilation:
    """How functions are compiled, in the words of torch.compile, and what has been.

    In a ``mode`` with CUDA graphs what a call gives, and the gradient that is made of it, lie in memory that the next
    call writes to: whoever keeps it has to copy it.

    Raises ``ConfigError`` where this torch cannot keep the graphs of several models apart.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    compiled: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
            raise ConfigError(f"compile: torch {torch.__version__} is too old for it; install 2.13 or newer")

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(*arguments)``, compiled when it is first called with arguments of such shapes."""
        if function not in self.compiled:
            how: dict[str, Any] = {"recompile_limit": SHAPES, "isolate_recompiles": True}
            self.compiled[function] = torch.compile(
                function, fullgraph=True, dynamic=False, backend=self.backend, mode=self.mode, **how
            )
        if self.mode is not None:
            torch.compiler.cudagraph_mark_step_begin()  # nobody reads what the call before has given
        return self.compiled[function](*arguments)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Inside are calls, and the gradients of what they give, which are compiled when they are first asked for.

        Raises ``ConfigError`` where torch cannot compile them.
        """
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes a second to import

        try:
            yield
        except FailOnRecompileLimitHit as error:
            raise ConfigError(
                f"compile: batches have more than {SHAPES} shapes, and each is a graph of its own; leave it out, or "
                "train on texts of like length"
            ) from error
        except TorchDynamoException as error:
            reason = one_line(" ".join(str(error).split("\n")[:2]).strip() or type(error).__name__)
            raise ConfigError(f"compile: torch cannot compile a step of this model ({reason}); leave it out") from error


def usual_mode(backend: str | Callable[..., Any], device: torch.device) -> str | None:
    """The mode where none is asked for: CUDA graphs on a device and with a compiler that have them."""
    return CUDA_GRAPHS if backend == "inductor" and device.type == "cuda" else None
