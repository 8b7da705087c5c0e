"""Tasks: what they are, where they come from, how they become prompts, in which order they are learned.

Not here: torch, or any language model. The order of episodes (``order``) and the download of BIG-bench (``bigbench``) are
imported from their own modules, because they need NumPy or are rarely wanted.
Start with ``read``, which makes tasks of files, then ``prompts``.
"""

from abmll.tasks.leaks import check_leaks, refuse_leaks
from abmll.tasks.prompts import Rendered, render
from abmll.tasks.read import load_task, load_tasks
from abmll.tasks.suite import Suite, load_suite, shipped_suites
from abmll.tasks.types import Example, Task

__all__ = [
    "Example",
    "Rendered",
    "Suite",
    "Task",
    "check_leaks",
    "load_suite",
    "load_task",
    "load_tasks",
    "refuse_leaks",
    "render",
    "shipped_suites",
]
