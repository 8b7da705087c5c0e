"""Amortized Bayesian meta-learning of LoRA adapters for language models.

The public names load on first use, so that ``import abmll`` costs nothing: ``abmll --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abmll.config import TrainConfig
    from abmll.model import AbmllModel
    from abmll.prediction import Prediction
    from abmll.task_posterior import TaskPosterior
    from abmll.tasks import Example, Task, load_suite, load_task, load_tasks
    from abmll.training import MetaTrainer

    __version__: str

__all__ = [
    "AbmllModel",
    "Example",
    "MetaTrainer",
    "Prediction",
    "Task",
    "TaskPosterior",
    "TrainConfig",
    "__version__",
    "load_suite",
    "load_task",
    "load_tasks",
]

_HOMES = {
    "AbmllModel": "abmll.model",
    "Example": "abmll.tasks",
    "MetaTrainer": "abmll.training",
    "Prediction": "abmll.prediction",
    "Task": "abmll.tasks",
    "TaskPosterior": "abmll.task_posterior",
    "TrainConfig": "abmll.config",
    "load_suite": "abmll.tasks",
    "load_task": "abmll.tasks",
    "load_tasks": "abmll.tasks",
}


def __getattr__(name: str) -> Any:
    """Look up a public name in its module, on first use (PEP 562)."""
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'abmll' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """The installed version; a source tree that is merely on the path has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("abmll")
    except PackageNotFoundError:
        return "0+unknown"
