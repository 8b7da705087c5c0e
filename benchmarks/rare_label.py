"""python -m benchmarks.rare_label: the table of docs/howto/imbalanced.md, of the tickets in ``examples/data``.

Examples of one label are taken away, and the same 32 tickets are answered. Printed are means over four draws.
"""

import random
import sys
from collections.abc import Sequence

import torch

from abmll import AbmllModel, Example, load_task
from benchmarks.machine import ROOT

DATA = ROOT / "examples" / "data"
RARE = "delivery"
KEPT = (10, 5, 2)  # examples of it; the other labels have 10 each
DRAWS = 4
COLUMNS = ("kept", "accuracy", "found", "others right", "mean probability", "NLL")


def main() -> int:
    """Run the command."""
    model = AbmllModel.from_pretrained("bigbench")
    learned, asked = (load_task(DATA / name).examples for name in ("tickets.csv", "checked_tickets.csv"))
    print(*COLUMNS, sep="\t")
    for kept in KEPT:
        rows = [answered(model, learned, asked, kept, draw) for draw in range(DRAWS)]
        means = (sum(values) / DRAWS for values in zip(*rows, strict=True))
        print(kept, *(f"{mean:.2f}" for mean in means), sep="\t")
    return 0


def answered(
    model: AbmllModel, learned: Sequence[Example], asked: Sequence[Example], kept: int, draw: int
) -> tuple[float, ...]:
    """Of one draw: accuracy, share of the rare label that was found, of others right, its mean probability, NLL."""
    rare = [one for one in learned if label(one) == RARE]
    others = [one for one in learned if label(one) != RARE]
    chosen = [*others, *random.Random(draw).sample(rare, kept)]
    found = model.adapt(chosen, task_name="tickets", seed=draw).predict(asked)
    options = asked[0].options
    truth = torch.tensor([options.index(label(one)) for one in asked])
    right, is_rare = (found.answers == truth).double(), truth == options.index(RARE)
    nll = -found.probs.gather(1, truth[:, None]).log()
    means = (right, right[is_rare], right[~is_rare], found.probs[:, options.index(RARE)], nll)
    return tuple(float(values.mean()) for values in means)


def label(example: Example) -> str:
    """The right option."""
    assert example.answer is not None
    return example.options[example.answer]


if __name__ == "__main__":
    sys.exit(main())
