"""Tasks: what they are, where they come from, how they become prompts, in which order they are learned.

Not here: torch, or any language model. ``order`` and ``stored`` (which need NumPy) and ``bigbench`` are imported by
themselves.
Start with ``types`` (what a task is), then ``read`` (tasks out of files) and ``prompts``.
"""

from abmll.tasks.definition import shipped_suites
from abmll.tasks.leaks import check_leaks, refuse_leaks
from abmll.tasks.prompts import Rendered, render
from abmll.tasks.read import load_task, load_tasks
from abmll.tasks.suite import Suite, load_suite
from abmll.tasks.types import Example, Task, WrittenExample

__all__ = [
    "Example",
    "Rendered",
    "Suite",
    "Task",
    "WrittenExample",
    "check_leaks",
    "load_suite",
    "load_task",
    "load_tasks",
    "refuse_leaks",
    "render",
    "shipped_suites",
]
