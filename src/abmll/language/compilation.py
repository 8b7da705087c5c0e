"""Functions that torch.compile takes whole: one graph for each shape, without a break, kept for a model's lifetime."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException

from abmll.common.errors import ConfigError

SHAPES = 64  # graphs of one function, beyond which something is wrong with the shapes

T = TypeVar("T")


@dataclass(frozen=True)
class Compilation:
    """How functions are compiled, by torch.compile's words for it, and those that have been.

    Raises ``ConfigError`` where this torch cannot keep the graphs of several models apart.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    compiled: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
            raise ConfigError(f"compile: torch {torch.__version__} cannot do that; install a newer one, or leave it out")

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(*arguments)``, compiled when it is first called with arguments of such shapes.

        Raises ``ConfigError`` where it cannot be compiled.
        """
        if function not in self.compiled:
            how: dict[str, Any] = {"recompile_limit": SHAPES, "isolate_recompiles": True}
            self.compiled[function] = torch.compile(
                function, fullgraph=True, dynamic=False, backend=self.backend, mode=self.mode, **how
            )
        try:
            return self.compiled[function](*arguments)
        except TorchDynamoException as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"compile: torch cannot compile a step of this model: {reason}; leave it out") from error
