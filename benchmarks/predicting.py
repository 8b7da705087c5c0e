"""Cells on prediction and adaptation.

A plain forward is the bare Hugging Face model's own: prompt and right answer of the same questions, padded to the
longest, logits of the whole vocabulary at every position, no gradient. ABMLL scores every option of each question.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from abmll.common.config import LearningConfig, PredictConfig
from abmll.language.encoding import Encoded
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import predict
from abmll.posterior.head import HeadPosterior
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.tasks.order import adaptation_batches
from benchmarks.bench import Bench
from benchmarks.contenders import ALL, NUMBERS, Ours, Setting, plain_lora
from benchmarks.pairs import Spread
from benchmarks.rows import Row, absolute, timed
from benchmarks.workload import padded, questions

LINEARIZED = "linearized"
WAYS = {"mean": PredictConfig(num_samples=0)}
WAYS |= {f"{count} samples": PredictConfig(num_samples=count) for count in (4, 16, 64)}
WAYS[LINEARIZED] = PredictConfig(predictive="linearized")
QUESTIONS = 5  # asked at once
HEADS = ((30, 3, False), (30, 3, True), (300, 2, False), (300, 5, False), (300, 5, True), (300, 30, False))
REFERENCE = 256  # samples that the others are compared with


class PlainForward:
    """The bare model's forward pass, with one of transformers' attention implementations."""

    def __init__(self, bench: Bench, attention: str) -> None:
        self.model: Any = bench.base().model
        self.model.set_attn_implementation(attention)

    @torch.no_grad()
    def __call__(self, examples: Sequence[Encoded]) -> Tensor:
        batch = padded(examples, self.model.config.get_text_config().pad_token_id or 0, self.model.device)
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def prediction(bench: Bench, setting: Setting, ways: Sequence[str], targets: dict[str, float]) -> list[Row]:
    """Prediction of a few questions in each of ``ways`` / a plain forward of the same questions."""
    model = AbmllModel(bench.base(), setting.adapter(), bench.workload.prompt)
    asked = []
    for number in range(NUMBERS):
        name, examples = questions(bench.workload, number, QUESTIONS)
        asked.append(model.scorer.encode(examples, name))
    plain = bench.faster_attention(partial(PlainForward, bench), lambda plain: plain(asked[0]))
    contenders: dict[str, Callable[[int], object]] = {"plain": lambda number: plain(asked[number])}
    for name in ways:
        contenders[name] = _predictor(model, asked, WAYS[name])
    rounds = bench.rounds(contenders)
    label = f"{QUESTIONS} questions, {_depth(setting)}, {setting.label(bench)}"
    return [
        timed(f"prediction, {name} / plain forward ({label})", rounds, name, "plain", targets.get(name))
        for name in ways
    ]


def prediction_error(bench: Bench, setting: Setting, count: int = 3) -> list[Row]:
    """Mean absolute difference of the probabilities from those of 256 samples, after adaptation to 20 examples.

    The spread is over the questions, which are of the task with the shortest prompts, since some 600 passes read them.
    The last row is what 256 other samples differ by: the reference's own error is in all of them.
    """
    model = AbmllModel(bench.base(), setting.adapter(), bench.workload.prompt)
    reference = PredictConfig(num_samples=16 if bench.quick else REFERENCE)
    asked = [(task, model.scorer.encode(task.test[:count], task.name)) for task in bench.workload.evaluation]
    task, encoded = min(asked, key=lambda pair: sum(map(len, pair[1])))
    phi = model.adapt(task.train[:20], task_name=task.name).phi
    exact = predict(model.scorer, [phi], encoded, reference, seed=0)
    label = f"{count} questions of {task.name}, {_depth(setting)}, {setting.label(bench)}"
    rows = []
    for name, how in {**WAYS, f"{reference.num_samples} other samples": reference}.items():
        found = predict(model.scorer, [phi], encoded, how, seed=1)
        errors = (found.probs - exact.probs).abs().sum(-1) / exact.num_options
        title = f"error, {name}, against {reference.num_samples} samples ({label})"
        rows.append(absolute(title, Spread.of(errors.tolist()), ""))
    return rows


def adaptation(bench: Bench, setting: Setting, num_examples: int, steps: int, batch_size: int) -> list[Row]:
    """Learning an unseen task from ``num_examples`` / plain LoRA's Trainer steps on the same batches."""
    model = AbmllModel(bench.base(), setting.adapter(), bench.workload.prompt)
    plain = plain_lora(bench, setting, Ours(bench, setting))
    tasks = [task for task in bench.workload.evaluation if len(task.train) >= num_examples]
    learned = [(task.name, task.train[:num_examples]) for task in tasks]
    encoded = [model.scorer.encode(examples, name) for name, examples in learned]
    chosen = adaptation_batches(0, num_examples, batch_size, steps)

    def adapt(number: int) -> None:
        name, examples = learned[number % len(learned)]
        model.adapt(examples, task_name=name, steps=steps, batch_size=batch_size)

    def tune(number: int) -> None:
        examples = encoded[number % len(learned)]
        plain.learn([[examples[index] for index in batch] for batch in chosen])

    rounds = bench.rounds({"adapt": adapt, "tune": tune})
    label = f"{steps} steps of {batch_size}, {setting.label(bench)}"
    return [timed(f"adapt from {num_examples} examples / PEFT LoRA + Trainer ({label})", rounds, "adapt", "tune")]


def head(bench: Bench, num_examples: int, layers: str | None = None) -> list[Row]:
    """Learning a task with a head, and predicting with it / a plain forward of the same examples; none are kept.

    Features are those of the bare model, or with a theta in all linear maps of these ``layers``, of whatever numbers.
    """
    model = AbmllModel(bench.base(), Setting(ALL, layers=layers or "top-6").adapter(), bench.workload.prompt)
    model.learning = LearningConfig(method="head" if layers is None else "trained-head")
    tasks = [task for task in bench.workload.evaluation if len(task.train) >= num_examples]
    learned = [(task.name, task.train[:num_examples], model.scorer.encode(task.train, task.name)) for task in tasks]
    asked = [questions(bench.workload, number, QUESTIONS) for number in range(len(tasks))]
    answering = [model.adapt(examples, task_name=name) for name, examples, _ in learned]
    for posterior, (_, some) in zip(answering, asked, strict=True):
        posterior.predict(some[:1])  # fitted, which is part of learning
    encoded = [model.scorer.encode(examples, name) for name, examples in asked]
    plain = bench.faster_attention(partial(PlainForward, bench), lambda plain: plain(encoded[0]))

    def adapt(number: int) -> None:
        model.readers.clear()  # with the features that it keeps
        name, examples, _ = learned[number % len(tasks)]
        task_head = model.adapt(examples, task_name=name).head
        assert task_head is not None
        assert task_head.posterior

    def answer(number: int) -> None:
        posterior = answering[number % len(tasks)]
        assert posterior.head is not None
        posterior.head.reader.kept.clear()
        posterior.predict(asked[number % len(tasks)][1])

    contenders: dict[str, Callable[[int], object]] = {
        "adapt": adapt,
        "read": lambda number: plain(learned[number % len(tasks)][2][:num_examples]),
        "predict": answer,
        "forward": lambda number: plain(encoded[number % len(tasks)]),
    }
    rounds, what = bench.rounds(contenders), "a head" if layers is None else f"a head and theta ({layers})"
    return [
        timed(f"learning {num_examples} examples with {what} / plain forward of them", rounds, "adapt", "read", 1.2),
        timed(f"prediction with {what} / plain forward ({QUESTIONS} questions)", rounds, "predict", "forward", 1.05),
    ]


def heads(bench: Bench) -> list[Row]:
    """A head of features that are read already, with answers to 200 questions / that of 30 examples and 3 labels."""
    contenders = {
        f"{size} examples, {options} labels{', ordered' * ordered}": head_of(size, options, ordered)
        for size, options, ordered in (HEADS[:2] if bench.quick else HEADS)
    }
    smallest, *others = contenders
    rounds = bench.rounds(contenders)
    return [timed(f"a head of {name} / {smallest}", rounds, name, smallest) for name in others]


def head_of(size: int, options: int, ordered: bool) -> Callable[[int], object]:
    """Features whose directions matter less and less, which the answers follow; no language model."""
    generator = torch.Generator().manual_seed(size + options)
    spread = torch.arange(1, 301) ** -0.5
    hidden = torch.randn(size + 200, 2, 300, generator=generator) * spread
    scores = torch.randn(size + 200, options, 2, generator=generator, dtype=torch.float64)
    logits = (hidden * spread).flatten(1) @ torch.randn(600, options, generator=generator)
    answers = torch.softmax(3 * logits / logits.std(), -1).multinomial(1, generator=generator)[:size, 0]
    support = Known(hidden[:size], scores[:size], True, ordered)
    asked = Known(hidden[size:], scores[size:], True, ordered)
    return lambda number: HeadPosterior(HeadPrior(), support, answers, number).probs(asked)


def _predictor(model: AbmllModel, asked: Sequence[Sequence[Encoded]], how: PredictConfig) -> Callable[[int], object]:
    return lambda number: predict(model.scorer, [model.theta], asked[number], how)


def _depth(setting: Setting) -> str:
    return "full depth" if setting.layers is None else f"{setting.layers} layers"
