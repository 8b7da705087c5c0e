"""Cells on questions to many tasks at once, as a server gets them: one to each of 32 tasks / all 32 to one task."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, cycle, islice, zip_longest

import torch

from abmll.common.config import LearningConfig
from abmll.language.features import FeatureReader
from abmll.model.beginnings import Beginnings
from abmll.model.learned_task import TaskPosterior
from abmll.model.meta_learner import AbmllModel
from abmll.model.together import Request, predict_together
from abmll.tasks import Example
from benchmarks.bench import Bench
from benchmarks.contenders import Setting
from benchmarks.rows import Row, timed

TASKS = 32
WORDS = 28  # of a question at most
LABELS = ("billing", "delivery", "other")
SUPPORT = 20  # examples that a head is learned from


def adapters(bench: Bench, setting: Setting, instruction: bool) -> list[Row]:
    """Adapters, four samples each. Behind an ``instruction`` all prompts begin alike, which only one task can use."""
    prompt = replace(bench.workload.prompt, answer="text", instruction=instruction)
    model = AbmllModel(bench.base(setting.dtype), setting.adapter(), prompt)
    count = 4 if bench.quick else TASKS
    posteriors = [_posterior(model, number) for number in range(count)]
    asked = _examples(bench, count)
    requests = [Request(posterior, [one]) for posterior, one in zip(posteriors, asked, strict=True)]
    beginnings = Beginnings()  # as a server has it: kept from the second answer on
    contenders: dict[str, Callable[[int], object]] = {
        "mixed": lambda number: predict_together(requests, beginnings=beginnings),
        "one task": lambda number: posteriors[number % count].predict(asked),
        "in turn": lambda number: [one.posterior.predict(one.examples) for one in requests],
    }
    rounds = bench.rounds(contenders)
    begins = "behind an instruction" if instruction else "without an instruction"
    length = sum(map(len, model.scorer.encode(asked, "task"))) / count
    label = f"{count} questions of {length:.0f} tokens {begins}, {setting.layers} layers, {setting.label(bench)}"
    return [
        timed(f"many tasks / one task ({label})", rounds, "mixed", "one task", 1.35),
        timed(f"many tasks together / in turn ({label})", rounds, "mixed", "in turn"),
    ]


def heads(bench: Bench) -> list[Row]:
    """Heads that are fitted already, on features that are read once for all of them."""
    model = AbmllModel(bench.base(), Setting(layers="top-6").adapter(), bench.workload.prompt)
    model.learning = LearningConfig(method="head")
    count = 3 if bench.quick else TASKS
    examples = _examples(bench, count + SUPPORT)
    asked, support = examples[:count], examples[count:]
    learned = [
        [replace(one, answer=(number + place) % len(LABELS)) for place, one in enumerate(support)]
        for number in range(count)
    ]
    answering = [model.adapt(own, task_name="task") for own in learned]
    encoded = model.scorer.encode(asked, "task")
    readers = [_reader(posterior) for posterior in answering]
    for posterior in answering:
        posterior.predict(asked[:1])  # fitted

    def forget() -> None:
        for reader in readers:
            reader.kept.clear()

    def together(number: int) -> None:
        forget()
        readers[0].read(encoded)
        for posterior, one in zip(answering, asked, strict=True):
            posterior.predict([one])

    def one_task(number: int) -> None:
        forget()
        answering[number % count].predict(asked)

    rounds = bench.rounds({"mixed": together, "one task": one_task})
    name = f"heads of many tasks / one task ({count} questions, {bench.dtype})"
    return [timed(name, rounds, "mixed", "one task", 1.10)]


def _reader(posterior: TaskPosterior) -> FeatureReader:
    assert posterior.head is not None
    return posterior.head.reader


def _posterior(model: AbmllModel, number: int) -> TaskPosterior:
    """An adapter whose mean is not zero."""
    phi, generator = model.theta.clone(), torch.Generator().manual_seed(number)
    for tensor in phi.mean_tensors():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.add_(0.02 * noise.to(tensor.device))
    return TaskPosterior(model.scorer, (phi,), "task", True, {}, labels=LABELS)


def _examples(bench: Bench, count: int) -> Sequence[Example]:
    """The beginnings of so many questions of the unseen tasks in turn, without an answer.

    Many a task's questions begin alike, which only the answers of one task together could use.
    """
    rounds = zip_longest(*(task.test[:count] for task in bench.workload.evaluation))
    texts = [" ".join(one.input.split()[:WORDS]) for one in chain(*rounds) if one is not None]
    chosen = islice(cycle(dict.fromkeys(texts)), count)
    return [Example(str(number), text, LABELS, None) for number, text in enumerate(chosen)]
