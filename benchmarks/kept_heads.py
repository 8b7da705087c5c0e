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

    The heads are of one task, so that both read the same questions, but each has its tensors for itself.
    """
    model = AbmllModel(bench.base(), Setting(layers="top-6").adapter(), bench.workload.prompt)
    model.learning = LearningConfig(method="head")
    task = next(task for task in bench.workload.evaluation if len(task.train) >= EXAMPLES and len(task.test) >= HEADS)
    support, asked = task.train[:EXAMPLES], task.test[:HEADS]
    encoded, reader = model.scorer.encode(asked, task.name), model.reader()
    features = reader.read(model.scorer.encode(support, task.name))

    def fresh() -> TaskHead:
        return TaskHead.of_features(reader, "head", model.head_prior, support, features)

    first = fresh()
    first.classifier(is_labelled=True)
    kept = first.fitted()
    copies = [{name: one.clone() for name, one in kept.items()} for _ in range(HEADS)]
    heads = [fresh().with_fitted(own, "kept") for own in copies]

    def read() -> Features:
        reader.kept.clear()
        return reader.read(encoded)

    def each(number: int) -> None:
        found = read()
        for at, head in enumerate(heads):
            head.answer(asked[at : at + 1], Features(*(part[at : at + 1] for part in found)))

    contenders: dict[str, Callable[[int], object]] = {
        "learned": lambda number: fresh().posterior,
        "put back": lambda number: fresh().with_fitted(kept, "kept"),
        "many": each,
        "one": lambda number: heads[0].answer(asked, read()),
    }
    rounds = bench.rounds(contenders)
    return [
        timed(f"a head of {EXAMPLES} examples put back / learned, from features", rounds, "put back", "learned"),
        timed(f"{HEADS} heads, a question each / one head, all of them; one pass", rounds, "many", "one", 1.1),
    ]
