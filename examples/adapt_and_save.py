"""Learn a task, save what was learned, load it again, and answer questions with it."""

from pathlib import Path

from abmll import AbmllModel, TaskPosterior, load_task

DATA = Path(__file__).parent / "data"
task, questions = load_task(DATA / "tickets.csv"), load_task(DATA / "checked_tickets.csv").examples
model = AbmllModel.from_pretrained("bigbench")
model.adapt(task.examples, task_name=task.name).save_pretrained("runs/tickets", overwrite=True)
posterior = TaskPosterior.from_pretrained("runs/tickets", scorer=model.scorer)
prediction = posterior.predict(questions)
right = sum(answer == one.answer for answer, one in zip(prediction.answers.tolist(), questions, strict=True))
print(f"{right} of {len(questions)} right, mean entropy {prediction.entropy.mean():.2f} nats")
