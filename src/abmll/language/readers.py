"""Which adapted layers read the very same tensor, and in which order they are called: seen in one pass of the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn


class Readers:
    """What a pass showed; before one, that every layer reads a tensor of its own.

    ``together`` are the layers that saw all positions, in the order of their calls: not those of a last MLP that
    computes the scored positions alone, nor an expert that is asked about a few.
    """

    def __init__(self) -> None:
        self.together: tuple[str, ...] = ()
        self.seen: list[tuple[str, ...]] = []

    def groups(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """All of ``names``, those that read the same tensor in one tuple."""
        wanted = set(names)
        own = [group for seen in self.seen if (group := tuple(name for name in seen if name in wanted))]
        met = set(chain(*own))
        return own + [(name,) for name in names if name not in met]

    @contextmanager
    def watching(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside, passes of the model are watched, of which the first that calls the most layers counts."""
        passes: list[dict[str, Tensor]] = [{}]

        def see(name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
            if name in passes[-1]:
                passes.append({})
            passes[-1][name] = args[0]

        handles = [layer.register_forward_pre_hook(partial(see, name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._keep(max(passes, key=len))

    def _keep(self, calls: Mapping[str, Tensor]) -> None:
        groups: dict[int, list[str]] = {}  # by a tensor's identity: all are still in memory
        for name, x in calls.items():
            groups.setdefault(id(x), []).append(name)
        self.seen = [tuple(group) for group in groups.values()]
        most = max((x.shape[:-1].numel() for x in calls.values()), default=0)
        self.together = tuple(name for name in chain(*self.seen) if calls[name].shape[:-1].numel() == most)
