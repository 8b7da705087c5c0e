"""TaskPosterior: what was learned of one task; adapter tensors and settings, never a copy of the base model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abmll.adapter import Adapter
from abmll.checkpoint import DOCUMENT, Bundle, load_bundle, save_bundle
from abmll.config import AdapterConfig, ModelConfig, PredictConfig, PromptConfig
from abmll.errors import CheckpointError, DataError
from abmll.export import export_merged, export_peft
from abmll.language.base import load_base
from abmll.language.scorer import OptionScorer
from abmll.language.trunk_cache import TrunkCache
from abmll.prediction import Prediction, predict
from abmll.settings import flatten, pick
from abmll.tasks.task import Example


@dataclass(frozen=True)
class TaskPosterior:
    """q(phi | D) of one task.

    ``scorer`` is the language model it was learned on, shared by all posteriors; ``is_posterior`` says whether its
    standard deviations were learned, so that sampling means something.
    """

    scorer: OptionScorer
    phi: Adapter
    task_name: str
    is_posterior: bool
    settings: dict[str, Any]

    def predict(
        self,
        examples: Sequence[Example],
        how: PredictConfig | None = None,
        *,
        samples: int | None = None,
        noise: str | None = None,
        predictive: str | None = None,
        seed: int = 0,
        cache: TrunkCache | None = None,
        quiet: bool = True,
    ) -> Prediction:
        """Probabilities of the options of ``examples``, averaged over ``samples`` of the posterior (0: at its mean).

        ``how`` has all settings; ``samples``, ``noise`` and ``predictive`` overrule it. A posterior that was not
        learned is read at its mean. Raises ``DataError`` where there is no example, ``ConfigError`` for settings that
        cannot be.
        """
        if not examples:
            raise DataError(f"task '{self.task_name}': no examples to predict")
        overruled = {"num_samples": samples, "prediction_noise": noise, "predictive": predictive}
        settings: dict[str, Any] = {name: value for name, value in overruled.items() if value is not None}
        how = replace(how or PredictConfig(), **settings)
        return predict(
            self.scorer,
            self.phi,
            self.scorer.encode(examples, self.task_name),
            how if self.is_posterior else replace(how, num_samples=0, predictive="samples"),
            seed=seed,
            cache=cache,
            quiet=quiet,
        )

    def save_pretrained(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the posterior to a folder: its tensors, its settings, their hashes."""
        document = {
            "task_name": self.task_name,
            "is_posterior": self.is_posterior,
            "base_fingerprint": self.scorer.base.fingerprint,
            "settings": self.settings | self.scorer.settings(),
        }
        save_bundle(Path(folder), Bundle({"phi": self.phi.state_dict()}, document), DOCUMENT, overwrite)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        scorer: OptionScorer | None = None,
        model: ModelConfig | None = None,
        announce: Callable[[str], None] = lambda line: None,
        quiet: bool = True,
    ) -> "TaskPosterior":
        """Read a folder written by ``save_pretrained``.

        ``scorer`` shares a language model that is already loaded; ``model`` says where to load it from instead of
        where it lay. Raises ``CheckpointError`` for a damaged folder, one that belongs to other weights, or a
        ``scorer`` with other adapter or prompt settings.
        """
        path = Path(folder)
        bundle = load_bundle(path, DOCUMENT)
        document, settings = bundle.document, bundle.document["settings"]
        if scorer is None:
            base = load_base(model or pick(ModelConfig, settings), announce, quiet)
            scorer = OptionScorer(base, pick(AdapterConfig, settings), pick(PromptConfig, settings))
        scorer.refuse_other_base(document["base_fingerprint"], settings["model"], str(path))
        for key, value in flatten(scorer.adapter_config, scorer.prompt).items():
            if settings.get(key) != value:
                raise CheckpointError(
                    f"{path}: was learned with {key} = {settings.get(key)}, the scorer has {value}; "
                    "give one with the same settings, or none"
                )
        phi = scorer.new_adapter(0)
        phi.load_state_dict(bundle.tensors["phi"], str(path / "phi.safetensors"))
        return cls(scorer, phi, document["task_name"], document["is_posterior"], settings)

    def export_peft(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the posterior mean as a plain LoRA adapter that PEFT loads."""
        export_peft(self.scorer, self.phi, Path(folder), overwrite)

    def export_merged(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the whole model with the posterior mean added into its weights."""
        export_merged(self.scorer, self.phi, Path(folder), overwrite)
