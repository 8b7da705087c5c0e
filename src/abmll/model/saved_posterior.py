"""TaskPosterior on disk: its document, and a file of tensors for every member and for its head."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from abmll.common.checkpoint import Bundle, refuse_other_base
from abmll.common.config import AdapterConfig, PromptConfig
from abmll.common.errors import CheckpointError
from abmll.common.settings import flatten, pick
from abmll.language.adapter import Adapter
from abmll.language.scorer import OptionScorer
from abmll.model.multi_label import MultiLabelHead
from abmll.model.prequential import TaskCalibration
from abmll.model.shipped import reference_to, referred_to
from abmll.model.task_head import TaskHead
from abmll.tasks import Example

if TYPE_CHECKING:
    from abmll.model.learned_task import TaskPosterior

HEAD = "head"  # the file of its features


def saved(posterior: "TaskPosterior") -> Bundle:
    """What is written of a posterior: a shipped theta that a head reads with is named, and not written."""
    groups = {_group(number): phi.state_dict() for number, phi in enumerate(posterior.members) if phi is not None}
    reference = None
    if posterior.head is not None:
        reference = reference_to(groups.get(_group(0), {}))
        if reference is not None:
            del groups[_group(0)]
        groups[HEAD] = posterior.head.tensors()
    document = {
        "task_name": posterior.task_name,
        "is_posterior": posterior.is_posterior,
        "members": len(posterior.members),
        "demonstrations": [[one.input, one.options, one.answer] for one in posterior.demonstrations],
        "calibration": None if posterior.calibration is None else posterior.calibration.document(),
        "head": None if posterior.head is None else posterior.head.document(),
        "theta": reference,
        "labels": list(posterior.labels),
        "measured": dict(posterior.measured),
        "base_fingerprint": posterior.scorer.base.fingerprint,
        "settings": posterior.settings | posterior.scorer.settings(),
    }
    return Bundle(groups, document)


def fields_of(bundle: Bundle, scorer: OptionScorer, path: Path) -> dict[str, Any]:
    """The fields of the posterior that was saved, on the model of ``scorer``; ``path`` is named in the errors.

    Raises ``CheckpointError`` where it belongs to other weights or settings, or is damaged.
    """
    document, settings = bundle.document, bundle.document["settings"]
    refuse_other_base(document, scorer.base.is_known_by, scorer.base.name, path)
    _refuse_other_settings(settings, scorer, path)
    of_head = document["head"]
    if document.get("theta") is not None:  # 0.2.0 had none
        members: tuple[Adapter | None, ...] = (_adapter(scorer, referred_to(document["theta"], path), str(path)),)
    elif of_head is not None and _group(0) not in bundle.tensors:
        members = (None,)
    else:
        members = tuple(_member(scorer, bundle, path, number) for number in range(document["members"]))
    head = None
    if of_head is not None:
        kind = MultiLabelHead if of_head.get("is_multi_label") else TaskHead
        head = kind.of(scorer, members[0], of_head, bundle.tensors.get(HEAD, {}), path)
    demonstrations = enumerate(document["demonstrations"])
    calibration = document["calibration"]
    return {
        "members": members,
        "task_name": document["task_name"],
        "is_posterior": document["is_posterior"],
        "settings": settings,
        "demonstrations": tuple(Example(str(n), text, tuple(own), answer) for n, (text, own, answer) in demonstrations),
        "calibration": None if calibration is None else TaskCalibration.of(calibration, path),
        "head": head,
        "labels": tuple(document.get("labels", () if head is None else head.labels)),  # 0.2.0 saved no labels
        "measured": document.get("measured", {}),
    }


def _refuse_other_settings(settings: dict[str, Any], scorer: OptionScorer, path: Path) -> None:
    own = flatten(pick(AdapterConfig, settings), pick(PromptConfig, settings))
    for key, value in flatten(scorer.adapter_config, scorer.prompt).items():
        if own[key] != value:
            raise CheckpointError(
                f"{path}: was learned with {key} = {own[key]}, the scorer has {value}; "
                "give one with the same settings, or none"
            )


def _group(number: int) -> str:
    """The name of a member's file: ``phi``, ``phi_2``, ``phi_3`` and so on."""
    return f"phi_{number + 1}" if number else "phi"


def _member(scorer: OptionScorer, bundle: Bundle, path: Path, number: int) -> Adapter:
    """One member as it was saved."""
    group = _group(number)
    if group not in bundle.tensors:
        raise CheckpointError(f"{path}: lacks {group}.safetensors, so it is damaged; adapt to the task again")
    return _adapter(scorer, bundle.tensors[group], str(path / f"{group}.safetensors"))


def _adapter(scorer: OptionScorer, tensors: dict[str, Tensor], where: str) -> Adapter:
    phi = scorer.new_adapter(0)
    phi.load_state_dict(tensors, where)
    return phi
