"""Learning on the page: from pasted lines or a CSV, with jobs that are watched, cancelled, or fail."""

import re
from pathlib import Path
from typing import Any

from tests.serving.browser import Site, needs_browser
from tests.serving.page.examples import EXAMPLES, LINES
from tests.serving.server_stand_in import StandIn

pytestmark = needs_browser


def test_a_task_is_learned_from_pasted_lines(site: Site, state: StandIn) -> None:
    site.open()
    site.expect("None yet.")
    site.page.get_by_role("link", name="New task").click()
    site.field("Name").fill("tickets")
    site.field("One example a line").fill("text,label\n" + LINES + "\nno label here")
    site.expect("5 examples, 3 labels")
    site.expect("Line 7 has no label: put a comma and the label after its text.")
    counted = site.page.locator(".counts tbody tr")
    rows = [re.compile(rf"^{label}\s+{number}$") for label, number in (("billing", 2), ("bug", 2), ("account", 1))]
    site.expect_of(counted).to_have_text(rows, use_inner_text=True)
    assert state.tasks == {}  # nothing is learned before the user says so
    site.field("One example a line").fill(LINES)
    site.button("Learn").click()
    site.page.get_by_role("heading", name="tickets", exact=True).wait_for()
    site.expect("5 examples · version 1 · head")
    assert site.page.url.endswith("#task/tickets/ask")
    assert {text: one["label"] for text, one in state.tasks["tickets"]["examples"].items()} == dict(EXAMPLES)
    current = site.page.locator("#task-list a[aria-current]")
    site.expect_of(current).to_have_text(re.compile(r"^\s*tickets\s+ready\s*$"), use_inner_text=True)
    assert "GET /v1/jobs/j0/events" in state.requests


def test_a_csv_is_read_and_its_columns_are_chosen(site: Site, state: StandIn, tmp_path: Path) -> None:
    table = tmp_path / "my tickets.csv"
    rows = [("first, line\nsecond", "x", "a"), ('a "word"', "y", "b"), ("third", "z", "")]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["one,two,three", *quoted]).encode())
    site.open("new")
    site.page.get_by_label("Upload a CSV file").check()
    site.field("CSV file").set_input_files(table)
    site.expect("Choose which column has the texts and which the labels.")
    site.field("Column of texts").select_option(label="one")
    site.field("Column of labels").select_option(label="three")
    site.expect("2 examples, 2 labels")
    site.expect("Row 3 has no label: it is left out.")
    site.expect_of(site.field("Name")).to_have_value("my-tickets")
    site.button("Learn").click()
    site.expect("2 examples · version 1")
    assert list(state.tasks["my-tickets"]["examples"]) == ["first, line\nsecond", 'a "word"']


def test_columns_with_usual_names_are_guessed_and_a_file_that_is_no_text_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;label;text\n1;bug;it; crashes\n2;billing;pay\n", encoding="utf-8")
    (tmp_path / "b.csv").write_bytes("text,label\nschön,a\n".encode("latin-1"))
    site.open("new")
    site.page.get_by_label("Upload a CSV file").check()
    site.field("CSV file").set_input_files(tmp_path / "a.csv")
    site.expect("2 examples, 2 labels")
    site.field("CSV file").set_input_files(tmp_path / "b.csv")
    site.expect("This file is not text in UTF-8.")


def test_pasted_lines_and_tables_are_read_as_they_are_meant(site: Site) -> None:
    site.open()

    def read(function: str, *given: Any) -> Any:
        script = "async ([name, given]) => (await import('/page/examples_text.js'))[name](...given)"
        return site.page.evaluate(script, [function, list(given)])

    assert read("fromLines", 'a, b, c\n"x, ""y""", z\n\n')["examples"] == [
        {"text": "a, b", "label": "c"},
        {"text": 'x, "y"', "label": "z"},
    ]
    assert read("fromLines", "a, b\tc, d\ne, f") == {
        "examples": [{"text": "a, b", "label": "c, d"}],
        "faults": ["Line 2 has no label: put a tab and the label after its text."],
    }
    assert read("fromCsv", 'a,b\r\n"1,""2""\r\n3",\r\n\r\nx,y') == [["a", "b"], ['1,"2"\r\n3', ""], ["x", "y"]]
    assert read("fromLines", "a, b; c\ne; d\nf, g; c")["examples"] == [
        {"text": "a, b", "label": "c"},
        {"text": "e", "label": "d"},
        {"text": "f, g", "label": "c"},
    ]
    assert read("fromLines", "wait; then, x\nstop; now, x\nno label")["examples"] == [
        {"text": "wait; then", "label": "x"},
        {"text": "stop; now", "label": "x"},
    ]
    assert read("fromCsv", "SEP=|\r\na|b\r\n1;2|\r\n|\r\n\r\n") == [["a", "b"], ["1;2", ""], ["", ""]]
    assert read("fromCsv", "a\tb,c\n1\t2") == [["a", "b,c"], ["1", "2"]]
    assert read("guessColumns", ["id", " Text", "LABEL"]) == {"text": 1, "label": 2}
    assert read("guessColumns", ["words", "label"]) == {"text": 0, "label": 1}
    assert read("guessColumns", ["input", "tag", "category"]) == {"text": 0, "label": -1}
    words = [["1", f"word {n} of it", "xy"[n % 2], "same"] for n in range(4)]
    assert read("guessColumns", ["a", "b", "c", "d"], words) == {"text": 1, "label": 2}
    assert read("guessColumns", ["a", "b", "c", "d"], words[:2]) == {"text": 1, "label": -1}
    assert read("toCsv", [["=a", 'b"c', -1.5, "-x"]]) == '\'=a,"b""c",-1.5,\'-x\r\n'


def test_learning_is_cancelled_and_what_was_typed_stays(site: Site, state: StandIn) -> None:
    state.step_seconds = 0.5
    site.open("new")
    site.field("Name").fill("tickets")
    site.field("One example a line").fill(LINES)
    site.page.get_by_text("More options").click()
    site.page.get_by_label("The labels have an order").check()
    site.field("Labels in their order, one a line").fill("bug\naccount\nbilling")
    site.button("Learn").click()
    site.expect("Learning: 1 of 20")
    assert state.tasks["tickets"]["order"] == ["bug", "account", "billing"]
    site.button("Cancel").click()
    site.expect("Cancelled. Nothing was learned.")
    site.expect("None yet.")
    site.expect_of(site.field("One example a line")).to_have_value(LINES)
    state.step_seconds = 0.002
    site.button("Learn").click()  # the same name is free again
    site.expect("5 examples · version 1")


def test_a_change_that_is_cancelled_leaves_the_task_as_it_was_until_it_is_learned_anew(
    site: Site, state: StandIn
) -> None:
    state.put("tickets", EXAMPLES)
    state.step_seconds = 0.5
    site.open("task/tickets/examples")
    site.field("One example a line").fill("Hello, greeting")
    site.button("Add").click()
    site.button("Keep").click()  # the label is a new one
    site.button("Cancel").click()
    site.expect("Cancelled. The task answers as before.")
    site.expect("The last change is not learned: it was cancelled")
    site.expect("6 examples · version 1")
    site.expect_of(site.page.locator(".chips")).to_contain_text("greeting 1")
    site.expect_of(site.field("One example a line")).to_have_value("Hello, greeting")
    site.button("Learn it anew").click()
    site.expect("6 examples · version 2")
    site.expect_of(site.button("Learn it anew")).to_be_hidden()


def test_a_task_that_cannot_answer_says_why_and_is_learned_anew(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    state.tasks["tickets"]["damage"] = "A file of this task is damaged."
    site.open("task/tickets/ask")
    site.expect("A file of this task is damaged.")
    site.expect("No version of this task can answer yet.")
    site.expect_of(site.button("Ask")).to_be_hidden()
    site.button("Learn it anew").click()
    site.expect("version 2")
    site.expect_of(site.button("Ask")).to_be_visible()
    site.expect_number(site.page.get_by_text("A file of this task is damaged."), 0)


def test_a_job_is_asked_after_where_its_events_do_not_come_and_may_fail(site: Site, state: StandIn) -> None:
    state.adapters = True
    state.refuse["events"] = "No events through this proxy."
    state.fail = "Learning came to no end: give fewer steps."
    site.open("new")
    site.field("Name").fill("tickets")
    site.field("One example a line").fill(LINES)
    site.page.get_by_text("More options").click()
    site.page.get_by_label("Adapters, by gradient steps").check()
    site.button("Learn").click()
    site.expect("Learning came to no end: give fewer steps.")
    site.forgive("a status of 503")
    site.button("Learn").click()
    site.expect("5 examples · version 1 · adapters")


def test_a_job_that_is_under_way_is_shown_to_who_comes_later(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    state.step_seconds = 0.3
    site.open("task/tickets/ask")
    site.field("Texts to ask about").fill("The app crashes")
    site.button("Ask").click()
    site.button("Yes, it is bug").click()
    site.expect("Updating: ")
    other = site.page.context.new_page()
    other.goto(f"{site.url}/#task/tickets/ask")
    other.get_by_text("Updating: ").wait_for()
    state.step_seconds = 0
    other.get_by_text("6 examples · version 2").wait_for()
    other.close()
    site.expect("Version 2 has learned it.")
