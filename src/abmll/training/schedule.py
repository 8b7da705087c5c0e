"""The learning rates' factor over the episodes: a pure function, so that a resumed run needs no stored state."""

import math

from abmll.common.config import LearningConfig


def rate(config: LearningConfig, episode: int, max_steps: int) -> float:
    """The factor for episode ``episode`` (from 0): linear warm-up, then constant, linear or cosine decay to zero."""
    if episode < config.warmup_steps:
        return (episode + 1) / (config.warmup_steps + 1)
    if config.lr_scheduler_type == "constant":
        return 1.0
    done = (episode - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return 1.0 - done if config.lr_scheduler_type == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
