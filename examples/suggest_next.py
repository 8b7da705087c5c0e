"""Which of many unlabelled texts should a person label next? Those whose label would teach most."""

import csv
from pathlib import Path

from abmll import AbmllModel, Example, load_task

DATA = Path(__file__).parent / "data"
task = load_task(DATA / "tickets.csv")
with (DATA / "new_tickets.csv").open(encoding="utf-8", newline="") as file:
    pool = [Example(str(n), row["input"], task.examples[0].options, None) for n, row in enumerate(csv.DictReader(file))]
posterior = AbmllModel.from_pretrained("bigbench").adapt(task.examples, task_name=task.name)
for place in posterior.suggest(pool)[:4]:
    print(pool[place].input)
