"""The LoRA rules: plain PEFT loops on the same batches, the same budget as ABMLL's, and no training at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll import AbmllModel, MetaTrainer
from abmll.common.config import LearningConfig, PromptConfig, TrainConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.tasks import Example, Task
from abmll.tasks.order import sample_seed

RATE, DECAY = 1e-2, 0.1

# PEFT asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def model(tiny_llama: Path) -> AbmllModel:
    prompt = PromptConfig(instruction=False, list_options=False, answer="text", length_normalize=True)
    return AbmllModel.from_base(
        str(tiny_llama), prompt=prompt, dtype="fp32", r=2, lora_alpha=6.0, target_modules=["q_proj", "down_proj"]
    )


@pytest.fixture
def train(model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> Callable[..., MetaTrainer]:
    """Three episodes of a method on the toy tasks."""

    def run(method: str, **settings: Any) -> MetaTrainer:
        config = TrainConfig(
            **{
                "method": method,
                "output_dir": str(tmp_path / method),
                "max_steps": 3,
                "inner_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": RATE,
                "weight_decay": DECAY,
                "lr_scheduler_type": "constant",
                **settings,
            }
        )
        trainer = MetaTrainer(model, toy_tasks, config)
        trainer.train()
        return trainer

    return run


class PeftLoop:
    """LoRA as anyone would write it: PEFT's layers, torch's AdamW, one forward pass per option."""

    def __init__(self, folder: Path, start: Adapter) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        config = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=0.0, target_modules=["q_proj", "down_proj"])
        self.model = peft.get_peft_model(base, config)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            for name, value in start.state_dict().items():
                if "mean" in name:
                    self.weight(name).copy_(value)
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=DECAY)

    def weight(self, name: str) -> Tensor:
        layer, factor = name.rsplit(".", 1)
        module = self.model.get_submodule(f"base_model.model.{layer}.lora_{factor[-1]}.default")
        assert isinstance(module.weight, Tensor)
        return module.weight

    def episode(self, batches: list[list[tuple[Task, Example]]]) -> None:
        for batch in batches:
            self.optimizer.zero_grad()
            torch.stack([self.nll(task, example) for task, example in batch]).sum().backward()
            self.optimizer.step()

    def nll(self, task: Task, example: Example) -> Tensor:
        prompt = f"{task.name}: {example.input}\nAnswer:"
        scores = torch.stack([self.score(prompt, f" {option}") for option in example.options])
        assert example.answer is not None
        return F.cross_entropy(scores, torch.tensor(example.answer))

    def score(self, prompt: str, option: str) -> Tensor:
        before, answer = self.tokenizer(prompt)["input_ids"], self.tokenizer(option)["input_ids"]
        logits = self.model(input_ids=torch.tensor([before + answer])).logits[0]
        log_probs = logits[len(before) - 1 : -1].log_softmax(-1)
        return log_probs.gather(1, torch.tensor(answer)[:, None]).mean()

    def distance(self, learned: Adapter, start: Adapter) -> float:
        """Of the learned mean factors from these, relative to the way they have gone."""
        apart, gone = 0.0, 0.0
        before = start.state_dict()
        for name, value in learned.state_dict().items():
            if "mean" in name:
                apart += float((value - self.weight(name)).detach().square().sum())
                gone += float((value - before[name]).detach().square().sum())
        return (apart / gone) ** 0.5


def rows_of(trainer: MetaTrainer, episode: int) -> list[list[tuple[Task, Example]]]:
    episodes = trainer.episodes
    return [
        [(episodes.tasks[t], episodes.tasks[t].train[i]) for t, i in batch]
        for batch in episodes.sampler.batches(episode)
    ]


@pytest.mark.parametrize("method", ["structured-lora", "regular-lora"])
def test_equals_a_plain_peft_loop(
    train: Callable[..., MetaTrainer], model: AbmllModel, tiny_llama: Path, method: str
) -> None:
    """K consecutive steps an episode on the very same examples, nothing reset in between."""
    start = model.scorer.new_adapter(sample_seed(0, "init"))
    trainer = train(method)
    loop = PeftLoop(tiny_llama, start)
    for episode in range(3):
        loop.episode(rows_of(trainer, episode))
    assert loop.distance(model.theta, start) < 1e-3


def test_adapting_equals_a_plain_peft_loop(
    train: Callable[..., MetaTrainer], model: AbmllModel, tiny_llama: Path, toy_tasks: list[Task]
) -> None:
    train("structured-lora")
    examples = toy_tasks[0].train[:3]
    loop = PeftLoop(tiny_llama, model.theta)
    posterior = model.adapt(examples, task_name="unseen", steps=4, batch_size=3)
    task = Task("unseen", examples)
    loop.episode([[(task, example) for example in examples] for _ in range(4)])  # in any order: the loss is a sum
    assert loop.distance(posterior.phi, model.theta) < 1e-3
    assert not posterior.is_posterior


def test_standard_deviations_stay_as_they_were(train: Callable[..., MetaTrainer], model: AbmllModel) -> None:
    start = model.scorer.new_adapter(sample_seed(0, "init"))
    train("structured-lora")
    for name, tensor in model.theta.named_tensors():
        same = torch.equal(tensor, dict(start.named_tensors())[name])
        assert same == ("scale" in name), name


def test_structured_and_abmll_draw_the_same_examples(train: Callable[..., MetaTrainer]) -> None:
    structured, abmll = train("structured-lora"), train("abmll")
    for episode in range(6):
        assert structured.episodes.sampler.batches(episode) == abmll.episodes.sampler.batches(episode)
        assert structured.episodes.name(episode) == abmll.episodes.name(episode)
        assert len(structured.episodes.sampler.batches(episode)) == 2
    assert [row["tokens"] for row in structured.folder.rows("timing.jsonl")] == [
        row["tokens"] for row in abmll.folder.rows("timing.jsonl")
    ]


def test_regular_draws_from_the_union(train: Callable[..., MetaTrainer], toy_tasks: list[Task]) -> None:
    trainer = train("regular-lora")
    num_examples = sum(len(task.train) for task in toy_tasks)
    drawn = [
        pair
        for episode in range(num_examples // 8)
        for batch in trainer.episodes.sampler.batches(episode)
        for pair in batch
    ]
    assert len(set(drawn)) == len(drawn)  # every example once before any comes again
    assert len({task for task, _ in drawn[:8]}) > 1
    assert {row["task"] for row in trainer.folder.rows()} == {"union"}


def test_pretrained_is_not_trained(model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'pretrained' is not trained; it is a baseline of 'abmll compare'"):
        MetaTrainer(model, toy_tasks, TrainConfig(method="pretrained", output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_pretrained_adapted_starts_from_a_fresh_adapter(
    train: Callable[..., MetaTrainer], model: AbmllModel, tiny_llama: Path, toy_tasks: list[Task]
) -> None:
    """Even in a model whose theta another method has trained."""
    train("abmll")
    model.learned(model.theta, LearningConfig(method="pretrained-adapted", learning_rate=RATE, weight_decay=DECAY), 3)
    fresh = model.scorer.new_adapter(sample_seed(0, "init"))
    bare = model.adapt(toy_tasks[0].train, steps=0)
    for name, tensor in bare.phi.named_tensors():
        assert torch.equal(tensor, dict(fresh.named_tensors())[name])
    examples = toy_tasks[0].train[:2]
    posterior = model.adapt(examples, task_name="unseen", steps=3)
    loop = PeftLoop(tiny_llama, fresh)
    loop.episode([[(Task("unseen", examples), example) for example in examples]] * 3)
    assert loop.distance(posterior.phi, fresh) < 1e-3
    for name, tensor in model.theta_as_posterior("unseen").phi.named_tensors():
        assert torch.equal(tensor, dict(fresh.named_tensors())[name])
    model.learned(model.theta, LearningConfig(method="pretrained"), 3)  # zero-shot: no step is taken
    for name, tensor in model.adapt(examples, task_name="unseen", steps=3).phi.named_tensors():
        assert torch.equal(tensor, dict(fresh.named_tensors())[name])
