"""Settings that no training can have, refused before anything is loaded or written."""

from abmll.common.config import TrainConfig
from abmll.common.errors import ConfigError
from abmll.methods import find_rule


def refuse_unfit(config: TrainConfig) -> None:
    """Raise ``ConfigError`` for a rule without a training, and for an outer step that a checkpoint would cut in two."""
    rule = find_rule(config.method)
    if rule.base_method is not None:
        raise ConfigError(f"method: '{rule.name}' is not trained itself; train {rule.base_method}, which it continues")
    if not rule.is_trained:
        raise ConfigError(f"method: '{rule.name}' is not trained; it is a baseline of 'abmll compare'")
    for name in ("max_steps", "save_steps", "eval_steps"):
        episodes = getattr(config, name) or 0  # eval_steps may be none
        if episodes % config.meta_batch:
            fitting = -(-episodes // config.meta_batch) * config.meta_batch
            raise ConfigError(
                f"{name} is {episodes}, but an outer step takes meta_batch = {config.meta_batch} episodes and none may "
                f"be cut in two; use {name} = {fitting}"
            )


def refuse_too_many(processes: int, meta_batch: int) -> None:
    """Raise ``ConfigError`` where some of the processes would have no episode of an outer step to learn."""
    if processes > meta_batch:
        raise ConfigError(
            f"meta_batch is {meta_batch}, but {processes} processes share out the episodes of an outer step; use "
            f"meta_batch = {processes} or a multiple of it, or fewer processes"
        )
