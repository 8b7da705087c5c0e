"""Fine-tune an adapter on one task, export it, and load it with PEFT, without ABMLL."""

from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM

from abmll import AbmllModel, load_task
from abmll.common.config import LearningConfig

task = load_task(Path(__file__).parent / "data" / "tickets.csv")
model = AbmllModel.from_base("smollm2-135m", r=4, target_modules=["q_proj", "v_proj"], layers_to_transform="top-2")
model.learning = LearningConfig(method="pretrained-adapted")
posterior = model.adapt(task.examples, task_name=task.name, steps=4, batch_size=2)
posterior.export_peft("adapters/tickets", overwrite=True)
plain = AutoModelForCausalLM.from_pretrained(str(model.scorer.base.model.name_or_path))  # where the base model lies
adapted = PeftModel.from_pretrained(plain, "adapters/tickets")
print(f"PEFT loaded {sum('lora_' in name for name, _ in adapted.named_parameters())} tensors")
