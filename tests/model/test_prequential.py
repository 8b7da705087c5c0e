"""The calibration of a task: its evidence are answers before learning; it goes wherever theta and phi go."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TaskPosterior, TrainConfig
from abmll.common.config import EvaluateConfig, LearningConfig, PredictConfig, PromptConfig
from abmll.common.errors import CheckpointError
from abmll.methods import find_rule, make_rule
from abmll.model.prequential import LEAST, TaskCalibration, evidence, infer_calibration, label_index, labels_of
from abmll.posterior.calibration import CalibrationPrior, Evidence, before_examples, infer
from abmll.tasks import Example, Task
from abmll.tasks.order import adaptation_batches, sample_seed
from abmll.training.empirical_bayes import learn_calibration_prior

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
PRIOR = CalibrationPrior(0.4, 0.5, 0.6)
PLAIN = PredictConfig(num_samples=2, use_calibration=False)
READ = PredictConfig(num_samples=2)


@pytest.fixture
def make_model(tiny_llama: Path) -> Callable[[], AbmllModel]:
    """The tiny model afresh, as often as it is needed."""

    def make() -> AbmllModel:
        model = AbmllModel.from_base(
            str(tiny_llama), prompt=SHORT, r=2, layers_to_transform="1", target_modules=["q_proj", "v_proj"]
        )
        model.learning = LearningConfig()
        return model

    return make


def example(options: tuple[str, ...], answer: int | None) -> Example:
    return Example("0", "text", options, answer)


def test_labels_are_what_all_examples_can_be_answered_with() -> None:
    assert labels_of([example(("b", "a"), 0), example(("a", "b"), 0)]) == ("b", "a")
    assert labels_of([example(("b", "a"), 0), example(("a", "c"), 0)]) == ()
    index = label_index([example(("c", "a"), 0), example(("a", "b", "d"), 0)], ("b", "a"), 3)
    assert index.tolist() == [[-1, 1, -1], [1, 0, -1]]


def test_evidence_has_the_labels_order_and_the_first_answer_of_each() -> None:
    asked = [example(("b", "a"), 0), example(("a", "b"), 0)]
    first, again = torch.tensor([[-0.1, -2.0]]), torch.tensor([[-9.0, -9.0]])
    found = evidence(asked, [([1], first), ([1], again), ([0], torch.tensor([[-3.0, -0.5]]))])
    assert found.is_labelled
    torch.testing.assert_close(found.log_probs, torch.tensor([[-2.0, -0.1], [-3.0, -0.5]]).double())
    assert found.answers.tolist() == [1, 0]  # 'a' and 'b' in the order b, a


def test_an_option_without_any_chance_is_an_option_still() -> None:
    found = evidence([example(("a", "b"), 1)], [([0], torch.tensor([[0.0, -torch.inf]]))])
    assert found.log_probs.tolist() == [[0.0, LEAST]]


def test_evidence_of_differing_options_has_no_labels() -> None:
    asked = [example(("a", "b", "c"), 2), example(("d", "e"), 1)]
    found = evidence(asked, [([0, 1], torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.0, -torch.inf]]))])
    assert not found.is_labelled
    assert found.log_probs[1].tolist() == [-0.5, -1.0, -torch.inf]
    assert found.answers.tolist() == [2, 1]


def test_what_was_answered_before_each_step_is_the_evidence(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    """Against the rule's own steps, each preceded by a look at what it would answer."""
    toy_task = toy_tasks[0]
    model, support = tiny_model, list(toy_task.train)[:6]
    model.calibration_prior = PRIOR
    posterior = model.adapt(support, task_name=toy_task.name, steps=3, batch_size=2, seed=4)
    rule = make_rule(model.scorer, model.learning, 1)
    state, given = rule.init(model.theta), []
    encoded = model.scorer.encode(support, toy_task.name)
    for step, chosen in enumerate(adaptation_batches(4, 6, 2, 3)):
        batch = model.scorer.batch([encoded[index] for index in chosen])
        generators = [torch.Generator().manual_seed(sample_seed(4, "adaptation noise", step)) for _ in range(2)]
        loss = rule.inner_loss(state, batch, generators[0])
        assert loss.options is not None
        torch.testing.assert_close(loss.options.exp().sum(-1), torch.ones(2))
        given.append((chosen, loss.options))
        rule.inner_step(state, batch, generators[1], 1.0)
    wanted = infer_calibration(PRIOR, support, evidence(support, given))
    assert posterior.calibration is not None
    assert posterior.calibration.labels == wanted.labels == toy_task.train[0].options
    torch.testing.assert_close(posterior.calibration.points, wanted.points)


def test_a_prediction_is_read_unless_it_is_not_to_be(
    tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path
) -> None:
    model, support, asked = tiny_model, list(toy_tasks[0].train)[:6], list(toy_tasks[0].test)
    bare = model.adapt(support, steps=2, seed=1)
    assert bare.calibration is None
    model.calibration_prior = PRIOR
    posterior = model.adapt(support, steps=2, seed=1)
    plain = posterior.predict(asked, PLAIN)
    assert torch.equal(plain.probs, bare.predict(asked, READ).probs)
    read = posterior.predict(asked, READ)
    assert not torch.allclose(read.probs, plain.probs)
    torch.testing.assert_close(read.probs.sum(-1), torch.ones(len(asked), dtype=torch.float64))
    assert bool((read.mutual_information > 0).all())
    assert float(posterior.predict(asked, PredictConfig(num_samples=0)).mutual_information.max()) == 0.0
    posterior.save_pretrained(tmp_path / "posterior")
    loaded = TaskPosterior.from_pretrained(tmp_path / "posterior", scorer=model.scorer)
    assert torch.equal(loaded.predict(asked, READ).probs, read.probs)


def test_held_out_examples_of_other_options_take_the_labels_away(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    """Half of a task's examples have a third option; the other half has not, and may be all that is adapted to."""
    wider = [replace(one, options=(*one.options, "maybe")) for one in toy_tasks[0].train]
    task = replace(toy_tasks[0], examples=tuple(wider[:3] + list(toy_tasks[0].train[3:])))
    found = [learn_calibration_prior(tiny_model, [task], num_tasks=1, num_examples=3, seed=seed) for seed in range(4)]
    assert all(math.isfinite(one.mean) for one in found)


def test_theta_alone_answers_with_the_prior(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    model = tiny_model
    model.calibration_prior = PRIOR
    posterior = model.theta_as_posterior(toy_tasks[0].name)
    assert posterior.calibration is not None
    assert torch.equal(posterior.calibration.points, before_examples(PRIOR).points)
    assert posterior.calibration.labels == ()


def test_rules_that_take_no_step_keep_the_prior(toy_tasks: list[Task]) -> None:
    support = list(toy_tasks[0].train)[:4]
    found = infer_calibration(PRIOR, support, evidence(support, []))
    labelled = infer(PRIOR, evidence(support, []))
    assert found.labels == toy_tasks[0].train[0].options
    assert torch.equal(found.points, labelled.points)
    document = found.document()
    assert TaskCalibration.of(document, Path("p")).document() == document
    for damaged in ({"labels": ["yes"]}, {"points": [0.0]}, {"points": [[-1.0, 0.0, 0.0]]}, {"points": "x"}):
        with pytest.raises(CheckpointError, match="p: its calibration cannot be used"):
            TaskCalibration.of(document | damaged, Path("p"))
    with pytest.raises(CheckpointError, match="p: its calibration cannot be used"):
        TaskCalibration.of({}, Path("p"))


def test_theta_s_calibration_is_learned_from_held_out_examples(
    tiny_model: AbmllModel, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    adapt = tiny_model.adapt

    def spy(examples: Sequence[Example], **more: Any) -> TaskPosterior:
        seen.append((len(examples), more["steps"]))
        return adapt(examples, **more)

    monkeypatch.setattr(tiny_model, "adapt", spy)
    learn = partial(
        learn_calibration_prior, tiny_model, toy_tasks, num_tasks=2, num_examples=3, how=EvaluateConfig(steps=1)
    )
    found = learn(seed=1)
    assert seen == [(3, 1), (3, 1)]
    assert found != CalibrationPrior()
    assert learn(seed=1) == found
    assert learn(seed=2) != found


def run(model: AbmllModel, tasks: list[Task], folder: Path, **more: Any) -> MetaTrainer:
    settings: dict[str, Any] = {"max_steps": 2, "inner_steps": 2, "per_device_train_batch_size": 2} | more
    return MetaTrainer(model, tasks, TrainConfig(output_dir=str(folder), **settings))


def test_a_run_leaves_its_calibration_at_its_end(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> None:
    trainer = run(tiny_model, toy_tasks, tmp_path / "run", save_steps=1, calibration_examples=3, calibration_tasks=2)
    trainer.train()
    assert trainer.model.calibration_prior is not None
    assert AbmllModel.from_pretrained(tmp_path / "run").calibration_prior == trainer.model.calibration_prior
    episodes, whole = trainer.folder.cost(1), trainer.folder.cost()
    assert (episodes["steps"], whole["steps"]) == (3, 2 * 3 + 2 * 10)
    assert whole["forward_passes"] > 2 * 2 + 20
    again = run(tiny_model, toy_tasks, tmp_path / "again", calibration_examples=3, calibration_tasks=2)
    again.train()
    assert again.model.calibration_prior == trainer.model.calibration_prior


def test_a_finished_run_is_handed_over_once_more(
    make_model: Callable[[], AbmllModel], toy_tasks: list[Task], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"calibration_examples": 3, "calibration_tasks": 2}
    first = run(make_model(), toy_tasks, tmp_path / "run", **settings)
    first.train()
    kept = (tmp_path / "run" / "calibration.json").read_bytes()
    again = run(make_model(), toy_tasks, tmp_path / "run", **settings)
    again.train(resume=True)
    assert (again.model.calibration_prior, again.model.num_tasks) == (first.model.calibration_prior, 3)
    for (_, one), (_, other) in zip(first.model.theta.named_tensors(), again.model.theta.named_tensors(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "run" / "calibration.json").read_bytes() == kept  # not learned again
    other = run(make_model(), toy_tasks, tmp_path / "run", **settings | {"calibration_examples": 4})
    other.train(resume=True)
    assert other.model.calibration_prior != first.model.calibration_prior
    (tmp_path / "run" / "calibration.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"calibration.json: is not valid JSON .*--resume makes it again"):
        AbmllModel.from_pretrained(tmp_path / "run")


def test_going_on_as_its_own_method_keeps_the_calibration(tiny_model: AbmllModel) -> None:
    tiny_model.calibration_prior = PRIOR
    assert tiny_model.continue_as("abmll").calibration_prior == PRIOR


METHODS = ("structured-lora", "maml", "abml", "reptile", "abmll-icl", "abmll-mixture", "ensemble", "laplace", "blob")


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_that_takes_steps_is_heard_once_per_example(
    make_model: Callable[[], AbmllModel], toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The batches asked and the answers told are in step, those of an ensemble's first member alone."""
    if method == "laplace":
        pytest.importorskip("laplace")
    heard: list[Any] = []

    def spy(examples: Sequence[Example], given: Any) -> Evidence:
        heard.extend(given)
        return evidence(examples, given)

    monkeypatch.setattr("abmll.model.step_learner.evidence", spy)
    model, support = make_model(), list(toy_tasks[0].train)[:6]
    if (other := find_rule(method).base_method) is not None:
        model.learned(model.theta, LearningConfig(method=other), 1)
        model = model.continue_as(method)
    else:
        model.learned(model.theta, LearningConfig(method=method, num_demonstrations=1), 1)
    model.calibration_prior = PRIOR
    model.adapt(support, steps=3, batch_size=2, seed=4)
    assert [list(asked) for asked, _ in heard] == [list(one) for one in adaptation_batches(4, 6, 2, 3)]
    assert all(logs.shape == (2, 2) for _, logs in heard)


@pytest.mark.parametrize("settings", [{"calibration_tasks": 0}, {"method": "structured-lora"}])
def test_a_run_without_a_calibration_has_none(
    tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path, settings: dict[str, Any]
) -> None:
    trainer = run(tiny_model, toy_tasks, tmp_path / "run", **settings)
    trainer.train()
    assert trainer.model.calibration_prior is None
    assert AbmllModel.from_pretrained(tmp_path / "run").calibration_prior is None
