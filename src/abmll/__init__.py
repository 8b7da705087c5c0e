"""Amortized Bayesian meta-learning of LoRA adapters for language models.

The public names load on first use, so that ``import abmll`` costs nothing: ``abmll --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abmll._version import __version__
    from abmll.common.config import TrainConfig
    from abmll.model.classifier import AbmllClassifier
    from abmll.model.generation import WrittenAnswer
    from abmll.model.learned_task import TaskPosterior
    from abmll.model.meta_learner import AbmllModel
    from abmll.model.prediction import Prediction
    from abmll.serving.client import Client
    from abmll.tasks import Example, Task, WrittenExample, load_suite, load_task, load_tasks
    from abmll.training.trainer import MetaTrainer

__all__ = [
    "AbmllClassifier",
    "AbmllModel",
    "Client",
    "Example",
    "MetaTrainer",
    "Prediction",
    "Task",
    "TaskPosterior",
    "TrainConfig",
    "WrittenAnswer",
    "WrittenExample",
    "__version__",
    "load_suite",
    "load_task",
    "load_tasks",
]

_HOMES = {
    "AbmllClassifier": "abmll.model.classifier",
    "AbmllModel": "abmll.model.meta_learner",
    "Client": "abmll.serving.client",
    "Example": "abmll.tasks",
    "MetaTrainer": "abmll.training.trainer",
    "Prediction": "abmll.model.prediction",
    "Task": "abmll.tasks",
    "TaskPosterior": "abmll.model.learned_task",
    "TrainConfig": "abmll.common.config",
    "WrittenAnswer": "abmll.model.generation",
    "WrittenExample": "abmll.tasks",
    "__version__": "abmll._version",
    "load_suite": "abmll.tasks",
    "load_task": "abmll.tasks",
    "load_tasks": "abmll.tasks",
}


def __getattr__(name: str) -> Any:
    """Look up a public name in its module, on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'abmll' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
