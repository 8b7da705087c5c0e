"""Models in fp32 on the tiny Llama, and adapters that matter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import PromptConfig
from abmll.language.adapter import Adapter
from abmll.language.packing import remove_packing

MakeModel = Callable[..., AbmllModel]


@pytest.fixture(scope="module")
def make_model(tiny_llama: Path) -> MakeModel:
    """make_model(**AdapterConfig's fields): its adapter is in the second layer of two."""

    def make(**adapter: Any) -> AbmllModel:
        settings: dict[str, Any] = {"r": 2, "target_modules": ["all-linear"], "layers_to_transform": "1"} | adapter
        prompt = PromptConfig(instruction=False, list_options=False)
        return AbmllModel.from_base(str(tiny_llama), prompt=prompt, dtype="fp32", device="cpu", **settings)

    return make


def unpack(model: AbmllModel) -> None:
    """Let it read its batches as padded rows."""
    remove_packing(model.scorer.base.model)
    model.scorer.packed = model.scorer.lower_blocks.packed = False


def learned(model: AbmllModel, seed: int) -> Adapter:
    """An adapter with a mean and standard deviations that matter."""
    phi, generator = model.theta.clone(), torch.Generator().manual_seed(seed)
    for tensor in phi.mean_tensors():
        tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    for tensor in [] if model.scorer.space.per_activation else phi.scale_tensors():
        tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) - 1.0)
    return phi
