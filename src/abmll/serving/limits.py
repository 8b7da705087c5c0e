"""What a server may be asked to do, and how much of it: the settings of ``abmll serve``."""

from dataclasses import dataclass

from abmll.common.settings import Checked, setting


@dataclass(frozen=True)
class ServeConfig(Checked):
    """Limits of one server. They hold for every tenant, each with a share of its own where one is spoken of."""

    batch_window_ms: float = setting(3.0, "how long a request waits for others to share a pass with", at_least=0)
    max_queue: int = setting(20_000, "texts that may wait, of all tenants together; of more, 429", at_least=1)
    max_texts: int = setting(10_000, "texts of one request", at_least=1)
    max_text_characters: int = setting(1_000_000, "characters of one text", at_least=1)
    max_examples: int = setting(1_000, "labelled examples of one task", at_least=1)
    max_tasks: int = setting(100_000, "tasks of one tenant", at_least=1)
    max_body_mb: float = setting(32.0, "size of a request's body in megabytes", above=0)
    body_seconds: float = setting(30.0, "time in which a request's body must have come", above=0)
    requests_per_second: float = setting(
        0.0, "requests of one tenant a second, with bursts of ten times as many (0: no limit)", at_least=0
    )
    memory_mb: float = setting(
        512.0,
        "what learned tasks may take in memory; what was read of their texts takes up to five eighths more",
        above=0,
    )
    kept_answers: int = setting(1_000_000, "answers kept, so that the same request gets the same bytes", at_least=0)
