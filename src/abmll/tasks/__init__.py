"""Tasks: what they are, where they come from, how they become prompts, in which order they are visited. No torch here.

The order of visits (``abmll.tasks.sampler``) and the download of BIG-bench (``abmll.tasks.bigbench``) are imported from
their own modules.
"""

from abmll.tasks.prompts import Rendered, render
from abmll.tasks.task import Example, Task

__all__ = ["Example", "Rendered", "Task", "render"]
