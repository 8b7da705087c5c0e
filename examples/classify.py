"""Label tickets with the interface of scikit-learn, and list the most doubtful answers first."""

import csv
from pathlib import Path

from abmll import AbmllClassifier

DATA = Path(__file__).parent / "data"
with (DATA / "tickets.csv").open(encoding="utf-8", newline="") as file:
    texts, labels = zip(*((row["input"], row["output"]) for row in csv.DictReader(file)), strict=True)
with (DATA / "new_tickets.csv").open(encoding="utf-8", newline="") as file:
    new = [row["input"] for row in csv.DictReader(file)]
classifier = AbmllClassifier(task_name="tickets").fit(texts, labels)
for text, probs in sorted(zip(new, classifier.predict_proba(new), strict=True), key=lambda pair: pair[1].max()):
    print(f"{probs.max():.2f} {classifier.classes_[probs.argmax()]:9} {text}")
