"""Compare two methods on one task: the Bayesian head, and logistic regression on the same features."""

from pathlib import Path

from abmll import AbmllModel, load_task
from abmll.common.config import LearningConfig
from abmll.experiments.metrics import evaluate_task

DATA = Path(__file__).parent / "data"
task, questions = load_task(DATA / "tickets.csv"), load_task(DATA / "checked_tickets.csv").examples
model = AbmllModel.from_base("smollm2-135m")
for method in ("head", "linear-probe"):
    model.learning = LearningConfig(method=method)
    prediction = model.adapt(task.examples, task_name=task.name).predict(questions)
    found = evaluate_task(prediction.lists(), [one.answer or 0 for one in questions])
    print(f"{method:12} accuracy {found['accuracy']:.3f}  NLL {found['nll']:.3f}  ECE {found['ece']:.3f}")
