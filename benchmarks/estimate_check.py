"""``abmll estimate`` against measurement: python -m benchmarks.estimate_check prints predicted and measured peaks.

SmolLM2-135M in fp32 on the CPU. Each measurement is a fresh process: the most memory it has had over two gradient
steps, less what it had before it loaded the model. It is taken twice, since what is predicted are tensors: with every
larger tensor in a mapping of its own, which is what has to agree, and with the C library's own choice, which keeps
tensors in a heap where holes stay behind. ``main`` fails where a prediction is off by more than 15 %.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace

import torch

from abmll.common.config import AdapterConfig, EstimateConfig, LearningConfig, ModelConfig, PromptConfig
from abmll.common.settings import pick
from abmll.experiments.costs import load_shape
from abmll.experiments.costs.totals import abmll, lora, published
from abmll.language.base import Base, load_base
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import make_rule
from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.plain_lora import PlainLora
from benchmarks.published import Published

TOLERANCE = 0.15
# glibc's threshold for a mapping of its own starts here and moves up to 32 MB as a program runs, unless it is set.
FIXED, MOVING = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}, {}
QV, ALL = ("q_proj", "v_proj"), ("all-linear",)
# Method, examples, tokens of each, adapted modules; the published algorithm would need 20 GB at 8 x 256, all-linear.
CASES = (
    ("abmll", 8, 256, QV),
    ("abmll", 8, 256, ALL),
    ("abmll", 4, 512, QV),
    ("lora", 8, 256, QV),
    ("lora", 8, 256, ALL),
    ("lora", 4, 512, QV),
    ("published", 8, 256, QV),
    ("published", 4, 128, ALL),
)
OPTIONS, OPTION_LENGTH = 2, 2
SMOLLM = EstimateConfig(
    model_config="smollm2-135m", dtype="fp32", option_tokens=1 + OPTIONS * (OPTION_LENGTH - 1), inner_steps=2
)
# ABMLL reads eagerly on a CPU (see ``load_base``); the Trainer's model comes with transformers' own default.
METHODS = {"abmll": (abmll, "eager"), "lora": (lora, "sdpa"), "published": (published, "sdpa")}


def main() -> int:
    """Print the table; 1 where a prediction is further off than the tolerance."""
    worst = 0.0
    print("method     batch    modules        predicted, MB  measured, MB  ratio  in a heap, MB")
    for method, examples, length, modules in CASES:
        config = replace(SMOLLM, per_device_train_batch_size=examples, sequence_length=length, target_modules=modules)
        expected, seen, heap = predicted(method, config), measured(method, config), measured(method, config, MOVING)
        worst = max(worst, abs(expected / seen - 1))
        row = f"{method:<10} {f'{examples} x {length}':<8} {','.join(modules):<14}"
        numbers = f"{expected / 1e6:13,.0f}  {seen / 1e6:12,.0f}  {expected / seen:5.3f}  {heap / 1e6:13,.0f}"
        print(row, numbers, flush=True)
    print(f"largest deviation {worst:.1%}, allowed {TOLERANCE:.0%}")
    return int(worst > TOLERANCE)


def predicted(method: str, config: EstimateConfig) -> int:
    """Bytes of a step by ``abmll estimate``."""
    cost, attention = METHODS[method]
    config = pick(EstimateConfig, asdict(config) | {"attention": attention})
    return cost(load_shape(config.model_config, config.target_modules, config.layers_to_transform), config).memory.total


def measured(method: str, config: EstimateConfig, allocator: dict[str, str] = FIXED) -> int:
    """Bytes of a fresh process over two steps. Raises ``RuntimeError`` with what the process said."""
    command = [sys.executable, "-m", "benchmarks.estimate_check", method, json.dumps(asdict(config))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **allocator})
    if done.returncode:
        raise RuntimeError(f"{method}: {done.stderr.strip()}")
    return int(done.stdout.splitlines()[-1])


def work(method: str, config: EstimateConfig) -> int:
    """Take two steps in this process; the bytes of its peak above the process before it loaded the model."""
    torch.set_num_threads(1)
    square = torch.randn(256, 256, requires_grad=True)
    (square @ square).sum().backward()  # the libraries' own memory
    before = resident_bytes()
    examples = batch(config)
    base = load_base(ModelConfig("smollm2-135m", "fp32", "cpu"), announce=lambda line: None, quiet=True)
    _, attention = METHODS[method]
    base.model.set_attn_implementation(attention)
    TAKE[method](base, config, examples)
    return peak_bytes() - before


def batch(config: EstimateConfig) -> list[Encoded]:
    """Random examples of the length asked for, the first a token shorter, so that there is something to pad."""
    draw = random.Random(0)
    options = tuple(tuple(range(10 * c, 10 * c + OPTION_LENGTH)) for c in range(1, 1 + OPTIONS))
    prompt = config.sequence_length - OPTIONS * (OPTION_LENGTH - 1)
    lengths = [prompt - 1] + [prompt] * (config.per_device_train_batch_size - 1)
    return [Encoded((n, *draw.choices(range(1000), k=length - 1)), options, 0) for n, length in enumerate(lengths)]


def _abmll(base: Base, config: EstimateConfig, examples: list[Encoded]) -> None:
    scorer = OptionScorer(base, AdapterConfig(r=config.r, target_modules=config.target_modules), PromptConfig())
    rule = make_rule(scorer, LearningConfig(), num_tasks=1)
    state = rule.init(scorer.new_adapter(0))
    rule.begin_episode(state, done=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        rule.inner_step(state, scorer.batch(examples), generator, rate=1.0)
    rule.outer_step(state, scorer.batch(examples), generator, rate=1.0)


def _lora(base: Base, config: EstimateConfig, examples: list[Encoded]) -> None:
    plain = PlainLora(base.model, base.tokenizer, modules=config.target_modules, r=config.r, alpha=2.0 * config.r)
    plain.episode([examples, examples])


def _published(base: Base, config: EstimateConfig, examples: list[Encoded]) -> None:
    Published(base.model, modules=config.target_modules).episode([examples, examples])


TAKE = {"abmll": _abmll, "lora": _lora, "published": _published}

if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(work(sys.argv[1], pick(EstimateConfig, json.loads(sys.argv[2]))))
    else:
        sys.exit(main())
