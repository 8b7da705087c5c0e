"""What a comparison is asked for: one budget for all methods, and the variants of it that make curves."""

from dataclasses import dataclass
from typing import Literal

from abmll.common.config import (
    AdaptConfig,
    AdapterConfig,
    EvaluateConfig,
    LearningConfig,
    ModelConfig,
    PredictConfig,
    PromptConfig,
    RunConfig,
)
from abmll.common.errors import ConfigError
from abmll.common.settings import Checked, again, setting

SMOKE = "-smoke"  # ends the name of a suite whose numbers are those of a rehearsal
REFERENCE = "abmll"  # the row with which a comparison's others are compared, unless another one is named


@dataclass(frozen=True)
class BudgetConfig(Checked):
    """The same budget for every method, unless its preset or the settings file says otherwise."""

    max_steps: int = again(RunConfig, "max_steps", "episodes of every training run")
    save_steps: int = again(RunConfig, "save_steps")
    save_total_limit: int = again(
        RunConfig, "save_total_limit", "checkpoints kept of a run (the newest ones); all of them with --episodes"
    )
    inner_steps: int = again(LearningConfig, "inner_steps")
    per_device_train_batch_size: int = again(LearningConfig, "per_device_train_batch_size")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = again(LearningConfig, "lr_scheduler_type")
    warmup_steps: int = again(LearningConfig, "warmup_steps")
    limit_train: int | None = setting(
        None, "training examples that each training task keeps, chosen by the seed (default: all)", at_least=1
    )
    activation_cache_gb: float = again(
        RunConfig,
        "activation_cache_gb",
        "memory of each process for activations below the lowest adapted layer, in GB (0: none)",
    )


@dataclass(frozen=True)
class EvaluationGrid(Checked):
    """Adapting to the unseen tasks and predicting; several values of one setting make a curve."""

    steps: int = again(AdaptConfig, "steps", "gradient steps of an adaptation")
    batch_size: int = again(AdaptConfig, "batch_size", "examples per gradient step of an adaptation")
    adapt_examples: tuple[int, ...] = setting(
        (20,),
        "training examples of each unseen task to adapt to; the tables are of the suite's own number if it is among "
        "several, else of the largest",
        at_least=1,
    )
    test_examples: int | None = again(
        EvaluateConfig,
        "test_examples",
        "test examples of each unseen task to be evaluated on (default: all, or the suite's number)",
    )
    predictive: Literal["samples", "linearized"] = again(PredictConfig, "predictive")
    num_samples: tuple[int, ...] = setting(
        (PredictConfig.num_samples,),
        "posterior samples per prediction (0: at the posterior mean); the tables are of the default if it is among "
        "several, else of the largest",
        at_least=0,
    )
    prediction_noise: Literal["local", "shared"] = again(PredictConfig, "prediction_noise")
    prediction_noise_rank: int = again(PredictConfig, "prediction_noise_rank")
    prune: tuple[float, ...] = setting(
        (0.0,),
        "shares of each adapted layer's output, the smallest per token, set to zero at prediction",
        at_least=0,
        below=1,
    )
    episodes: tuple[int, ...] | None = setting(
        None,
        "episodes after which a run is evaluated besides its end, which the tables are of: multiples of save_steps "
        "(default: its end alone)",
        at_least=1,
    )
    ood_examples: int = setting(
        0,
        "questions of each unseen task that are asked again with another task's inputs, to see if they are doubted",
        at_least=0,
    )
    recalibrate: tuple[Literal["none", "meta", "calibration"], ...] = setting(
        ("none",),
        "what becomes of the probabilities: none, meta (one temperature, of the training tasks) or calibration "
        "(ABMLL's, for other methods); several give rows each",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("adapt_examples", "num_samples", "prune", "episodes", "recalibrate"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ConfigError(f"{name} names a value twice; remove one")


@dataclass(frozen=True)
class SharedConfig(EvaluationGrid, BudgetConfig, PromptConfig, AdapterConfig, ModelConfig):
    """What all methods of a comparison share, unless a preset or a settings file says otherwise."""


CURVES = ("adapt_examples", "num_samples", "prune", "episodes")  # settings of which several values make a curve
