"""TaskPosterior: what was learned of one task; adapter tensors and settings, never a copy of the base model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from abmll.common.checkpoint import DOCUMENT, Bundle, load_bundle, save_bundle
from abmll.common.config import AdapterConfig, ModelConfig, PredictConfig, PromptConfig, WriteConfig
from abmll.common.errors import ConfigError, DataError
from abmll.common.settings import pick
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.base import load_base
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import find_rule
from abmll.model.export_notes import export_notes, headed
from abmll.model.generation import WrittenAnswer, write_answers
from abmll.model.hub import OnHub, find_folder
from abmll.model.interchange import average_update, export_merged, export_peft
from abmll.model.lm_eval_export import harness_files
from abmll.model.prediction import Calibrate, Prediction, batch_calibrated, predict
from abmll.model.prequential import TaskCalibration
from abmll.model.saved_posterior import fields_of, saved
from abmll.model.shipped import name_of as shipped_as
from abmll.model.task_head import TaskHead
from abmll.model.vllm_ensemble import Ensemble, export_ensemble
from abmll.posterior.calibration import Evidence
from abmll.tasks import Example
from abmll.tasks.records import Data, examples_of
from abmll.tasks.types import are_written
from abmll.tasks.written import WRITTEN


@dataclass(frozen=True)
class TaskPosterior(OnHub):
    """q(phi | D) of one task.

    Args:
        scorer: the language model it was learned on, shared by all posteriors.
        members: what was learned; several adapters of equal weight for an ensemble or a mixture.
        is_posterior: whether their standard deviations were learned, so that sampling means something.
        settings: what it was learned with, flat.
        demonstrations: shown to the model before every question.
        calibration: of the task's answers; None: they are the model's own.
        prequential: what its examples were answered before each was learned; it is not saved.
        head: what answers in place of the model's own probabilities; the only member is then the adapter that features
            are read with, None where that is the bare model.
        labels: the options, where all examples it was learned from have the same ones; else none.
        measured: how good its answers are by cross-validation, where that was measured.
    """

    scorer: OptionScorer
    members: tuple[Adapter | None, ...]
    task_name: str
    is_posterior: bool
    settings: dict[str, Any]
    demonstrations: tuple[Example, ...] = ()
    calibration: TaskCalibration | None = None
    prequential: Evidence | None = None
    head: TaskHead | None = None
    labels: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def phi(self) -> Adapter:
        """What was learned, where it is one adapter. Raises ``ConfigError`` where it is several."""
        if len(self.members) != 1:
            raise ConfigError(f"this posterior has {len(self.members)} adapters; name one with member(number)")
        return self.member(0)

    def member(self, number: int) -> Adapter:
        """Member ``number``, counted from 0. Raises ``ConfigError`` for one that does not exist."""
        if not 0 <= number < len(self.members):
            raise ConfigError(f"member is {number}; this posterior has {len(self.members)}, counted from 0")
        phi = self.members[number]
        if phi is None:
            raise ConfigError(
                "this posterior is a head on the bare model's features; it has no adapter; answer with it in ABMLL "
                "(predict), or learn the task with how='full' (--theta RUN --adapt full)"
            )
        return phi

    @property
    def is_written(self) -> bool:
        """Whether the task's answers are written, not chosen."""
        return bool(self.settings.get(WRITTEN))

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All members. Raises ``ConfigError`` where the posterior is a head on the bare model's features."""
        return tuple(self.member(number) for number in range(len(self.members)))

    def share(self, samples: int) -> int:
        """How many of so many samples each member draws: rounded up, so that none is left out."""
        return math.ceil(samples / len(self.members))

    def predict(
        self,
        examples: Data,
        how: PredictConfig | None = None,
        *,
        samples: int | None = None,
        noise: str | None = None,
        predictive: str | None = None,
        seed: int = 0,
        cache: ActivationCache | None = None,
        quiet: bool = True,
        text: str | None = None,
        label: str | None = None,
    ) -> Prediction:
        """Probabilities of the options of ``examples``, averaged over ``samples`` of the posterior (0: at its mean).

        Texts, dicts, pairs of text and label, and a DataFrame have the options ``labels``, in that order, unless they
        bring their own; ``text`` and ``label`` name their columns (``abmll.tasks.records``).

        Several members are averaged over, each of them at its mean or over its ``share`` of the samples. A calibration
        is averaged over as well, unless no samples are asked for; it is then read at its mean.

        ``how`` has all settings; ``samples``, ``noise`` and ``predictive`` overrule it. A posterior that was not
        learned is read at its mean. Raises ``DataError`` where there is no example, or one that cannot be used,
        ``ConfigError`` for settings that cannot be.
        """
        examples = self._examples(examples, text, label)
        if not examples:
            raise DataError(f"task '{self.task_name}': no examples to predict")
        overruled = {"num_samples": samples, "prediction_noise": noise, "predictive": predictive}
        settings: dict[str, Any] = {name: value for name, value in overruled.items() if value is not None}
        how = replace(how or PredictConfig(), **settings)
        if self.head is not None:
            return self.predict_encoded(examples, self.scorer.encode(examples, self.task_name), how, quiet=quiet)
        if self.demonstrations:
            cache = None  # nothing is kept of prompts that only this posterior's questions begin with
        encoded, left_out = self.scorer.encoder.encode_demonstrated(examples, self.task_name, self.demonstrations)
        prediction = self.predict_encoded(examples, encoded, how, seed=seed, cache=cache, quiet=quiet)
        return replace(prediction, left_out=left_out)

    def predict_encoded(
        self,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        how: PredictConfig,
        *,
        seed: int = 0,
        cache: ActivationCache | None = None,
        quiet: bool = True,
    ) -> Prediction:
        """``predict`` of examples whose prompts are ``encoded`` already; only the options of ``examples`` are read."""
        if self.head is not None:
            return self.head.predict(examples, encoded, quiet)
        how, calibrate = self.settled(examples, how)
        prediction = predict(
            self.scorer, self.members, encoded, how, seed=seed, cache=cache, quiet=quiet, calibrate=calibrate
        )
        if "method" in self.settings and find_rule(self.settings["method"]).batch_calibrated:
            prediction = batch_calibrated(prediction)
        return prediction

    def settled(self, examples: Sequence[Example], how: PredictConfig) -> tuple[PredictConfig, Calibrate | None]:
        """``how`` as it is for each member, and what becomes of the members' answers to ``examples``."""
        at_mean = how.predictive == "samples" and how.num_samples == 0
        if not self.is_posterior:
            how = replace(how, num_samples=0, predictive="samples")
        how = replace(how, num_samples=self.share(how.num_samples))
        if self.calibration is None or not how.use_calibration:
            return how, None
        return how, partial(self.calibration.calibrate, examples, at_mean)

    def generate(
        self,
        questions: Data,
        how: WriteConfig | None = None,
        *,
        num_samples: int | None = None,
        do_sample: bool | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        quiet: bool = True,
    ) -> list[WrittenAnswer]:
        """The written answers to texts, or to examples whose answers are written, in their order.

        One answer each at the posterior mean, or the commonest of ``num_samples``, each with a posterior sample of its
        own. ``how`` has all settings; the others overrule it. Raises ``DataError`` where there is no question,
        ``ConfigError`` for settings that cannot be.
        """
        given = {"num_answers": num_samples, "do_sample": do_sample, "max_new_tokens": max_new_tokens}
        given["temperature"] = temperature
        settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return write_answers(self, questions, replace(how or WriteConfig(), **settings), seed, quiet)

    def update(
        self, examples: Data, quiet: bool = True, *, text: str | None = None, label: str | None = None
    ) -> "TaskPosterior":
        """The posterior of these labelled examples and those it has learned: the same as of all of them at once.

        One forward pass over each new example; they may take the forms that ``predict`` knows. Raises ``ConfigError``
        where there is no head, ``DataError`` where there is no example, for one without an answer, and where there are
        labels, for one with other options.
        """
        head = self._require_head("update")
        examples = self._examples(examples, text, label)
        refuse_unlabelled(examples, self.task_name, "to learn from")
        updated = head.updated(examples, self.scorer.encode(examples, self.task_name), quiet)
        settings = self.settings | {"adapt_examples": len(updated.keys)}
        return replace(self, head=updated, settings=settings, measured={})

    def suggest(
        self, pool: Data, quiet: bool = True, *, text: str | None = None, label: str | None = None
    ) -> list[int]:
        """Indices of unlabelled examples, those first whose answer would teach the head most (expected information).

        That is the mutual information of the answer and what was learned (Houlsby et al., arXiv 1112.5745).
        """
        self._require_head("suggest")
        information = self.predict(pool, quiet=quiet, text=text, label=label).mutual_information
        return torch.argsort(information, descending=True, stable=True).tolist()

    def _examples(self, data: Data, text: str | None, label: str | None) -> list[Example]:
        examples = examples_of(data, self.labels, text=text, label=label)
        if are_written(examples):
            raise DataError(f"task '{self.task_name}': these answers are written, not chosen; use generate")
        return examples

    def _require_head(self, what: str) -> TaskHead:
        if self.head is None:
            raise ConfigError(f"{what}: this posterior has no head; learn the task with how='head'")
        return self.head

    def save_pretrained(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the posterior to a folder: its tensors, its settings, their hashes."""
        save_bundle(Path(folder), self.bundle(), DOCUMENT, overwrite)

    def bundle(self) -> Bundle:
        """What is saved."""
        return saved(self)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        revision: str | None = None,
        token: str | None = None,
        scorer: OptionScorer | None = None,
        model: ModelConfig | None = None,
        announce: Callable[[str], None] = lambda line: None,
        quiet: bool = True,
    ) -> "TaskPosterior":
        """Read a folder written by ``save_pretrained``, or ``user/name`` on a model hub at ``revision``.

        ``scorer`` shares a language model that is already loaded; ``model`` says where to load it from instead of
        where it lay. Raises ``CheckpointError`` for a damaged folder, one that belongs to other weights, or a
        ``scorer`` with other adapter or prompt settings.
        """
        path = find_folder(folder, revision, token, announce)
        bundle = load_bundle(path, DOCUMENT)
        if scorer is None:
            settings = bundle.document["settings"]
            base = load_base(model or pick(ModelConfig, settings), announce, quiet)
            scorer = OptionScorer(base, pick(AdapterConfig, settings), pick(PromptConfig, settings))
        return cls.of_bundle(bundle, scorer, path)

    @classmethod
    def of_bundle(cls, bundle: Bundle, scorer: OptionScorer, path: Path) -> "TaskPosterior":
        """What ``bundle`` has saved, on the model of ``scorer``; ``path`` is named in the errors."""
        return cls(scorer, **fields_of(bundle, scorer, path))

    def export_peft(self, folder: Path | str, overwrite: bool = False, member: int | None = None) -> float:
        """Write the posterior mean, or that of one ``member`` of several, as a plain LoRA adapter PEFT loads.

        The mean of several members is the average of their updates, or what of it has their rank. Returns how far that
        is from the average (``average_update``). Beside it lie ``abmll.json`` and a card (``export_notes``), and of a
        posterior with a head the posterior itself. Raises ``ConfigError`` where there is no adapter or no such member,
        ``AbmllError`` where it cannot be written.
        """
        phi, lost = self._exported(member)
        export_peft(self.scorer, phi, Path(folder), overwrite, export_notes(self, member), headed=headed(self))
        return lost

    def export_lm_eval(
        self, folder: Path | str, examples: Sequence[Example], overwrite: bool = False, member: int | None = None
    ) -> float:
        """``export_peft`` with a task for lm-evaluation-harness beside it, whose rows are the labelled ``examples``.

        Raises ``ConfigError`` where options differ by question, ``DataError`` for an example without a known label.
        """
        phi, lost = self._exported(member)
        notes = export_notes(self, member)
        export_peft(self.scorer, phi, Path(folder), overwrite, notes, harness_files(notes, examples), headed(self))
        return lost

    def export_vllm_ensemble(
        self,
        folder: Path | str,
        overwrite: bool = False,
        member: int | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> Ensemble:
        """Write the members, each at its mean, as LoRA adapters of one vLLM server, with a client that averages them.

        Of a posterior with one member, or of one ``member``, these are ``samples`` of the weights (None: 4; 0: its
        mean), the same for the same ``seed``. Raises ``ConfigError`` where there is no adapter or no such member, where
        an answer is not one token, and where options differ by question.
        """
        return export_ensemble(self, Path(folder), overwrite, member, samples, seed)

    def export_merged(self, folder: Path | str, overwrite: bool = False, member: int | None = None) -> float:
        """Write the whole model with the posterior mean added into its weights; the rest as in ``export_peft``."""
        phi, lost = self._exported(member)
        export_merged(self.scorer, phi, Path(folder), overwrite, export_notes(self, member), headed(self))
        return lost

    def _exported(self, member: int | None) -> tuple[Adapter, float]:
        if self.head is not None and shipped_as(self.member(0).state_dict()) is not None:
            raise ConfigError(
                "this posterior is a head on the features of a theta that comes with the package and has learned "
                "nothing of the task; answer with it in ABMLL (predict), or learn the task with how='full' (--theta "
                "RUN --adapt full)"
            )
        return average_update(self.adapters) if member is None else (self.member(member), 0.0)


def refuse_unlabelled(examples: Sequence[Example], task_name: str, purpose: str) -> None:
    """Raise ``DataError`` where there is no example, or one without an answer."""
    if not examples:
        raise DataError(f"task '{task_name}': no examples {purpose}")
    for example in examples:
        if example.answer is None:
            raise DataError(f"task '{task_name}', example '{example.id}': has no answer to learn from")
