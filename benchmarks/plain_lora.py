"""B1, what people do today: PEFT's LoRA, trained by the Hugging Face Trainer's own step.

Trainer's defaults are kept: padding to the longest example of the batch, logits of the whole vocabulary at every
position, fused AdamW, gradients clipped to norm 1. PEFT keeps its adapters in fp32 whatever the base's precision, as
it does by default. Nothing is recomputed in the backward pass.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from abmll.language.encoding import Encoded
from abmll.language.targets import find_targets
from benchmarks.workload import IGNORED, right_answer

SCHEDULE_STEPS = 100_000  # the length of Trainer's learning-rate schedule: no run comes near its end


class PlainLora:
    """LoRA on the linear layers named by ``modules`` ("all-linear" or ends of names) of ``model``, which it changes."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        modules: tuple[str, ...],
        r: int,
        alpha: float,
        layers: str | None = None,
    ) -> None:
        config = LoraConfig(
            r=r,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (an int in PEFT's annotation)
            lora_dropout=0.0,
            target_modules=[target.name for target in find_targets(model, modules, layers)],
            task_type="CAUSAL_LM",
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, report_to="none", disable_tqdm=True, use_cpu=model.device.type == "cpu"
            )
        model.config.use_cache = False  # as Trainer.train sets it
        self.model: Any = get_peft_model(model, config)
        self.collate = DataCollatorForSeq2Seq(tokenizer)
        self.trainer: Any = Trainer(self.model, arguments, data_collator=self.collate)
        self.trainer.create_optimizer_and_scheduler(SCHEDULE_STEPS)
        prepared = self.trainer.accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.prepared, self.trainer.optimizer = prepared

    def inputs(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """The batch as Trainer's collator makes it."""
        return self.collate([right_answer(example) for example in examples])

    def step(self, examples: Sequence[Encoded]) -> Tensor:
        """One optimisation step of Trainer's loop; returns the loss, a mean over the answers' tokens."""
        inputs = self.inputs(examples)
        trainer = self.trainer
        answer_tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss = trainer.training_step(self.prepared, inputs, answer_tokens.to(trainer.args.device))
        self.clip()
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.prepared.zero_grad()
        return loss

    def clip(self) -> None:
        """Clip the gradients as Trainer does."""
        self.trainer.accelerator.clip_grad_norm_(self.prepared.parameters(), self.trainer.args.max_grad_norm)

    def episode(self, batches: Sequence[Sequence[Encoded]]) -> None:
        """A step on each batch; plain LoRA has no outer step."""
        for batch in batches:
            self.step(batch)
