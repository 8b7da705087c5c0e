"""What a user's own fine-tuning script does until its first step: import, load, tokenise, step, say so.

python -m benchmarks.plain_script MODEL_FOLDER DEVICE TEXTS; TEXTS is JSON, a list of pairs (prompt, answer).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll.language.encoding import Encoded
from benchmarks.plain_lora import PlainLora


def main(folder: str, device: str, texts: str) -> None:
    """Load everything, take one step, print a line."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pairs = json.loads(Path(texts).read_text(encoding="utf-8"))
    examples = [
        Encoded(tuple(tokenizer(prompt)["input_ids"]), (tuple(tokenizer(answer)["input_ids"]),), 0)
        for prompt, answer in pairs
    ]
    plain = PlainLora(model.to(device), tokenizer, modules=("q_proj", "v_proj"), r=8, alpha=16.0)
    plain.step(examples)
    print("stepped", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
