"""Cells on heads that a server keeps: what they have learned put back, and answered by many in one pass."""

from collections.abc import Callable

from abmll.common.config import LearningConfig
from abmll.language.features import Features
from abmll.model.meta_learner import AbmllModel
from abmll.model.task_head import TaskHead
from benchmarks.bench import Bench
from benchmarks.contenders import Setting
from benchmarks.rows import Row, timed

EXAMPLES, HEADS = 20, 32


def kept_heads(bench: Bench) -> list[Row]:
    """A head put back / learned, from features; a question to each of 32 heads / all of them to one, with their pass.

    The heads are of one task, and differ in their seeds alone, so that both read the same questions.
    """
    model = AbmllModel(bench.base(), Setting(layers="top-6").adapter(), bench.workload.prompt)
    model.learning = LearningConfig(method="head")
    task = next(task for task in bench.workload.evaluation if len(task.train) >= EXAMPLES and len(task.test) >= HEADS)
    support, asked = task.train[:EXAMPLES], task.test[:HEADS]
    encoded, reader = model.scorer.encode(asked, task.name), model.reader()
    features = reader.read(model.scorer.encode(support, task.name))

    def fresh(seed: int) -> TaskHead:
        return TaskHead.of_features(reader, "head", model.head_prior, support, features, seed)

    heads = [fresh(seed) for seed in range(2 if bench.quick else HEADS)]
    kept = [head.fitted() for head in heads if head.posterior]

    def read() -> Features:
        reader.kept.clear()
        return reader.read(encoded)

    def each(number: int) -> None:
        found = read()
        for at in range(HEADS):
            one = Features(*(part[at : at + 1] for part in found))
            heads[at % len(heads)].answer(asked[at : at + 1], one)

    contenders: dict[str, Callable[[int], object]] = {
        "learned": lambda number: fresh(number % len(heads)).posterior,
        "put back": lambda number: fresh(number % len(heads)).with_fitted(kept[number % len(heads)], "kept"),
        "many": each,
        "one": lambda number: heads[0].answer(asked, read()),
    }
    rounds = bench.rounds(contenders)
    return [
        timed(f"a head of {EXAMPLES} examples put back / learned, from features", rounds, "put back", "learned"),
        timed(f"{HEADS} heads, a question each / one head, all of them; one pass", rounds, "many", "one", 1.1),
    ]
