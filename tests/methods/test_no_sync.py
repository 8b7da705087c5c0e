"""A step never asks what came of it: on an accelerator every such question would wait for the device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule

READING_CALLS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
READING_OPS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}


class _NoReadingOps(TorchDispatchMode):
    """Below autograd: what the host would have to know, whoever asks for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket.__name__ in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or func.overloadpacket.__name__ in READING_OPS:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class _NoReadingCalls(TorchFunctionMode):
    """In Python: reads of a tensor that is on the host already, as all are in these tests."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READING_CALLS:
            raise AssertionError(f"{func.__name__}() waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read",
    [
        float,
        bool,
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        lambda x: x[None][x[None] > 0],
        lambda x: torch.equal(x, x),
        lambda x: 1 if x > 0 else 0,
    ],
)
def test_reads_are_seen(read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), _NoReadingOps(), _NoReadingCalls():
        read(torch.ones(()))


@pytest.mark.parametrize(
    ("method", "adapter", "learning"),
    [
        ("abmll", {}, {}),
        ("abmll", {}, {"max_grad_norm": 0.5}),
        ("abmll", {}, {"noise": "shared"}),
        ("abmll", {}, {"loss": "tokens"}),
        ("abmll", {"space": "output"}, {}),
        ("abmll", {"sigma_rank": 2}, {}),
        ("structured-lora", {}, {}),
        ("reptile", {}, {}),
        ("fomaml", {}, {"max_grad_norm": 0.5}),
        ("maml", {}, {"max_grad_norm": 0.5, "meta_batch": 2}),
        ("abml", {}, {}),
    ],
)
def test_steps_wait_for_nothing(
    make_scorer: Callable[..., OptionScorer],
    make_theta: Callable[[OptionScorer], Adapter],
    draw_examples: Callable[..., list[Encoded]],
    method: str,
    adapter: dict[str, Any],
    learning: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("numerics", "any_rank"):
        monkeypatch.setattr(f"abmll.posterior.{module}.on_host", lambda tensor: False)
    scorer = make_scorer(**adapter)
    rule = make_rule(scorer, LearningConfig(method=method, **learning), 2)
    state = rule.init(make_theta(scorer))
    batch, generator = scorer.batch(draw_examples(3)), torch.Generator().manual_seed(0)
    with _NoReadingOps(), _NoReadingCalls():
        for _ in range(2):
            rule.begin_episode(state, done=0.0)
            rule.inner_step(state, batch, generator, 1.0)
            rule.outer_step(state, batch, generator, 1.0)
