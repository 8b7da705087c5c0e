"""AbmllModel: a language model with a meta-learned theta, ready to learn new tasks."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from abmll.common.config import (
    AdaptConfig,
    AdapterConfig,
    ContinuedConfig,
    LearningConfig,
    ModelConfig,
    PromptConfig,
)
from abmll.common.errors import ConfigError, DataError
from abmll.common.settings import flatten, pick, refuse_unknown
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.base import Base, load_base
from abmll.language.compilation import Compilation, usual_mode
from abmll.language.features import FeatureReader
from abmll.language.scorer import OptionScorer
from abmll.methods import REGISTRY, continuing, find_rule, refuse_written
from abmll.methods.bayesian_head import Head
from abmll.model.hub import OnHub, find_folder
from abmll.model.learned_task import TaskPosterior, refuse_unlabelled
from abmll.model.multi_label import MultiLabelHead
from abmll.model.prequential import labels_of
from abmll.model.saved_learner import read_learner, write_learner
from abmll.model.step_learner import StepLearner
from abmll.model.task_head import TaskHead
from abmll.posterior.calibration import CalibrationPrior
from abmll.posterior.hypotheses import HeadPrior
from abmll.tasks import Example
from abmll.tasks.order import sample_seed
from abmll.tasks.records import Data, examples_of
from abmll.tasks.types import are_written

LONGEST = 2048


class AbmllModel(OnHub):
    """A frozen language model, its Gaussian LoRA layers, theta, and the learning rule that theta was made for."""

    def __init__(self, base: Base, adapter: AdapterConfig, prompt: PromptConfig, seed: int = 0) -> None:
        self.scorer = OptionScorer(base, adapter, prompt)
        self.learning = LearningConfig(seed=seed)
        self.num_tasks = 1
        self.episodes = 0
        self.trained_on: tuple[str, ...] = ()  # names of the training tasks
        self.theta = self.scorer.new_adapter(sample_seed(seed, "init"))
        self.calibration_prior: CalibrationPrior | None = None
        self.head_prior = HeadPrior()
        self.readers: dict[str, FeatureReader] = {}

    @classmethod
    def from_base(
        cls,
        model: str | Base = ModelConfig.model,
        *,
        prompt: PromptConfig | None = None,
        seed: int = 0,
        announce: Callable[[str], None] = lambda line: None,
        quiet: bool = True,
        **settings: Any,
    ) -> "AbmllModel":
        """Load ``model``, unless it is loaded already, and hang a fresh adapter on it.

        Without a ``prompt`` of its own it cuts texts to ``LONGEST`` tokens, as a longer one needs gigabytes. Further
        keywords are the fields of ``ModelConfig`` (``device``, ``dtype``, ``load_in_4bit``) and ``AdapterConfig``:
        ``AbmllModel.from_base("smollm2-135m", r=8, target_modules=["q_proj", "v_proj"])``
        """
        if "target_modules" in settings:
            names = settings["target_modules"]
            settings["target_modules"] = (names,) if isinstance(names, str) else tuple(names)
        refuse_unknown((ModelConfig, AdapterConfig), settings, "AbmllModel.from_base")
        if isinstance(model, Base):
            base = model
        else:
            base = load_base(replace(pick(ModelConfig, settings), model=model), announce, quiet)
        prompt = prompt or PromptConfig(max_length=min(LONGEST, base.context))
        loaded = cls(base, pick(AdapterConfig, settings), prompt, seed)
        loaded.learning = replace(loaded.learning, method=Head.name)
        return loaded

    @classmethod
    def from_pretrained(
        cls,
        run: Path | str,
        *,
        revision: str | None = None,
        token: str | None = None,
        model: ModelConfig | Base | None = None,
        announce: Callable[[str], None] = lambda line: None,
        quiet: bool = True,
    ) -> "AbmllModel":
        """The model of a training run: theta is that of its newest checkpoint, or of the best where the run chose it.

        ``run`` is a folder, or ``user/name`` on a model hub at ``revision`` (``abmll.model.hub``).
        ``model`` says where to load the language model from instead of where it lay, or is one that is loaded.
        Raises ``CheckpointError`` where the run is damaged or was trained on other weights.
        """
        folder = find_folder(run, revision, token, announce)
        saved = read_learner(folder)
        settings = saved.document["settings"]
        base = model if isinstance(model, Base) else load_base(model or pick(ModelConfig, settings), announce, quiet)
        loaded = cls(base, pick(AdapterConfig, settings), pick(PromptConfig, settings))
        saved.load_into(loaded)
        return loaded

    def save_pretrained(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write what ``from_pretrained`` reads: theta, settings and priors as a training run that has ended."""
        write_learner(self, Path(folder), overwrite)

    def on_twin(self, adapter: AdapterConfig | None = None) -> "AbmllModel":
        """The same model around modules of its own, which share the weights: for another thread, or ``adapter``."""
        model, adapter = copy.copy(self), adapter or self.scorer.adapter_config
        model.scorer = OptionScorer(self.scorer.base.twin(), adapter, self.scorer.prompt)
        model.scorer.gradient_checkpointing = self.scorer.gradient_checkpointing
        if self.scorer.compilation is not None:  # whose graphs are of these modules
            model.compile(self.scorer.compilation.backend, self.scorer.compilation.mode)
        model.readers = {}
        return model

    def gradient_checkpointing_enable(self) -> None:
        """Let gradient steps compute activations anew in the backward pass, as transformers' method of that name does.

        It needs less memory and more time, and what is learned is the same.
        """
        self.scorer.gradient_checkpointing = True

    def compile(self, backend: str | Callable[..., Any] | None = "inductor", mode: str | None = None) -> None:
        """Let gradient steps be compiled, as torch.compile does with that ``backend`` and ``mode``; None: no more.

        On a CUDA device inductor's graphs are recorded and replayed as CUDA graphs, unless ``mode`` is "default".
        The first step of a shape then takes minutes, and noise is of other random numbers. What cannot be compiled is
        refused when it is to be learned, with a ``ConfigError``.
        """
        if backend is None:
            self.scorer.compilation = None
        else:
            self.scorer.compilation = Compilation(backend, mode or usual_mode(backend, self.scorer.device))

    def learned(
        self, theta: Adapter, learning: LearningConfig, num_tasks: int, calibration: CalibrationPrior | None = None
    ) -> None:
        """Take over a theta, the settings it was learned with, the number of its training tasks, its calibration."""
        self.theta = theta.clone()
        self.learning = learning
        self.num_tasks = num_tasks
        self.calibration_prior = calibration

    def adapt(
        self,
        examples: Data,
        *,
        task_name: str = "task",
        steps: int = AdaptConfig.steps,
        batch_size: int = AdaptConfig.batch_size,
        seed: int = 0,
        how: Literal["head", "full"] | None = None,
        label_order: Sequence[str] | None = None,
        cache: ActivationCache | None = None,
        quiet: bool = True,
        text: str | None = None,
        label: str | None = None,
        on_step: Callable[[int], object] = lambda total: None,
    ) -> TaskPosterior:
        """Learn an unseen task from labelled ``examples``: with a head, or by ``steps`` gradient steps from theta.

        Examples may also be a DataFrame, dicts, or pairs of text and label (``abmll.tasks.records``); ``text`` and
        ``label`` name their columns, where these are not called that.
        ``how`` "head": a Bayesian classifier on theta's features, one forward pass over each example; "full": the
        gradient steps of this model's method (arXiv 2508.14285); None: by its method, which is ``head`` from the start
        (``from_base``), and later the one that it was trained by.
        ``task_name`` stands before every question in the prompt. Passes over the examples, each in a new order, are
        repeated until the steps are done. Theta stays as it is, and only adapter tensors are copied. In-context methods
        show some of the examples before every question: others in every batch, and the same ones in prediction.
        ``on_step`` is called after every gradient step, with the number of them all; what it raises ends the learning.
        ``label_order`` names the labels from the lowest to the highest, where they have an order, for a head to use.
        ``cache`` keeps the activations below the adapters; without one they are kept for the time of the adaptation
        where examples are met twice or more. Raises ``DataError`` where there is no example, one without an answer, or
        a label that is not in its order, ``TrainingError`` where a loss term is not finite.
        """
        budget = AdaptConfig(steps, batch_size)
        examples = examples_of(examples, text=text, label=label, require_answer=True)
        if how not in ("head", "full", None):
            raise ConfigError(f"how is {how!r}; use 'head' or 'full'")
        has_head = find_rule(self.learning.method).classifier is not None
        if how == "full" and has_head:
            raise ConfigError(
                f"how 'full': '{self.learning.method}' takes no gradient steps; train a theta for them first"
            )
        if how == "head":
            model = self.with_head()
            return model.adapt(
                examples, task_name=task_name, seed=seed, label_order=label_order, cache=cache, quiet=quiet
            )
        refuse_unlabelled(examples, task_name, "to adapt to")
        if are_written(examples):
            refuse_written(self.learning.method, self.scorer.compilation is not None)
        if has_head:
            return self._learn_head(examples, task_name, seed, label_order, cache, quiet)
        if label_order is not None:
            raise ConfigError("label_order: only a head learns that labels have an order; use how 'head'")
        return self._by_steps().learn(examples, task_name, budget, seed, cache=cache, quiet=quiet, on_step=on_step)

    def adapt_multi_label(
        self,
        examples: Sequence[Example],
        chosen: Sequence[Collection[str]],
        *,
        task_name: str = "task",
        seed: int = 0,
        cache: ActivationCache | None = None,
        quiet: bool = True,
    ) -> TaskPosterior:
        """Learn with a head which of their options are the labels of ``examples``: any number of them, ``chosen``.

        All examples have the same options, and no answer is read. The probabilities of a prediction are each label's
        own. Raises ``DataError`` where there is no example, and for a label that is no option.
        """
        if not examples:
            raise DataError(f"task '{task_name}': no examples to adapt to")
        model = self.with_head()
        encoded = self.scorer.encode(examples, task_name)
        head = MultiLabelHead.learn_sets(
            model.reader(cache), model.learning.method, self.head_prior, examples, encoded, chosen, seed, quiet
        )
        return model.posterior_of(head, labels_of(examples), task_name, seed)

    def with_head(self) -> "AbmllModel":
        """The model that learns tasks with a head on theta's features. Raises ``ConfigError`` where there is none."""
        rule = find_rule(self.learning.method)
        if rule.classifier is not None:
            return self
        able = [one for one in REGISTRY.values() if one.classifier and one.base_method in (rule.name, rule.base_method)]
        if not able:
            raise ConfigError(f"how: a model of '{rule.name}' has no head; use how 'full'")
        model = copy.copy(self)
        model.learning = replace(self.learning, method=able[-1].name)
        return model

    def _learn_head(
        self,
        examples: Sequence[Example],
        task_name: str,
        seed: int,
        label_order: Sequence[str] | None,
        cache: ActivationCache | None,
        quiet: bool,
    ) -> TaskPosterior:
        """The posterior of a rule that learns a task from features."""
        encoded = self.scorer.encode(examples, task_name)
        reader, method = self.reader(cache), self.learning.method
        head = TaskHead.learn(reader, method, self.head_prior, examples, encoded, seed, quiet, label_order)
        return self.posterior_of(head, labels_of(examples), task_name, seed)

    def posterior_of(self, head: TaskHead, labels: tuple[str, ...], task_name: str, seed: int) -> TaskPosterior:
        """The posterior of a task whose head, on this model's features, has been learned already."""
        settings = flatten(self.learning) | {"adapt_examples": len(head.keys), "adapt_seed": seed}
        members = (self._learned_theta(),)
        return TaskPosterior(self.scorer, members, task_name, True, settings, head=head, labels=labels)

    def reader(self, cache: ActivationCache | None = None) -> FeatureReader:
        """What reads examples for a head, with theta where it was learned; one for all tasks, as it keeps features.

        They are kept on disk as well where the ``cache`` is.
        """
        theta, blocks = self._learned_theta(), self.head_prior.blocks(self.scorer.num_blocks)
        key = f"{blocks} {'' if theta is None else theta.digest()}"
        if key not in self.readers:
            store = None if cache is None else cache.store
            self.readers.clear()  # not replaced: ``with_head``'s models share it
            self.readers[key] = FeatureReader(self.scorer, blocks, theta, store)
        return self.readers[key]

    def _learned_theta(self) -> Adapter | None:
        """Theta, with which features are read; none where the method learns none."""
        rule = find_rule(self.learning.method)
        return self.theta if rule.is_trained or rule.base_method else None

    def continue_as(self, method: str, **settings: Any) -> "AbmllModel":
        """The model of another method that starts from this theta; this one stays as it is.

        It takes over the means. Where it has the same kind of posterior it takes over the standard deviations too, and
        the calibration where it has one. Further keywords are ``ContinuedConfig``'s fields; the rest is as in this run.
        The language model's weights are shared. The run's own method gives a model that differs in settings at most.
        Raises ``ConfigError`` for a method that does not continue this model's, and for unknown settings.
        """
        refuse_unknown((ContinuedConfig,), settings, "AbmllModel.continue_as")
        rule = continuing(method, self.learning.method)
        learning = pick(ContinuedConfig, flatten(self.learning) | settings | {"method": method})
        adapter = self.scorer.adapter_config
        wanted = replace(adapter, space=rule.space or adapter.space)
        if wanted.space == "dropout":
            wanted = replace(wanted, dropout_rate=learning.dropout_rate)
        model, theta = copy.copy(self), self.theta
        if wanted != adapter:
            model = self.on_twin(wanted)
            theta = model.scorer.new_adapter(sample_seed(learning.seed, "init"))
            for mean, learned in zip(theta.mean_tensors(), self.theta.mean_tensors(), strict=True):
                mean.copy_(learned)
        model.learned(theta, learning, self.num_tasks, self.calibration_prior if rule.has_calibration else None)
        return model

    def theta_as_posterior(self, task_name: str) -> TaskPosterior:
        """Theta itself in the role of a task's posterior: what predicts ``task_name`` before any example is known."""
        return self._by_steps().at_start(task_name)

    def _by_steps(self) -> StepLearner:
        """A new task starts from theta, or for a method that learns none from a fresh adapter."""
        theta = self._learned_theta()
        start = self.scorer.new_adapter(sample_seed(self.learning.seed, "init")) if theta is None else theta
        return StepLearner(self.scorer, self.learning, self.num_tasks, start, self.calibration_prior)
