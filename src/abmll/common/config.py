"""Every setting of the project, its default and its one-line help: frozen dataclasses, no imports of torch.

The command line makes its flags of these fields (``max_steps`` becomes ``--max-steps``), a YAML file uses the field
names as keys, and the Python API takes the dataclasses themselves. Each of them refuses values that cannot be, with
a ``ConfigError`` that names the field.
"""

from dataclasses import dataclass
from typing import Any, Literal

from abmll.common.errors import ConfigError
from abmll.common.settings import Checked, again, setting

# Settings that came after the first runs and results were saved, and what they were before.
LATER = {
    "gradient_accumulation_steps": 1,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "load_in_int8_torchao": False,
    "members_at_once": None,
    "shard_base": False,
    "device_map": None,
    "compile": False,
}
PLACES = ("device", "device_map", "shard_base")  # of ModelConfig: where the model lies, which changes no result
AUTO_THETA = "auto"  # in place of a theta's name: the one that comes with the package, where the model is its own
QUANTIZATIONS = ("load_in_4bit", "load_in_8bit", "load_in_int8_torchao")  # of ModelConfig; one of them at most


@dataclass(frozen=True)
class PromptConfig(Checked):
    """How an example becomes text, and what is scored; the same in training and in prediction."""

    answer: Literal["letter", "text"] = setting("text", "score the options by their letter or by their text")
    instruction: bool = setting(True, "start with the instruction line")
    list_options: bool | None = setting(
        None, "list the options in the prompt under 'Choices:' (default: for letters only)"
    )
    chat_template: bool = setting(False, "wrap the prompt in the model's chat template")
    length_normalize: bool = setting(True, "divide an option's log-probability by its number of tokens")
    max_length: int | None = setting(
        None, "longest prompt plus options in tokens (default: the model's context)", at_least=1
    )


@dataclass(frozen=True)
class AdapterConfig(Checked):
    """Which layers carry a Gaussian LoRA adapter, and its form."""

    r: int = setting(8, "rank of the mean update", at_least=1)
    lora_alpha: float = setting(16.0, "the mean update is (lora_alpha / r) B A", above=0)
    target_modules: tuple[str, ...] = setting(
        ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "names of the layers to adapt (ends of module names), or 'all-linear'",
    )
    layers_to_transform: str | None = setting(
        "top-6", "decoder layers to adapt: '18-29', '0,5,7', 'top-12', 'top-third' or 'top-half'; none: all of them"
    )
    space: Literal["weight", "output", "factor", "factor-a", "dropout"] = setting(
        "weight",
        "Gaussian over the weights, the layer's output, or A and B; factor-a and dropout are blob's and mc-dropout's",
    )
    sigma_rank: int = setting(1, "weight space: rank of the standard deviation's positive factors", at_least=1)
    sigma_floor: float = setting(0.0, "weight space: constant c added to every standard deviation", at_least=0)
    init_log_sigma: float = setting(
        -5.0, "start of log sigma (weight and factor space), or of half the log variance (output)"
    )
    dropout_rate: float = setting(0.1, "dropout: share of the adapter's inputs that are dropped", at_least=0, below=1)


@dataclass(frozen=True)
class LearningConfig(Checked):
    """The learning rule: one episode of a task is ``inner_steps`` steps on phi, then a step on theta."""

    method: str = setting(
        "abmll",
        "learning rule: abmll, abmll-icl, trained-head, reptile, fomaml, maml, abml, structured-lora, regular-lora, "
        "metaicl",
    )
    inner_steps: int = setting(5, "gradient steps on phi per episode (K)", at_least=1)
    per_device_train_batch_size: int = setting(4, "examples per gradient step, or per part of one", at_least=1)
    gradient_accumulation_steps: int = setting(
        1, "parts of a gradient step: each of so many examples, one after the other in memory", at_least=1
    )
    learning_rate: float = setting(1e-3, "AdamW learning rate of phi's mean factors", at_least=0)
    scale_learning_rate: float = setting(2e-2, "AdamW learning rate of phi's standard deviation factors", at_least=0)
    outer_learning_rate: float = setting(2e-3, "AdamW learning rate of theta's mean factors", at_least=0)
    outer_scale_learning_rate: float = setting(
        2e-2, "AdamW learning rate of theta's standard deviation factors", at_least=0
    )
    weight_decay: float = setting(0.0, "AdamW weight decay, of the factors of log sigma too", at_least=0)
    beta: float = setting(3e-5, "weight of KL(q(phi) || p(phi | theta))", at_least=0)
    gamma: float = setting(1e-8, "weight of -log p(theta), shared out over the training tasks", at_least=0)
    prior_std: float = setting(1.0, "standard deviation of the prior on theta's mean", above=0)
    gamma_shape: float = setting(1.0, "a0 of the Gamma prior on 1 / sigma_theta^2", above=0)
    gamma_rate: float = setting(0.01, "b0 of the Gamma prior on 1 / sigma_theta^2", above=0)
    noise: Literal["local", "shared"] = setting(
        "local", "training noise: independent per token, or one weight sample per batch"
    )
    noise_rank: int = setting(
        8,
        "random directions of the training noise (0: all of them, which costs a number per token and channel)",
        at_least=0,
    )
    loss: Literal["options", "tokens"] = setting(
        "options", "likelihood: softmax over the options' scores, or the answer's tokens over the whole vocabulary"
    )
    meta_batch: int = setting(
        1,
        "episodes of an outer step, which all begin with the same theta; it takes the mean of what they teach",
        at_least=1,
    )
    inner_sgd_rate: float = setting(
        0.03, "FOMAML, MAML, ABML: rate of phi's plain gradient steps on the mean factors", at_least=0
    )
    inner_sgd_scale_rate: float = setting(
        0.03, "ABML: rate of phi's plain gradient steps on the standard deviation factors", at_least=0
    )
    reptile_epsilon: float = setting(
        0.5, "Reptile: share of the way to phi that theta goes after the first episode; falls linearly to 0", above=0
    )
    num_demonstrations: int = setting(
        4, "ICL, MetaICL, ABMLL in context: labelled examples before every question", at_least=1
    )
    calibration_tasks: int = setting(
        32, "ABMLL: training tasks from which theta learns the prior of temperatures and biases (0: none)", at_least=0
    )
    calibration_examples: int = setting(
        20, "ABMLL: training examples that such a task is adapted to, and as many others to ask it", at_least=1
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = setting("linear", "schedule of every learning rate")
    warmup_steps: int = setting(0, "episodes over which the learning rates rise from zero", at_least=0)
    max_grad_norm: float = setting(0.0, "clip the gradient's norm (0: no clipping)", at_least=0)
    seed: int = setting(0, "seed of initialisation, order of tasks and examples, and noise")


@dataclass(frozen=True)
class ContinueConfig(Checked):
    """Methods that continue another one's run: abmll-mixture, blob, laplace, ensemble, mc-dropout."""

    blob_prior_std: float = setting(0.2, "blob: standard deviation of the prior N(0, std^2) on A", above=0)
    blob_init_log_sigma: float = setting(-6.3, "blob: start of the log standard deviation of A")
    blob_kl_weight: float = setting(1e-3, "blob: weight of KL(q(A) || N(0, std^2))", at_least=0)
    laplace_prior_precision: float | None = setting(
        None, "laplace: precision of the prior on A and B (default: by the marginal likelihood)", above=0
    )
    ensemble_size: int = setting(5, "ensemble, abmll-mixture: members", at_least=2)
    ensemble_spread: float = setting(
        0.1, "ensemble: a member's A starts at theta's plus this share of a fresh random A", at_least=0
    )
    members_at_once: int | None = setting(
        None,
        "ensemble, abmll-mixture: members that learn side by side in one pass (default: by their examples' length)",
        at_least=1,
    )
    dropout_rate: float = again(
        AdapterConfig, "dropout_rate", "mc-dropout: share of the adapter's inputs that are dropped"
    )


@dataclass(frozen=True)
class ContinuedConfig(LearningConfig, ContinueConfig):
    """The learning rule of a method that starts from another method's run."""


@dataclass(frozen=True)
class ActivationCacheConfig(Checked):
    """Activations below the lowest adapted layer, kept on disk for other runs, seeds and methods."""

    activation_cache_dir: str | None = setting(None, "folder for them; any number of runs may share it (default: none)")
    activation_cache_disk_gb: float = setting(10.0, "size up to which the folder grows, in GB", at_least=0)


@dataclass(frozen=True)
class RunConfig(ActivationCacheConfig):
    """How a training run proceeds and what it leaves on disk."""

    max_steps: int = setting(100, "episodes, of which an outer step takes meta_batch", at_least=1)
    save_steps: int = setting(20, "episodes between checkpoints", at_least=1)
    save_total_limit: int = setting(2, "checkpoints kept (the newest ones)", at_least=1)
    activation_cache_gb: float = setting(
        2.0, "memory for activations below the lowest adapted layer, in GB (0: none)", at_least=0
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations anew in the backward pass: less memory, more time, the same result"
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "where the metrics of every episode are shown too, while it trains"
    )


@dataclass(frozen=True)
class AdaptConfig(Checked):
    """Learning an unseen task from its examples."""

    steps: int = setting(10, "gradient steps", at_least=0)
    batch_size: int = setting(2, "examples per gradient step", at_least=1)


@dataclass(frozen=True)
class ValidationConfig(Checked):
    """Evaluating on validation tasks while it trains."""

    eval_steps: int | None = setting(None, "episodes between evaluations (default: save_steps)", at_least=1)
    eval_examples: int = setting(
        20, "training examples of each validation task to adapt to, always the same ones", at_least=1
    )
    eval_test_examples: int | None = setting(
        100, "test examples of each validation task to be evaluated on (none: all)", at_least=1
    )
    eval_adapt_steps: int = again(AdaptConfig, "steps", "gradient steps of such an adaptation")
    load_best_model_at_end: bool = setting(
        False, "keep the checkpoint with the best evaluation, and let the run's theta be that one"
    )
    metric_for_best_model: Literal["nll", "accuracy"] = setting(
        "nll", "the number by which an evaluation is better, for the best checkpoint and for stopping early"
    )
    early_stopping_patience: int | None = setting(
        None, "stop after so many evaluations in a row without improvement (default: do not)", at_least=1
    )
    early_stopping_threshold: float = setting(
        0.0, "an improvement must be larger than this to count for the patience", at_least=0
    )


@dataclass(frozen=True)
class TrainConfig(RunConfig, ValidationConfig, LearningConfig):
    """All settings of a training run; ``output_dir`` is its folder."""

    output_dir: str = setting("runs/abmll", "run folder")
    compile: bool = setting(
        False, "compile a gradient step into one graph, which takes minutes at first; with other random numbers"
    )


@dataclass(frozen=True)
class PredictConfig(Checked):
    """Predicting with what was learned."""

    predictive: Literal["samples", "linearized"] = setting(
        "samples", "average over posterior samples, or over the scores' Gaussian to first order in the weights"
    )
    num_samples: int = setting(4, "posterior samples per prediction (0: at the posterior mean)", at_least=0)
    prediction_noise: Literal["local", "shared"] = setting(
        "shared", "prediction noise: one weight sample per batch, or independent per token"
    )
    prediction_noise_rank: int = setting(
        16, "random directions of a weight sample (0: all of them, exact and several times slower)", at_least=0
    )
    use_calibration: bool = setting(
        True, "answer with the task's temperature and option biases, where they were inferred"
    )


@dataclass(frozen=True)
class WriteConfig(Checked):
    """Answers that are written, not chosen."""

    num_answers: int = setting(
        1,
        "answers to each question (1: at the posterior mean; more: each with a sample of it)",
        at_least=1,
    )
    do_sample: bool = setting(False, "draw each token by its probability, instead of taking the likeliest")
    max_new_tokens: int = setting(64, "tokens after which an answer is cut off", at_least=1)
    temperature: float = setting(1.0, "with do_sample: divides the logits, so that below 1 likely tokens win", above=0)


@dataclass(frozen=True)
class EvaluateConfig(PredictConfig, AdaptConfig):
    """Adapting to every evaluation task and measuring."""

    adapt_examples: int | None = setting(
        20, "training examples of each task to adapt to, unless the suite has a number", at_least=1
    )
    test_examples: int | None = setting(
        None, "test examples of each task to be evaluated on (default: all)", at_least=1
    )


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The frozen language model."""

    model: str = setting("smollm2-135m", "smollm2-135m (embedded), a folder, or a Hugging Face model name")
    dtype: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "precision of the frozen model (auto: bf16 where the processor has it in hardware)"
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, mps; auto takes a GPU where there is one")
    load_in_4bit: bool = setting(False, "quantise the frozen model to 4 bits while loading it (NF4, bitsandbytes)")
    load_in_8bit: bool = setting(False, "quantise it to 8 bits (LLM.int8, bitsandbytes)")
    load_in_int8_torchao: bool = setting(False, "quantise its weights to 8-bit integers (torchao)")
    device_map: Literal["auto", "balanced", "sequential"] | None = setting(
        None, "spread the frozen model over all devices of this process, as accelerate does (default: it lies on one)"
    )
    shard_base: bool = setting(False, "share out the frozen model over the processes that torchrun has started (FSDP2)")

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_several(self)

    @property
    def quantization(self) -> str | None:
        """The setting that quantises the model while it is loaded, if one does."""
        return next((name for name in QUANTIZATIONS if getattr(self, name)), None)


def _refuse_several(config: Any) -> None:
    """Raise ``ConfigError`` where more than one setting says how the frozen model is quantised, or where it lies."""
    chosen = [name for name in QUANTIZATIONS if getattr(config, name)]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[0]}: excludes {chosen[1]}; choose one of them")
    if config.shard_base and (config.device_map is not None or chosen):
        other = chosen[0] if chosen else "device_map"
        raise ConfigError(f"shard_base: excludes {other}; choose one of them")


@dataclass(frozen=True)
class TableConfig(Checked):
    """A table of texts and labels; its columns, and what the labels are."""

    text: str | None = setting(None, "column of the texts (default: guessed where only one can be meant)")
    label: str | None = setting(None, "column of the labels (default: likewise)")
    labels: tuple[str, ...] | None = setting(None, "all labels there are, in their order (default: those of the rows)")
    multi_label: bool = setting(False, 'a row may have several labels, in a list or between "|", ";" or ","')
    ordinal: bool = setting(False, "the labels have an order: that of --labels, or of numbers")
    max_examples: int = setting(
        1000, "labelled rows to learn from at most, of each label as many as can be", at_least=4
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_label and self.ordinal:
            raise ConfigError("ordinal: labels that have an order exclude each other; leave out --multi-label")


@dataclass(frozen=True)
class PlaceConfig(Checked):
    """Where and how the language model of a run or posterior is loaded, if not as it was trained."""

    model: str | None = setting(None, "folder or name of the language model, where it has moved since training")
    dtype: Literal["auto", "bf16", "fp32"] = setting("auto", "precision of the language model (auto: as in training)")
    device: str = again(ModelConfig, "device")
    load_in_4bit: bool = again(ModelConfig, "load_in_4bit")
    load_in_8bit: bool = again(ModelConfig, "load_in_8bit")
    load_in_int8_torchao: bool = again(ModelConfig, "load_in_int8_torchao")
    device_map: Literal["auto", "balanced", "sequential"] | None = again(ModelConfig, "device_map")
    shard_base: bool = again(ModelConfig, "shard_base")

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_several(self)


@dataclass(frozen=True)
class EstimateConfig(Checked):
    """The step whose cost is estimated, and the machine it would run on."""

    model_config: str = setting(
        "llama3-8b", "smollm2-135m, llama3-8b, qwen2-7b, llama3-70b, or a config.json or a folder with one"
    )
    r: int = again(AdapterConfig, "r")
    target_modules: tuple[str, ...] = again(AdapterConfig, "target_modules")
    layers_to_transform: str | None = again(AdapterConfig, "layers_to_transform")
    per_device_train_batch_size: int = again(LearningConfig, "per_device_train_batch_size")
    sequence_length: int = setting(512, "tokens of an example, options included", at_least=2)
    option_tokens: int = setting(4, "positions of an example at which ABMLL and MAML score option tokens", at_least=1)
    inner_steps: int = again(LearningConfig, "inner_steps")
    dtype: Literal["bf16", "fp32"] = setting("bf16", "precision of the frozen model")
    attention: Literal["sdpa", "eager"] = setting(
        "sdpa", "attention in one kernel, or with its matrix of weights in memory"
    )
    gpu: str = setting("80GB", "a100, h100, h200, or a memory such as 80GB (then with an A100's speed)")
    peak_tflops: float | None = setting(None, "peak speed of the device in 10^12 operations a second", above=0)
    efficiency: float = setting(0.4, "share of the peak speed that a step reaches", above=0)
