"""In-context methods: what stands in the prompt, and what is learned besides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TaskPosterior, TrainConfig
from abmll.common.config import LearningConfig, PromptConfig
from abmll.language.activation_cache import ActivationCache
from abmll.methods import REGISTRY
from abmll.model.prediction import batch_calibrated, predict
from abmll.tasks import Example, Task
from abmll.tasks.order import demonstrations

IN_CONTEXT = [name for name, rule in REGISTRY.items() if rule.demonstrations]


def made(model: AbmllModel, method: str, **settings: Any) -> AbmllModel:
    """The model as if its theta had been learned by ``method``."""
    theta = model.scorer.new_adapter(3)
    for tensor in theta.mean_tensors():
        torch.nn.init.normal_(tensor, std=0.2, generator=torch.Generator().manual_seed(1))
    model.learned(theta, LearningConfig(method=method, **settings), 3)
    return model


def test_they_are_these() -> None:
    assert IN_CONTEXT == ["icl", "icl-batch", "metaicl", "abmll-icl"]


def test_demonstrations_are_drawn_without_the_questions() -> None:
    drawn = [demonstrations(0, 10, 4, asked, *asked) for asked in ([1, 2], [1, 3], [])]
    assert [len(set(one)) for one in drawn] == [4, 4, 4]
    assert not {1, 2} & set(drawn[0])
    assert not {1, 3} & set(drawn[1])
    assert demonstrations(0, 10, 4, [1, 2], 1, 2) == drawn[0]
    assert len({tuple(demonstrations(seed, 10, 4, ())) for seed in range(9)}) > 5
    assert sorted(demonstrations(0, 3, 9, [1])) == [0, 2]


@pytest.mark.parametrize("method", IN_CONTEXT)
def test_every_question_is_asked_behind_the_same_examples_of_those_adapted_to(
    tiny_model: AbmllModel, toy_tasks: list[Task], method: str
) -> None:
    model = made(tiny_model, method, num_demonstrations=3)
    task = toy_tasks[0]
    support, questions = task.train[:8], task.test[:4]
    posterior = model.adapt(support, task_name=task.name, steps=2, batch_size=2, seed=5)
    assert len(posterior.demonstrations) == 3
    assert set(posterior.demonstrations) <= set(support)
    prompted, left_out = model.scorer.encoder.encode_demonstrated(questions, task.name, posterior.demonstrations)
    wanted = predict(model.scorer, [posterior.phi], prompted)
    if method == "icl-batch":
        wanted = batch_calibrated(wanted)
    given = posterior.predict(questions, samples=0, cache=ActivationCache(10**9))
    torch.testing.assert_close(given.probs, wanted.probs)
    assert given.left_out == left_out == 0
    bare = predict(model.scorer, [posterior.phi], model.scorer.encode(questions, task.name))
    assert (bare.probs - wanted.probs).abs().max() > 1e-4


def test_in_context_learning_takes_no_gradient_step(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    support = toy_tasks[0].train[:8]
    learned = {method: made(tiny_model, method).adapt(support).phi.state_dict() for method in ("metaicl", "abmll-icl")}
    theta = tiny_model.theta.state_dict()
    assert all(torch.equal(learned["metaicl"][name], tensor) for name, tensor in theta.items())
    assert not all(torch.equal(learned["abmll-icl"][name], tensor) for name, tensor in theta.items())
    # The frozen model has no theta: its adapter adds nothing.
    bare = made(tiny_model, "icl").adapt(support).phi
    assert all(torch.count_nonzero(stack.mean_B) == 0 for stack in bare.stacks.values())


def test_adapting_in_context_is_adapting_to_those_prompts(
    tiny_model: AbmllModel, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradient steps as plain ABMLL, on questions behind examples that are not asked in that step."""
    support = toy_tasks[0].train[:6]
    asked: list[tuple[set[str], set[str]]] = []
    encode = tiny_model.scorer.encoder.encode_demonstrated

    def record(examples: list[Example], name: str, shown: list[Example]) -> object:
        asked.append(({one.id for one in examples}, {one.id for one in shown}))
        return encode(examples, name, shown)

    monkeypatch.setattr(tiny_model.scorer.encoder, "encode_demonstrated", record)
    made(tiny_model, "abmll-icl", num_demonstrations=3).adapt(support, steps=4, batch_size=2)
    assert len(asked) == 4
    for questions, shown in asked:
        assert (len(questions), len(shown)) == (2, 3)
        assert not questions & shown


def test_the_demonstrations_are_saved(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> None:
    task = toy_tasks[0]
    posterior = made(tiny_model, "icl").adapt(task.train[:5], task_name=task.name)
    posterior.save_pretrained(tmp_path / "icl")
    again = TaskPosterior.from_pretrained(tmp_path / "icl", scorer=tiny_model.scorer)
    assert [(one.input, one.options, one.answer) for one in again.demonstrations] == [
        (one.input, one.options, one.answer) for one in posterior.demonstrations
    ]
    torch.testing.assert_close(again.predict(task.test[:3]).probs, posterior.predict(task.test[:3]).probs)


def test_what_does_not_fit_is_left_out_and_counted(tiny_llama: Path, toy_tasks: list[Task]) -> None:
    prompt = PromptConfig(instruction=False, max_length=70)
    model = made(AbmllModel.from_base(str(tiny_llama), prompt=prompt), "icl", num_demonstrations=5)
    prediction = model.adapt(toy_tasks[0].train[:8], task_name="t").predict(toy_tasks[0].test[:3])
    assert 3 <= prediction.left_out <= 15
    assert prediction.truncated == 0


@pytest.mark.parametrize("method", ["metaicl", "abmll-icl"])
def test_training_reads_demonstrations_and_resumes_bit_for_bit(
    tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path, method: str
) -> None:
    def train(folder: str, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        config = TrainConfig(
            method=method, output_dir=str(tmp_path / folder), max_steps=steps, save_steps=2, inner_steps=2
        )
        trainer = MetaTrainer(
            tiny_model, toy_tasks, replace(config, num_demonstrations=2, lr_scheduler_type="constant")
        )
        assert trainer.episodes.shown == 2
        trainer.train(resume=resume)
        return tiny_model.theta.state_dict()

    whole = train("whole", 4)
    train("parts", 2)
    again = train("parts", 4, resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_method_without_demonstrations_reads_none(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    posterior = made(tiny_model, "abmll").adapt(toy_tasks[0].train[:4], steps=1)
    assert posterior.demonstrations == ()
