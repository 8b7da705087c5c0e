"""``abmll classify`` and ``abmll suggest``: a user's tables in, a table and a page out."""

import csv
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ABOUT = {"billing": ["invoice", "charge", "refund", "card"], "bug": ["crash", "error", "blank", "slow"]}


pytestmark = pytest.mark.usefixtures("few_chains")


def tickets(number: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    labels = [rng.choice(["billing", "bug"]) for _ in range(number)]
    return [
        {"no": f"{n:03}", "ticket": f"a {rng.choice(ABOUT[label])} again, number {n}", "team": label}
        for n, label in enumerate(labels)
    ]


def write(path: str, rows: list[dict[str, Any]]) -> str:
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def command(work: Any) -> str:
    """Thirty labelled rows and five new ones, one of them without a text."""
    write("tickets.csv", [*tickets(30), {"no": "x", "ticket": "not labelled yet", "team": ""}])
    new = [{**row, "team": ""} for row in tickets(4, seed=1)]
    write("new.csv", [*new, {"no": "004", "ticket": " ", "team": ""}])
    return f"classify tickets.csv new.csv --model {work.model} -o answers.csv"


def test_a_table_of_answers_and_a_page(command: str, abmll: Callable[..., Any]) -> None:
    code, out, err = abmll(command)
    assert code == 0, err
    rows = read("answers.csv")
    assert list(rows[0]) == [
        *("no", "ticket", "team", "predicted_label", "prob_billing", "prob_bug"),
        *("entropy", "mutual_information", "needs_review"),
    ]
    assert [row["no"] for row in rows] == ["000", "001", "002", "003", "004"]
    for row in rows[:4]:
        probs = {label: float(row[f"prob_{label}"]) for label in ("billing", "bug")}
        assert sum(probs.values()) == pytest.approx(1)
        assert row["predicted_label"] == max(probs, key=lambda label: probs[label])
        assert row["needs_review"] == str(max(probs.values()) < 0.8)
    assert set(rows[4].values()) == {"004", " ", ""}
    assert "texts in column 'ticket', labels in 'team': billing, bug" in err
    assert "1 row without a label left out" in err
    assert "1 new row without a text: not answered" in err
    assert "5-fold cross-validation on the labelled rows" in out
    page = Path("answers.html").read_text(encoding="utf-8")
    assert "Reliability diagram of Cross-validated: 30 examples" in page
    assert "Label by label" in page


def test_the_summary_says_how_far_to_trust_it(command: str, abmll: Callable[..., Any]) -> None:
    summary = json.loads(abmll(f"{command} --json --fold 3").out)
    assert summary["examples"] == 30
    assert sum(summary["labels"].values()) == 30
    assert 0 <= summary["cross_validation"]["accuracy"] <= 1
    assert summary["baseline"]["accuracy"] == max(summary["labels"].values()) / 30
    assert (summary["answered"], summary["unlabelled"]) == (4, 1)
    assert summary["accuracy"] is None


def test_new_rows_that_have_labels_are_compared(command: str, abmll: Callable[..., Any]) -> None:
    write("new.csv", [*tickets(3, seed=1), {"no": "9", "ticket": "a strange one", "team": "Billing!"}])
    code, out, err = abmll(command)
    assert code == 0
    right = sum(row["predicted_label"] == row["team"] for row in read("answers.csv"))
    assert f"{right} of 4 new rows that have a label" in out
    assert "warning: new rows have labels that no labelled row has: Billing!. Did you mean 'billing'?" in err


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet", ".xlsx"])
def test_other_forms_in_and_out(command: str, abmll: Callable[..., Any], suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(tickets(12))
    writers = {
        ".tsv": lambda path: frame.to_csv(path, sep="\t", index=False),
        ".jsonl": lambda path: frame.to_json(path, orient="records", lines=True),
        ".parquet": lambda path: frame.to_parquet(path),
        ".xlsx": lambda path: frame.to_excel(path, index=False),
    }
    writers[suffix](f"in{suffix}")
    model = command.split("--model ")[1].split()[0]
    code, _, err = abmll(f"classify in{suffix} in{suffix} --model {model} --output out{suffix}")
    assert code == 0, err
    readers = {
        ".tsv": lambda path: pandas.read_csv(path, sep="\t", dtype={"no": str}),
        ".jsonl": lambda path: pandas.read_json(path, lines=True, dtype={"no": str}),
        ".parquet": pandas.read_parquet,
        ".xlsx": lambda path: pandas.read_excel(path, dtype={"no": str}),
    }
    back = readers[suffix](f"out{suffix}")
    assert list(back["no"]) == list(frame["no"])
    assert (back["prob_billing"] + back["prob_bug"]).round(6).eq(1).all()


def test_standard_input(command: str, abmll: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BufferedReader(io.BytesIO(b"ticket\na crash\n"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    assert abmll(command.replace("new.csv", "-")).code == 0
    assert [row["ticket"] for row in read("answers.csv")] == ["a crash"]


def test_several_labels_a_row(command: str, abmll: Callable[..., Any]) -> None:
    rows = [{**row, "team": row["team"] + ("|urgent" if n % 3 else "")} for n, row in enumerate(tickets(20))]
    write("tickets.csv", rows)
    summary = json.loads(abmll(f"{command} --multi-label --json").out)
    assert summary["labels"]["urgent"] == sum(n % 3 > 0 for n in range(20))
    row = read("answers.csv")[0]
    probs = {label: float(row[f"prob_{label}"]) for label in ("billing", "bug", "urgent")}
    assert row["predicted_label"] == "; ".join(label for label, prob in probs.items() if prob > 0.5)


def test_what_was_learned_can_be_saved_and_asked(command: str, abmll: Callable[..., Any]) -> None:
    assert abmll(f"{command} --save kept").code == 0
    assert {path.name for path in Path("kept").iterdir()} == {"manifest.json", "posterior.json", "head.safetensors"}
    assert abmll("predict kept --input new.csv --output again.csv").code == 0
    assert read("again.csv") == read("answers.csv")


def test_a_task_of_several_labels_is_saved_and_asked(command: str, abmll: Callable[..., Any]) -> None:
    rows = [{**row, "team": row["team"] + ("|urgent" if n % 3 else "")} for n, row in enumerate(tickets(12))]
    write("tickets.csv", rows)
    assert abmll(f"{command} --multi-label --save kept").code == 0
    assert abmll("predict kept --input new.csv --output again.csv").code == 0
    assert read("again.csv") == read("answers.csv")


def test_adapt_takes_the_columns_of_a_table(command: str, abmll: Callable[..., Any]) -> None:
    model = command.split("--model ")[1].split()[0]
    outcome = abmll(f"adapt tickets.csv --model {model} --output-dir p")
    assert outcome.code == 0, outcome.err
    assert "tickets, 30 examples" in outcome.out
    assert "1 row without a label left out" in outcome.err
    write("new.csv", tickets(4, seed=1))
    outcome = abmll("predict p --input new.csv --output answers.csv --text ticket --json")
    assert json.loads(outcome.out)["examples"] == 4
    assert list(read("answers.csv")[0])[:4] == ["no", "ticket", "team", "predicted_label"]


def test_rows_above_the_limit_are_left_out(command: str, abmll: Callable[..., Any]) -> None:
    outcome = abmll(f"{command} --max-examples 10 --json")
    assert json.loads(outcome.out)["examples"] == 10
    assert "20 rows above --max-examples 10 left out" in outcome.err


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("--text body", "tickets.csv: no column 'body' (--text)"),
        ("--label teams", "Did you mean 'team'?"),
        ("--labels billing,other", "the label 'bug' is not among --labels"),
        ("--fold 1", "--fold is 1; at least 2 are needed"),
        ("--review-below 2", "--review-below is 2.0; it must be from 0 to 1"),
        ("--multi-label --ordinal", "leave out --multi-label"),
        ("--ordinal", "the labels are no numbers, so say their order"),
        ("--max-examples 3", "--max-examples is '3'"),
        ("--overwrite -o new.csv", "new.csv: is read by this command; name another file to write"),
        ("-o answers.txt", "answers are written as .jsonl, .csv, .tsv, .parquet or .xlsx"),
        ("-o new.csv", "new.csv exists already"),
    ],
)
def test_what_cannot_be_is_one_line(command: str, refused: Callable[..., str], change: str, fragment: str) -> None:
    if change.startswith("-o "):
        command = command.split(" -o ")[0]
    refused(f"{command} {change}", fragment)
    assert not Path("answers.csv").exists()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "tickets.csv: the file is empty; it needs at least one row under its header"),
        (b"ticket,team\n", "tickets.csv: the file is empty; it needs at least one row under its header"),
        (b"ticket,team\na b c,x\nd e f,y\n", "2 rows are labelled; label at least 4"),
        (b"ticket,team\n" + b"some words here,\n" * 9, "no row has both a text in 'ticket' and a label in 'team'"),
        (b"ticket,team\n" + b"some words here,x\n" * 9, "one label alone, 'x'"),
        (b"ticket,price\n" + b"".join(b"text %d,%d.5\n" % (n, n) for n in range(40)), "a quantity, not labels"),
        (b'ticket,team\nsome words,"x\ny"\n' * 1 + b"some words,z\n" * 5, "has a line break; write it on one line"),
        (b"ticket,team\n" + b"".join(b"text %d,l%d\n" % (n, n // 2) for n in range(402)), "has 201 labels"),
        (b"ticket,team\n" + b"x" * 10_000_001 + b",a\n", "line longer than 10 MB"),
        (b"\xff\xfe", "the file is UTF-16; save it as UTF-8"),
    ],
)
def test_a_table_that_teaches_nothing_is_one_line(
    command: str, refused: Callable[..., str], content: bytes, fragment: str
) -> None:
    Path("tickets.csv").write_bytes(content)
    label = "price" if b"price" in content else "team"
    refused(f"{command} --label {label}" if content and content[:1] != b"\xff" else command, fragment)


def test_standard_input_can_be_one_table_only(command: str, refused: Callable[..., str]) -> None:
    refused(command.replace("tickets.csv new.csv", "- -"), "-: standard input can be one table only; name a file")


def test_a_first_line_that_is_a_row_is_warned_of(command: str, abmll: Callable[..., Any]) -> None:
    rows = [{"it crashes": row["ticket"], "bug": row["team"]} for row in tickets(12)]
    write("tickets.csv", rows)
    assert "and 'bug' is a label too" in abmll(f"{command} --json").err


def test_decisions_on_several_labels_are_called_so(command: str, abmll: Callable[..., Any]) -> None:
    rows = [{**row, "team": row["team"] + ("|urgent" if n % 3 else "")} for n, row in enumerate(tickets(20))]
    write("tickets.csv", [*rows, {**rows[0], "team": ""}])
    outcome = abmll(f"{command} --multi-label")
    assert "cross-validation on the labelled rows, 3 decisions each" in outcome.out
    assert "1 row without a label (write [] for none of the labels) left out" in outcome.err


def test_a_long_text_is_cut_and_said_to_be(command: str, abmll: Callable[..., Any]) -> None:
    write("new.csv", [{"ticket": "it crashes. " * 500}, {"ticket": "a refund"}])
    outcome = abmll(command)
    assert outcome.code == 0
    assert "1 of 2 inputs too long for the model, cut in the middle" in outcome.out


def test_a_column_that_the_answers_need_is_refused(command: str, refused: Callable[..., str]) -> None:
    write("new.csv", [{"ticket": "x", "entropy": "1"}])
    refused(command, "new.csv: has a column 'entropy', as the answers will; rename it")


def test_suggest_names_unlabelled_rows(command: str, abmll: Callable[..., Any]) -> None:
    model = command.split("--model ")[1].split()[0]
    rows = tickets(16)
    write("part.csv", [row if n < 10 else {**row, "team": ""} for n, row in enumerate(rows)])
    code, out, err = abmll(f"suggest part.csv --model {model} --number 3 -o order.csv")
    assert code == 0, err
    assert out.count("part.csv:") == 3
    assert sorted(row["no"] for row in read("order.csv")) == [row["no"] for row in rows[10:]]
    named = json.loads(abmll(f"suggest part.csv --model {model} --number 2 --json").out)
    first = read("order.csv")[:2]
    assert [one["text"] for one in named] == [row["ticket"] for row in first]
    pool = json.loads(abmll(f"suggest part.csv --pool new.csv --model {model} --json").out)
    assert len(pool) == 4


def test_suggest_needs_rows_to_choose_from(command: str, refused: Callable[..., str]) -> None:
    write("full.csv", tickets(10))
    refused("suggest full.csv", "no rows without a label to choose from; name a table of them with --pool")
