"""AbmllModel: a language model with a meta-learned theta, ready to learn new tasks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from abmll.adapter import Adapter
from abmll.checkpoint import STATE, latest_checkpoint, load_bundle
from abmll.config import AdaptConfig, AdapterConfig, LearningConfig, ModelConfig, PromptConfig
from abmll.errors import DataError, TrainingError
from abmll.language.base import Base, load_base
from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.layer_selection import choose_layers, refuse_open_choice
from abmll.language.scorer import OptionScorer
from abmll.language.trunk_cache import TrunkCache
from abmll.methods import Rule, make_rule
from abmll.progress import progress
from abmll.settings import flatten, pick, refuse_unknown
from abmll.task_posterior import TaskPosterior
from abmll.tasks.sampler import adaptation_batches, sample_seed
from abmll.tasks.task import Example, Task


class AbmllModel:
    """A frozen language model, its Gaussian LoRA layers, theta, and the learning rule that theta was made for."""

    def __init__(self, base: Base, adapter: AdapterConfig, prompt: PromptConfig, seed: int = 0) -> None:
        refuse_open_choice(adapter)
        self.scorer = OptionScorer(base, adapter, prompt)
        self.learning = LearningConfig(seed=seed)
        self.num_tasks = 1
        self.theta = self.scorer.new_adapter(sample_seed(seed, "init"))

    @classmethod
    def from_base(
        cls,
        model: str = ModelConfig.model,
        *,
        prompt: PromptConfig | None = None,
        dtype: Any = "auto",
        device: str = "auto",
        seed: int = 0,
        tasks: Sequence[Task] = (),
        announce: Callable[[str], None] = lambda line: None,
        quiet: bool = True,
        **adapter: Any,
    ) -> "AbmllModel":
        """Load ``model`` and hang a fresh adapter on it; further keywords are ``AdapterConfig``'s fields.

        ``tasks`` are those to be trained on: ``layer_selection="similarity"`` chooses the layers by them.

        ``AbmllModel.from_base("smollm2-135m", r=8, target_modules=["q_proj", "v_proj"])``
        """
        if "target_modules" in adapter:
            names = adapter["target_modules"]
            adapter["target_modules"] = (names,) if isinstance(names, str) else tuple(names)
        refuse_unknown((AdapterConfig,), adapter, "AbmllModel.from_base")
        base = load_base(ModelConfig(model, dtype, device), announce, quiet)
        prompt = prompt or PromptConfig()
        chosen = choose_layers(base, pick(AdapterConfig, adapter), prompt, tasks, announce=announce, quiet=quiet)
        return cls(base, chosen, prompt, seed)

    @classmethod
    def from_pretrained(
        cls,
        run: Path | str,
        *,
        model: ModelConfig | None = None,
        announce: Callable[[str], None] = lambda line: None,
        quiet: bool = True,
    ) -> "AbmllModel":
        """The model of a training run, with the theta of its newest checkpoint.

        ``model`` says where to load the language model from instead of where it lay.
        Raises ``CheckpointError`` where the run is damaged or was trained on other weights.
        """
        path = latest_checkpoint(Path(run))
        bundle = load_bundle(path, STATE)
        document, settings = bundle.document, bundle.document["settings"]
        base = load_base(model or pick(ModelConfig, settings), announce, quiet)
        loaded = cls(base, pick(AdapterConfig, settings), pick(PromptConfig, settings))
        loaded.scorer.refuse_other_base(document["base_fingerprint"], settings["model"], str(path))
        loaded.theta.load_state_dict(bundle.tensors["theta"], str(path / "theta.safetensors"))
        loaded.learned(loaded.theta, pick(LearningConfig, settings), document["num_tasks"])
        return loaded

    def learned(self, theta: Adapter, learning: LearningConfig, num_tasks: int) -> None:
        """Take over a theta, the settings it was learned with, and the number of its training tasks."""
        self.theta = theta.clone()
        self.learning = learning
        self.num_tasks = num_tasks

    def adapt(
        self,
        examples: Sequence[Example],
        *,
        task_name: str = "task",
        steps: int = AdaptConfig.steps,
        batch_size: int = AdaptConfig.batch_size,
        seed: int = 0,
        cache: TrunkCache | None = None,
        quiet: bool = True,
    ) -> TaskPosterior:
        """Learn an unseen task from labelled ``examples``: ``steps`` gradient steps from theta (arXiv 2508.14285).

        ``task_name`` stands before every question in the prompt. Examples are passed over in a new order until the
        steps are done. Theta stays as it is, and only adapter tensors are copied.
        Raises ``DataError`` where there is no example or one without an answer, ``TrainingError`` where a loss term is
        not finite.
        """
        AdaptConfig(steps, batch_size)
        _refuse_unlabelled(examples, task_name)
        encoded = self.scorer.encode(examples, task_name)
        rule = make_rule(self.scorer, self.learning, self.num_tasks)
        chosen = adaptation_batches(seed, len(encoded), min(batch_size, len(encoded)), steps) if steps else []
        with progress(chosen, f"adapting to {task_name}", "step", quiet=quiet) as bar:
            try:
                phi = rule.adapt(self._start(rule), self._batches(encoded, bar, seed, cache))
            except TrainingError as error:
                raise TrainingError(f"adapting to '{task_name}', {error}") from error
        learned = {"adapt_steps": steps, "adapt_batch_size": batch_size, "adapt_examples": len(examples)}
        settings = flatten(self.learning) | learned | {"adapt_seed": seed}
        return TaskPosterior(self.scorer, phi, task_name, rule.is_posterior, settings)

    def theta_as_posterior(self, task_name: str) -> TaskPosterior:
        """Theta itself in the role of a task's posterior: what is believed of ``task_name`` before any example."""
        rule = make_rule(self.scorer, self.learning, self.num_tasks)
        return TaskPosterior(self.scorer, self._start(rule), task_name, rule.is_posterior, flatten(self.learning))

    def _start(self, rule: Rule) -> Adapter:
        """Where a new task starts: from theta, or for a rule that is not trained from a fresh adapter."""
        if rule.is_trained:
            return self.theta
        return self.scorer.new_adapter(sample_seed(self.learning.seed, "init"))

    def _batches(
        self, encoded: Sequence[Encoded], chosen: Iterable[list[int]], seed: int, cache: TrunkCache | None
    ) -> Iterator[tuple[Batch, torch.Generator]]:
        """Each step's batch, made when it is asked for, and the generator of its noise."""
        for step, indices in enumerate(chosen):
            generator = torch.Generator(self.scorer.device)
            generator.manual_seed(sample_seed(seed, "adaptation noise", step))
            yield self.scorer.batch([encoded[index] for index in indices], cache), generator

    def log_sigma(self) -> float:
        """Theta's mean log standard deviation (output space: at input zero)."""
        return mean_log_sigma(self.scorer, self.theta)


def _refuse_unlabelled(examples: Sequence[Example], task_name: str) -> None:
    if not examples:
        raise DataError(f"task '{task_name}': no examples to adapt to")
    for example in examples:
        if example.answer is None:
            raise DataError(f"task '{task_name}', example '{example.id}': has no answer to learn from")


def mean_log_sigma(scorer: OptionScorer, adapter: Adapter) -> float:
    """The mean log standard deviation over all adapted layers, each stack weighed by its number of layers."""
    layers = {shape: len(names) for shape, names in adapter.layers.items()}
    means = [count * scorer.space.log_sigma_mean(adapter.stacks[shape]).double() for shape, count in layers.items()]
    return float(torch.stack(means).sum()) / sum(layers.values())
