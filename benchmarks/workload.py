"""What everybody works on: real prompts of real tasks, at their real lengths.

The tasks are those of the suite ``bigbench-demo``, fetched as ``abmll demo`` fetches them. Batches are drawn as
``abmll train`` draws them; the peers read the prompt and the right answer of the same examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from abmll.common.config import PromptConfig
from abmll.common.settings import pick
from abmll.language.encoding import Encoded
from abmll.tasks import Example, Task, load_suite
from abmll.tasks.bigbench import fetch_bigbench

SUITE = "bigbench-demo"
IGNORED = -100  # a label that takes no part in the loss, in transformers' convention


@dataclass(frozen=True)
class Workload:
    """Tasks to train on, unseen tasks to be asked about, and how their examples become prompts."""

    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    prompt: PromptConfig


def load_workload(announce: Callable[[str], None], data_dir: Path | None = None) -> Workload:
    """The suite's tasks, from ``data_dir`` or else from the cache, where they are fetched to if need be."""
    if data_dir is None:
        fetch_bigbench(announce)
    suite = load_suite(SUITE, data_dir)
    return Workload(suite.train, suite.evaluation, pick(PromptConfig, suite.prompt))


def questions(workload: Workload, number: int, count: int) -> tuple[str, Sequence[Example]]:
    """Name and ``count`` test examples of one unseen task, another one for each ``number``."""
    task = workload.evaluation[number % len(workload.evaluation)]
    return task.name, task.test[:count]


def right_answer(encoded: Encoded) -> dict[str, list[int]]:
    """Prompt and right answer as plain LoRA reads them: tokens, and labels on the answer alone."""
    assert encoded.answer is not None
    answer = encoded.options[encoded.answer]
    return {
        "input_ids": [*encoded.prompt, *answer],
        "attention_mask": [1] * (len(encoded.prompt) + len(answer)),
        "labels": [IGNORED] * len(encoded.prompt) + list(answer),
    }


def padded(examples: Sequence[Encoded], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """The right answers of ``examples`` as one batch (N, T), padded on the right to the longest."""
    sequences = [right_answer(example) for example in examples]
    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    rows = {
        key: [sequence[key] + [value] * (longest - len(sequence[key])) for sequence in sequences]
        for key, value in fill.items()
    }
    return {key: torch.tensor(row, device=device) for key, row in rows.items()}


def cut_to(encoded: Encoded, length: int) -> Encoded:
    """The example with its prompt repeated or cut so that the whole sequence has ``length`` tokens."""
    room = length - (len(encoded) - len(encoded.prompt))
    repeats = -(-room // len(encoded.prompt))
    return Encoded((encoded.prompt * repeats)[-room:], encoded.options, encoded.answer)
