"""The posterior mean for other programs: one adapter of several, plain PEFT LoRA, or a model with it merged in."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from abmll.common.checkpoint import Bundle
from abmll.common.documents import Document
from abmll.common.errors import AbmllError, ConfigError
from abmll.common.files import atomic_folder, give_usual_modes
from abmll.language import placement
from abmll.language.adapter import Adapter
from abmll.language.base import is_plain, no_progress_bars
from abmll.language.scorer import OptionScorer
from abmll.model.export_notes import named_base, write_notes


@torch.no_grad()
def average_update(members: Sequence[Adapter]) -> tuple[Adapter, float]:
    """The adapter of the members' rank r whose update is nearest to the average of theirs, and how far it is off.

    The average of M updates B A has rank M r at most; of it the r greatest singular values are kept (Eckart and Young).
    How far is the Frobenius norm of what is lost, over all layers, divided by that of the average: 0 if nothing is.
    Only the mean factors are averaged; the standard deviations are the first member's. One member is its own average.
    """
    if len(members) == 1:
        return members[0], 0.0
    average = members[0].clone()
    lost, whole = 0.0, 0.0
    for shape, factors in average.stacks.items():
        own = [member.stacks[shape] for member in members]
        a, b = torch.cat([one.mean_A for one in own], 1), torch.cat([one.mean_B for one in own], 2) / len(members)
        left, values, right = _thin_svd(b.double(), a.double())
        kept = factors.mean_A.shape[1]
        root = values[:, :kept].sqrt()
        factors.mean_B.copy_(left[..., :kept] * root[:, None, :])
        factors.mean_A.copy_(root[:, :, None] * right[:, :kept])
        lost += float(values[:, kept:].square().sum())
        whole += float(values.square().sum())
    return average, (lost / whole) ** 0.5 if whole else 0.0


def _thin_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of every b @ a, (L, d_out, k) @ (L, k, d_in), by way of a core of k x k."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.mT)
    vectors, values, others = torch.linalg.svd(upper @ lower.mT)
    return left @ vectors, values, others @ right.mT


def export_peft(
    scorer: OptionScorer,
    phi: Adapter,
    folder: Path,
    overwrite: bool = False,
    notes: Document | None = None,
    texts: Mapping[str, str] | None = None,
    headed: Bundle | None = None,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes them.

    The update (lora_alpha / r) B A is the mean's; standard deviations are left out. Every adapted layer is named in
    full, so that PEFT's matching rules cannot reach any other. The base is named as on the hub; of a folder only the
    last name is, as its path means nothing elsewhere. ``notes`` (``export_notes``) with what is ``headed``, and files
    of these ``texts``, are written beside them.
    """
    with atomic_folder(folder, overwrite=overwrite) as target:
        write_adapter(target, scorer, phi, scorer.adapter_config.lora_alpha)
        if notes is not None:
            write_notes(target, notes, "peft", headed)
        for name, text in (texts or {}).items():
            (target / name).write_text(text, encoding="utf-8")


def write_adapter(folder: Path, scorer: OptionScorer, phi: Adapter, lora_alpha: float) -> None:
    """Write PEFT's two files of the means of ``phi``, whose rank may be another than the scorer's adapters have."""
    layers = phi.by_layer()
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.mean_A.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.mean_B.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named_base(scorer.base)["name"],
        "r": next(iter(layers.values())).mean_A.shape[0],
        "lora_alpha": lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(layer.inner, Conv1D) for layer in scorer.adapted.values()),
        "inference_mode": True,
        "target_modules": sorted(layers),
    }
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def export_merged(
    scorer: OptionScorer,
    phi: Adapter,
    folder: Path,
    overwrite: bool = False,
    notes: Document | None = None,
    headed: Bundle | None = None,
) -> None:
    """Write model and tokenizer with W0 + (lora_alpha / r) B A as weights, in the base model's dtype.

    The model in memory is not touched; ``notes`` and ``headed`` as in ``export_peft``. Raises ``ConfigError`` for a
    base whose weights are not plain numbers.
    """
    model = scorer.base.twin().model
    merged: dict[str, Tensor] = {}
    for name, layer in phi.by_layer().items():
        linear = model.get_submodule(name)
        if not is_plain(linear.weight):
            raise ConfigError(
                f"{name}: cannot merge into a quantised layer; export with --format peft, load that adapter with "
                "PEFT on an unquantised copy of the model, and call merge_and_unload there"
            )
        update = scorer.space.scaling * layer.mean_B @ layer.mean_A
        update = update.T if isinstance(linear, Conv1D) else update
        with placement.at_hand(linear) as weight:
            merged[f"{name}.weight"] = (weight.float() + update.to(weight.device)).to(weight.dtype)
    with atomic_folder(folder, overwrite=overwrite) as target, no_progress_bars(), warnings.catch_warnings():
        # Of a model with layers in the computer's memory it says that one file of weights has to fit there, too.
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules", UserWarning)
        try:
            model.save_pretrained(target, state_dict=model.state_dict() | merged)
        except SafetensorError as error:  # its word for a disk that takes no more
            raise AbmllError(f"cannot write {folder}: {error}; free some space or choose another folder") from error
        scorer.base.tokenizer.save_pretrained(target)
        give_usual_modes(target)
        if notes is not None:
            write_notes(target, notes, "merged", headed)
