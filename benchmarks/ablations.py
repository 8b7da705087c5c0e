"""What each part of the head is worth, on validation tasks alone: python -m benchmarks.ablations --data-dir FOLDER.

Every variant learns the same examples of the validation tasks of ``SUITE`` and answers the same questions. The features
are read once. Writes results/ablations.json; docs/methods.md has its table.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from abmll import AbmllModel
from abmll.common.config import EvaluateConfig, PromptConfig
from abmll.common.files import write_json
from abmll.experiments.metrics import Predictions, evaluate_task, mean_over_tasks, pooled
from abmll.language.features import FeatureReader
from abmll.methods.linear_probe import Probe
from abmll.model.prequential import answer_columns, labels_of
from abmll.model.task_head import aligned
from abmll.posterior.head import HeadPosterior
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.tasks.evaluation_examples import choose_examples
from abmll.tasks.suite import load_suite

SUITE, EXAMPLES, QUESTIONS, SEEDS = "cls-45", 20, 300, (0, 1, 2)
DEPTHS = (0.3333, 0.5, 0.6667, 0.8333, 0.9333, 1.0)
OUT = Path("results/ablations.json")
NEVER = -1e6  # log weight of a hypothesis that is left out
Learner = Callable[[Known, Tensor], Callable[[Known], Tensor]]


def only(prior: HeadPrior, subsets: Sequence[int], taus: Callable[[float], bool]) -> HeadPrior:
    """The prior with the hypotheses of these subsets and of the taus that pass."""
    labelled = tuple(
        tuple(
            weight if row in subsets and taus(tau) else NEVER for weight, tau in zip(weights, prior.taus, strict=True)
        )
        for row, weights in enumerate(prior.labelled)
    )
    return replace(prior, labelled=labelled)


def head(prior: HeadPrior) -> Learner:
    """The head under a prior."""
    return lambda known, answers: HeadPosterior(prior, known, answers).probs


def variants(prior: HeadPrior) -> dict[str, tuple[tuple[float, ...], Learner]]:
    """Depths and learner by the variant's name."""
    own = prior.depths
    rows: dict[str, tuple[tuple[float, ...], Learner]] = {
        "the head": (own, head(prior)),
        "features alone": (own, head(only(prior, [0], lambda tau: True))),
        "scores alone (tau = 0)": (own, head(only(prior, [0, 1, 2], lambda tau: tau == 0))),
        "one hypothesis (per token, one tau)": (own, head(only(prior, [1], lambda tau: tau == prior.taus[2]))),
        "hypotheses equally likely": (own, head(replace(prior, labelled=((0.0,) * len(prior.taus),) * 3))),
        "linear probe": (own, lambda known, answers: Probe(prior, known, answers).probs),
    }
    return rows | {f"features at depth {depth:.2f}": ((depth,), head(prior)) for depth in DEPTHS}


def measure(data_dir: Path) -> Mapping[str, Mapping[str, float]]:
    """Metrics of every variant: means over tasks and seeds."""
    suite = load_suite(SUITE, data_dir, allow_missing=True).for_tuning()
    model = AbmllModel.from_base(prompt=PromptConfig(**suite.prompt), quiet=False)
    prior = HeadPrior()
    depths = tuple(dict.fromkeys((*DEPTHS, *prior.depths)))
    blocks = replace(prior, depths=depths).blocks(model.scorer.num_blocks)
    reader, config = (
        FeatureReader(model.scorer, blocks),
        EvaluateConfig(adapt_examples=EXAMPLES, test_examples=QUESTIONS),
    )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants(prior)}
    for seed in SEEDS:
        predictions: dict[str, dict[str, Predictions]] = {name: {} for name in found}
        for task in suite.evaluation:
            support, questions = choose_examples(task, config, seed)
            examples = [*support, *questions]
            labels = sorted(labels_of(examples))
            features = aligned(reader.read(model.scorer.encode(examples, task.name)), examples, labels)
            answers = answer_columns(examples, labels)
            for name, (wanted, learner) in variants(prior).items():
                places = [
                    blocks.index(block) for block in replace(prior, depths=wanted).blocks(model.scorer.num_blocks)
                ]
                known, asked = (
                    Known(features.hidden[part][:, places], features.scores[part], bool(labels))
                    for part in (slice(0, len(support)), slice(len(support), None))
                )
                probs = learner(known, answers[: len(support)])(asked).mean(0)
                right = answers[len(support) :].tolist()
                texts = [one.options[one.answer or 0] for one in questions]
                predictions[name][task.name] = Predictions(probs.tolist(), right, texts)
        for name, by_task in predictions.items():
            mean = mean_over_tasks({task: evaluate_task(*one) for task, one in by_task.items()})
            found[name].append(
                {**{key: mean[key] for key in ("accuracy", "nll", "ece")}, "pooled_ece": pooled(by_task)["ece"]}
            )
    return {name: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} for name, rows in found.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    torch.manual_seed(0)
    rows = measure(parser.parse_args().data_dir)
    write_json(OUT, {"suite": SUITE, "examples": EXAMPLES, "seeds": list(SEEDS), "rows": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
