"""Tasks whose answers are written: likelihood and gradient against transformers and PEFT, texts against PEFT's."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from abmll import AbmllModel, MetaTrainer, Task, TaskPosterior, TrainConfig, WrittenExample
from abmll.common.config import LearningConfig, PromptConfig, WriteConfig
from abmll.common.errors import ConfigError, DataError
from abmll.language.scorer import OptionScorer
from abmll.language.wiring import by_name
from abmll.language.writing import written_tokens
from abmll.methods import REGISTRY, make_rule
from abmll.model.export_notes import card, export_notes
from abmll.model.generation import WrittenAnswer
from abmll.posterior import Noise
from abmll.posterior.fixed import fixed_layers
from abmll.posterior.space import LayerUpdate

# PEFT 0.21 asks transformers 5.23 for an attribute under its old name; any other warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUESTIONS = ["abc", "a longer text to write about", "xyz 7"]


def reversal(name: str, size: int = 12) -> Task:
    """Write the word backwards."""
    words = [f"{chr(97 + index % 26)}{chr(99 + index % 20)}{name[-1]}" for index in range(size)]
    return Task(name, tuple(WrittenExample.of(str(i), word, word[::-1]) for i, word in enumerate(words)))


@pytest.fixture
def make_model(family_folder: Callable[[str], Path]) -> Callable[..., AbmllModel]:
    def make(family: str = "llama", space: str = "weight", **adapter: Any) -> AbmllModel:
        modules = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "v_proj"]
        folder, wanted = str(family_folder(family)), {"r": 2, "target_modules": modules, **adapter}
        model = AbmllModel.from_base(folder, prompt=PromptConfig(), dtype="fp32", space=space, **wanted)
        model.learning = LearningConfig()
        generator = torch.Generator().manual_seed(4)
        for tensor in model.theta.mean_tensors():
            tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
        return model

    return make


def references(scorer: OptionScorer, model: Any, task: Task) -> Tensor:
    """The NLL of each output's tokens and of the end of the text, by the model's own loss, times their number."""
    losses = []
    for one in scorer.encode(task.examples, task.name):
        [output] = one.options
        assert output[-1] == scorer.base.tokenizer.eos_token_id
        ids = torch.tensor([one.prompt + output])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(one.prompt), -100)
        losses.append(model(input_ids=ids, labels=labels).loss * len(output))
    return torch.stack(losses)


@pytest.mark.parametrize("loss", ["options", "tokens"])
@pytest.mark.parametrize("length_normalize", [False, True])
def test_the_loss_is_transformers_cross_entropy_summed_over_the_outputs_tokens(
    loss: Any, length_normalize: bool, make_model: Callable[..., AbmllModel], family_folder: Callable[[str], Path]
) -> None:
    model, task = make_model(), reversal("r1", 5)
    model.scorer.prompt = replace(model.scorer.prompt, length_normalize=length_normalize)
    plain = AutoModelForCausalLM.from_pretrained(family_folder("llama"))
    rule = make_rule(model.scorer, LearningConfig(method="structured-lora", loss=loss), 1)
    batch = model.scorer.batch(model.scorer.encode(task.examples, task.name))
    zero = model.theta.clone()
    for tensor in zero.mean_tensors():
        tensor.zero_()
    found = rule.likelihood(zero, batch)
    assert float(found.nll) == pytest.approx(float(references(model.scorer, plain, task).sum().detach()), rel=1e-5)
    assert found.size == 5


def test_loss_and_gradient_are_those_of_peft(
    make_model: Callable[..., AbmllModel], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, task = make_model(), reversal("r1", 4)
    posterior = model.theta_as_posterior("r1")
    posterior.export_peft(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(family_folder("llama"))
    stranger = PeftModel.from_pretrained(plain, str(tmp_path / "out"), is_trainable=True)
    expected = references(model.scorer, stranger, task).sum()
    expected.backward()
    phi = model.theta.clone()
    for tensor in phi.mean_tensors():
        tensor.requires_grad_()
    rule = make_rule(model.scorer, LearningConfig(method="structured-lora"), 1)
    found = rule.likelihood(phi, model.scorer.batch(model.scorer.encode(task.examples, task.name)))
    found.nll.backward()
    assert found.nll.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = sorted(float(p.grad.norm()) for name, p in stranger.named_parameters() if p.grad is not None)
    ours = sorted(float(g.norm()) for t in phi.mean_tensors() for g in (t.grad.unbind() if t.grad is not None else ()))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert max(ours) > 0


def test_what_greedy_writes_counts_as_correct(make_model: Callable[..., AbmllModel]) -> None:
    model = make_model()
    posterior = model.theta_as_posterior("r1")
    [answer] = posterior.generate(["abc"], max_new_tokens=4)
    rule = make_rule(model.scorer, LearningConfig(method="structured-lora"), 1)

    def right(output: tuple[int, ...]) -> int:
        [one] = model.scorer.encode([WrittenExample.of("0", "abc", "x")], "r1")
        return int(rule.likelihood(model.theta, model.scorer.batch([replace(one, options=(output,))])).correct)

    [one] = model.scorer.encode([WrittenExample.of("0", "abc", "x")], "r1")
    greedy: list[int] = []
    for _ in range(4):
        ids = torch.tensor([one.prompt + tuple(greedy)])
        with model.scorer.wiring.use_updates(_means(posterior)), torch.no_grad():
            greedy.append(int(model.scorer.base.model(input_ids=ids).logits[0, -1].argmax()))
    assert right(tuple(greedy)) == 1
    assert right((*greedy[:-1], (greedy[-1] + 1) % 259)) == 0
    assert answer.samples == (answer.output,)


def _means(posterior: TaskPosterior) -> dict[str, LayerUpdate]:
    phi, space = posterior.phi, posterior.scorer.space
    return by_name(phi, lambda shape: space.layers(phi.stacks[shape], None))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_greedy_answers_are_those_of_the_exported_adapter_token_for_token(
    family: str, make_model: Callable[..., AbmllModel], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    posterior = make_model(family).theta_as_posterior("r1")
    posterior.export_peft(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(family_folder(family))
    stranger = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    encoder, expected = posterior.scorer.encoder, []
    prompts = list(encoder.encode_all([WrittenExample.of("0", text, None) for text in QUESTIONS], "r1"))
    for prompt in prompts:
        ids = torch.tensor([prompt.prompt])
        how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "use_cache": False}
        tokens = stranger.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
        expected.append([token for token in tokens[0, ids.shape[1] :].tolist() if token != encoder.end])
    with posterior.scorer.wiring.use_updates(_means(posterior)):
        assert written_tokens(posterior.scorer, prompts, WriteConfig(max_new_tokens=12), 0) == expected
    answers = posterior.generate(QUESTIONS, max_new_tokens=12)
    decode = posterior.scorer.base.tokenizer.decode
    assert [one.output for one in answers] == [str(decode(row)).strip() for row in expected]
    assert {(one.agreement, one.entropy) for one in answers} == {(1.0, 0.0)}
    assert family == "llama" or len({*map(tuple, expected)}) > 1  # the prompt matters


def test_a_mixture_writes_with_the_update_that_it_exports(make_model: Callable[..., AbmllModel]) -> None:
    one = make_model().theta_as_posterior("r1")
    both = replace(one, members=(one.phi, one.phi.clone()))
    assert [a.output for a in both.generate(QUESTIONS)] == [a.output for a in one.generate(QUESTIONS)]


@pytest.mark.parametrize("space", ["weight", "output", "factor", "dropout"])
def test_a_fixed_sample_is_one_function_with_the_spaces_moments(
    space: str, make_model: Callable[..., AbmllModel]
) -> None:
    model = make_model(space=space, init_log_sigma=-1.0)
    factors = next(iter(model.theta.stacks.values()))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 5, factors.mean_A.shape[-1], generator=generator)
    draws = []
    for _ in range(600):
        update = fixed_layers(model.scorer.space, factors, generator)[0]
        whole = update(x)
        assert torch.allclose(whole[:, 2:3], update(x[:, 2:3]), atol=1e-4)  # token by token it is the same function
        draws.append(whole)
    mean = model.scorer.space.layers(factors, None)[0](x)
    other = torch.stack([model.scorer.space.layers(factors, Noise("shared", generator))[0](x) for _ in range(600)])
    found = torch.stack(draws)
    deviation = other.std(0)
    assert float(((found.mean(0) - mean) / (deviation / 600**0.5)).abs().max()) < 5
    assert torch.allclose(found.std(0), deviation, rtol=0.2)


@pytest.mark.parametrize("space", ["weight", "output"])
def test_samples_of_the_posterior_disagree_and_their_share_is_the_agreement(
    space: str, make_model: Callable[..., AbmllModel]
) -> None:
    posterior = make_model("qwen2", space, init_log_sigma=-0.5).theta_as_posterior("r1")
    answers = posterior.generate(QUESTIONS, num_samples=6, max_new_tokens=5)
    assert [len(answer.samples) for answer in answers] == [6, 6, 6]
    assert any(answer.agreement < 1 for answer in answers)
    again = posterior.generate(QUESTIONS, num_samples=6, max_new_tokens=5)
    assert answers == again
    assert answers != posterior.generate(QUESTIONS, num_samples=6, max_new_tokens=5, seed=1)


def test_agreement_and_entropy_by_hand() -> None:
    answer = WrittenAnswer.of(["Rome", "the Paris!", "paris", "", "Paris "], truncated=0)
    assert (answer.output, answer.agreement) == ("the Paris!", 0.6)
    assert answer.entropy == pytest.approx(-(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2)))
    tied = WrittenAnswer.of(["+", "-", "-", "+"], truncated=0)  # signs are no punctuation where nothing else is left
    assert (tied.output, tied.agreement, tied.entropy) == ("+", 0.5, pytest.approx(math.log(2)))


def test_without_standard_deviations_answers_differ_by_sampled_tokens_alone(
    make_model: Callable[..., AbmllModel],
) -> None:
    posterior = replace(make_model().theta_as_posterior("r1"), is_posterior=False)
    with pytest.raises(ConfigError, match=r"no standard deviations.*do_sample"):
        posterior.generate(QUESTIONS, num_samples=3)
    [answer] = posterior.generate(["abc"], num_samples=4, do_sample=True, max_new_tokens=6)
    assert len(set(answer.samples)) > 1
    [cold] = posterior.generate(["abc"], num_samples=4, do_sample=True, max_new_tokens=6, temperature=1e-4)
    [greedy] = posterior.generate(["abc"], max_new_tokens=6)
    assert set(cold.samples) == {greedy.output}


def test_a_long_question_leaves_room_for_its_answer(make_model: Callable[..., AbmllModel]) -> None:
    model = make_model()
    model.scorer.encoder.limit = 120
    posterior = model.theta_as_posterior("r1")
    [answer] = posterior.generate(["abc " * 100], max_new_tokens=10)
    assert answer.truncated > 0
    with pytest.raises(ConfigError, match="max_new_tokens is 120, but prompt and answer have 120 tokens"):
        posterior.generate(["abc"], max_new_tokens=120)


def test_training_and_adapting_teach_it_to_write_and_the_folder_remembers(
    make_model: Callable[..., AbmllModel], tmp_path: Path
) -> None:
    model, tasks = make_model(r=4), [reversal("r1"), reversal("r2")]
    settings: dict[str, Any] = {"max_steps": 4, "inner_steps": 3, "learning_rate": 1e-2}
    trainer = MetaTrainer(model, tasks, TrainConfig(output_dir=str(tmp_path / "run"), **settings))
    trainer.train()
    assert model.calibration_prior is None
    before = model.theta_as_posterior("r1")
    posterior = model.adapt(tasks[0].train, task_name="r1", steps=20)
    scorer = model.scorer
    batch = scorer.batch(scorer.encode(tasks[0].train, "r1"))
    learned, unlearned = (scorer.scores(batch, one.phi).answer_tokens.sum() for one in (posterior, before))
    assert learned > unlearned
    posterior.save_pretrained(tmp_path / "posterior")
    loaded = TaskPosterior.from_pretrained(tmp_path / "posterior", scorer=scorer)
    assert loaded.settings["written"] is True
    assert loaded.generate(QUESTIONS) == posterior.generate(QUESTIONS)
    assert loaded.labels == ()


@pytest.mark.parametrize("answer", ["letter", "text"])
def test_an_export_says_that_its_answers_are_written(answer: Any, make_model: Callable[..., AbmllModel]) -> None:
    model = make_model()
    model.scorer.prompt = model.scorer.encoder.settings = PromptConfig(answer=answer)
    posterior = model.adapt(reversal("r1").train, task_name="r1", steps=1)
    notes = export_notes(posterior, None)
    assert (notes["prompt"]["answer"], notes["answer_tokens"], notes["labels"]) == ("written", None, [])
    assert notes["prompt"]["template"].endswith("\n\nr1: {input}\nAnswer:")
    shown = card(notes, "peft")
    assert "- text-generation" in shown
    assert "none: the answer is the text" in shown


def steps_are_taken(name: str) -> bool:
    rule = REGISTRY[name]
    return rule.classifier is None and not rule.demonstrations and name != "laplace"


@pytest.mark.parametrize("name", [name for name in REGISTRY if REGISTRY[name].space is None and steps_are_taken(name)])
def test_every_method_that_takes_steps_learns_written_answers(name: str, make_model: Callable[..., AbmllModel]) -> None:
    model = make_model()
    model.learning = LearningConfig(method=name)
    assert len(model.adapt(reversal("r1").train, steps=2).generate(["abc"], max_new_tokens=3)) == 1


@pytest.mark.parametrize("name", [name for name in REGISTRY if not steps_are_taken(name)])
def test_methods_that_choose_refuse(name: str, make_model: Callable[..., AbmllModel]) -> None:
    rule = REGISTRY[name]
    model = make_model(space=rule.space or "weight")
    model.learning = LearningConfig(method=name)
    with pytest.raises(ConfigError, match=f"'{name}' chooses between options"):
        model.adapt(reversal("r1").train, steps=2)


def test_written_and_chosen_do_not_mix(make_model: Callable[..., AbmllModel], toy_tasks: list[Task]) -> None:
    model, written = make_model(), reversal("r1")
    with pytest.raises(DataError, match="'r1' are written, those of 'toy0' are chosen"):
        MetaTrainer(model, [*toy_tasks, written], TrainConfig())
    with pytest.raises(DataError, match="some answers are written and some are chosen"):
        model.adapt([*toy_tasks[0].train, *written.train])
    with pytest.raises(DataError, match="use generate"):
        model.adapt(toy_tasks[0].train, steps=1).predict(written.train)
    with pytest.raises(DataError, match="there are none"):
        model.theta_as_posterior("r1").generate([])
