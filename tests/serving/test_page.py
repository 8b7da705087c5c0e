"""The page in a browser, driven as a user would, against a server that answers without a model."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from abmll.serving.page_files import FILES
from tests.serving.browser import Site, chromium_running, needs_browser, visiting
from tests.serving.live_server import running
from tests.serving.server_stand_in import StandIn, stand_in_app

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = needs_browser
MARKUP = "<img src=x onerror=alert(1)>"
EXAMPLES = [
    ("My card was charged twice", "billing"),
    ("Refund the invoice please", "billing"),
    ("The app crashes when I open settings", "bug"),
    ("Blank page after the login", "bug"),
    ("How do I change my name?", "account"),
]
LINES = "\n".join(f"{text}, {label}" for text, label in EXAMPLES)
PARTS = ["ask", "suggest", "examples", "quality", "files"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with chromium_running() as browser:
        yield browser


@pytest.fixture
def state() -> StandIn:
    """What the server knows; nothing at first."""
    return StandIn()


@pytest.fixture
def site(chromium: Any, state: StandIn) -> Iterator[Site]:
    with running(stand_in_app(state)) as url, visiting(chromium, url) as site:
        yield site


def test_a_task_is_learned_from_pasted_lines(site: Site, state: StandIn) -> None:
    site.open()
    site.expect("None yet.")
    site.page.get_by_role("link", name="New task").click()
    site.field("Name").fill("tickets")
    site.field("One example a line").fill("text,label\n" + LINES + "\nno label here")
    site.expect("5 examples, 3 labels")
    site.expect("Line 7 has no label: put a comma and the label after its text.")
    counted = site.page.locator(".counts tbody tr").all_inner_texts()
    assert [row.split() for row in counted] == [["billing", "2"], ["bug", "2"], ["account", "1"]]
    assert state.tasks == {}  # nothing is learned before the user says so
    site.field("One example a line").fill(LINES)
    site.button("Learn").click()
    site.page.get_by_role("heading", name="tickets", exact=True).wait_for()
    site.expect("5 examples · version 1 · head")
    assert site.page.url.endswith("#task/tickets/ask")
    assert {text: one["label"] for text, one in state.tasks["tickets"]["examples"].items()} == dict(EXAMPLES)
    assert site.page.locator("#task-list a[aria-current]").inner_text().split() == ["tickets", "ready"]
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
    assert site.field("Name").input_value() == "my-tickets"
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
    site.expect("Cancelled. Nothing was changed.")
    site.expect("None yet.")
    assert site.field("One example a line").input_value() == LINES
    state.step_seconds = 0.002
    site.button("Learn").click()  # the same name is free again
    site.expect("5 examples · version 1")


def test_an_error_is_said_beside_what_was_done_and_what_was_typed_stays(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    site.open("new")
    site.field("Name").fill("no name")
    site.button("Learn").click()
    site.expect("Give the task a name of letters")
    site.field("Name").fill("tickets")
    site.field("One example a line").fill("alone, one")
    site.button("Learn").click()
    site.expect("All examples have the same label.")
    site.field("One example a line").fill(LINES)
    site.button("Learn").click()
    site.expect("There is a task 'tickets' already; choose another name.")
    site.forgive("a status of 409")
    assert site.field("One example a line").input_value() == LINES
    site.open("task/tickets/ask")
    state.refuse["predict"] = "The queue is full."
    site.field("Texts to ask about").fill("anything")
    site.button("Ask").click()
    alert = site.page.get_by_role("alert").filter(has_text="The queue is full.")
    assert alert.evaluate("node => node.closest('form').querySelector('textarea').value") == "anything"
    site.forgive("a status of 503")
    site.button("Ask").click()
    site.expect("1 answer")
    assert alert.count() == 0


def test_answers_tell_two_kinds_of_doubt_apart(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    site.open("task/tickets/ask")
    texts = ["The app crashes when it opens the login page", "Hello", "x" * 500]
    site.field("Texts to ask about").fill("\n".join(texts))
    site.button("Ask").click()
    cards = site.page.locator(".card")
    cards.nth(2).wait_for()
    for index, text in enumerate(texts):
        answer, card = state.answer("tickets", text), cards.nth(index)
        assert card.locator(".quoted").inner_text() == text
        assert card.locator(".verdict strong").inner_text() == answer["label"]
        assert f"{answer['probabilities'][answer['label']] * 100:.1f} %" in card.locator(".verdict").inner_text()
        few, most = answer["mutual_information"], math.log(3)
        numbers = f"{few:.2f} from few examples, {answer['entropy'] - few:.2f} from the text itself"
        assert card.get_by_role("img").get_attribute("aria-label") == f"Doubt: {numbers}, of at most {most:.2f} nats"
        inner = card.locator(".split").evaluate("node => node.clientWidth")
        for part, value in ((".few", few), (".itself", answer["entropy"] - few)):
            width = card.locator(f".split {part}").evaluate("node => node.getBoundingClientRect().width")
            assert width == pytest.approx(inner * value / most, abs=1)
    assert "Much doubt" in cards.nth(1).inner_text()
    assert "only a part of it was read" in cards.nth(2).inner_text()


def test_doubt_is_said_in_words(site: Site) -> None:
    site.open()
    expected = {
        (0.05, 0.05): "Little doubt.",
        (0.25, 0.15): "Some doubt, mostly for want of examples: label more texts like this.",
        (0.10, 0.25): "Some doubt, partly for want of examples: more texts like this would help.",
        (0.05, 0.85): "Much doubt, which lies in the text itself: more examples would hardly help.",
    }
    for (few, itself), words in expected.items():
        script = "async (doubt) => (await import('/page/answer.js')).inWords(...doubt)"
        assert site.page.evaluate(script, [few, itself, 1]) == words


def test_many_answers_are_shown_in_parts_and_saved_whole(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    site.open("task/tickets/ask")
    site.field("Texts to ask about").fill("\n".join(["=1+1", *map(str, range(49))]))
    site.button("Ask").click()
    site.expect("Answered by version 1.")
    assert site.page.locator(".card").count() == 20
    site.button("Show more").click()
    site.button("Show more").click()
    assert site.page.locator(".card").count() == 50
    assert not site.button("Show more").is_visible()
    with site.page.expect_download() as download:
        site.button("Download answers (CSV)").click()
    rows = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert rows[0] == "text,label,p(account),p(billing),p(bug),entropy,mutual_information"
    assert len(rows) == 51
    assert rows[1].startswith("'=1+1,")  # no formula for a spreadsheet


def test_a_correction_becomes_an_example(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    site.open("task/tickets/ask")
    site.field("Texts to ask about").fill("The app crashes, twice\nRefund the invoice")
    site.button("Ask").click()
    first, second = site.page.locator(".card").nth(0), site.page.locator(".card").nth(1)
    first.get_by_role("button", name="Correct it").click()
    first.get_by_text("Choose the label that is right first.").wait_for()
    first.get_by_label("or it should be").select_option("billing")
    first.get_by_role("button", name="Correct it").click()
    first.get_by_text("Now an example of “billing”. Version 2 has learned it.").wait_for()
    site.expect("6 examples · version 2")
    assert site.page.locator(".chips").inner_text().split() == ["account", "1", "billing", "3", "bug", "2"]
    second.get_by_role("button", name="Yes, it is billing").click()
    second.get_by_text("Version 3 has learned it.").wait_for()
    assert state.tasks["tickets"]["examples"]["Refund the invoice"]["label"] == "billing"
    site.expect("Version 3 is there.")
    site.button("Ask again").click()
    site.expect("Answered by version 3.")


def test_suggestions_are_labelled_where_they_stand(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    site.open("task/tickets/suggest")
    texts = ["The app crashes when I open settings again", "Hello", "Refund my card"]
    site.field("Texts without labels, one a line").fill("\n".join([*texts, "Hello"]))
    site.field("How many to suggest").fill("2")
    site.button("Suggest").click()
    site.page.locator(".to-label").nth(1).wait_for()
    by_doubt = sorted(texts, key=lambda text: -state.answer("tickets", text)["mutual_information"])
    assert site.page.locator(".to-label .quoted").all_inner_texts() == by_doubt[:2]
    site.button("Add these labels").click()
    site.expect("Choose a label for at least one text first.")
    site.field(f"Label of: {by_doubt[0]}").select_option("account")
    site.button("Add these labels").click()
    site.expect("1 example added. Version 2 has learned them.")
    assert state.tasks["tickets"]["examples"][by_doubt[0]]["label"] == "account"
    left = [text for text in texts if text != by_doubt[0]]
    assert site.field("Texts without labels, one a line").input_value().splitlines()[:2] == left


def test_examples_are_found_removed_put_back_added_and_downloaded(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    site.open("task/tickets/examples")
    rows = site.page.locator(".list tbody tr")
    rows.nth(4).wait_for()
    site.field("Find examples").fill("BUG")
    site.expect("2 of 5 examples")
    site.button("Remove: Blank page after the login").click()
    site.expect("4 examples · version 2")
    assert "Blank page after the login" not in state.tasks["tickets"]["examples"]
    site.button("Undo").click()
    site.expect("5 examples · version 3")
    site.expect("2 of 5 examples")
    site.field("Find examples").fill("")
    site.field("One example a line").fill("Charged again\tbilling\nWhere, please, is it?\taccount")
    site.button("Add").click()
    site.expect("2 examples added. Version 4 has learned them.")
    assert site.field("One example a line").input_value() == ""
    assert rows.count() == 7
    with site.page.expect_download() as download:
        site.button("Download examples (CSV)").click()
    assert download.value.suggested_filename == "tickets.csv"
    assert "Charged again,billing" in Path(download.value.path()).read_text(encoding="utf-8")


def test_quality_is_said_in_numbers_a_figure_and_its_words(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    state.put("small", EXAMPLES[:3])
    site.open("task/tickets/quality")
    site.expect("Each of 5 examples was answered by what is learned from the others.")
    assert site.page.locator(".metrics strong").all_inner_texts() == ["75 %", "0.410", "6.0 %"]
    image = site.page.get_by_role("img", name="Reliability figure: at 50 % to 60 % confidence, 0 % of 1 right; at 90 %")
    image.wait_for()
    assert image.evaluate("async (node) => { await node.decode(); return node.naturalWidth; }") > 0
    site.open("task/small/quality")
    site.expect("Not known yet.")


def test_a_task_is_taken_away_as_files_and_deleted(site: Site, state: StandIn) -> None:
    state.put("full", EXAMPLES, how="full")
    state.put("tickets", EXAMPLES)
    site.open("task/full/files")
    for name, format in (("Posterior (zip)", "posterior"), ("LoRA adapter (zip)", "peft")):
        with site.page.expect_download() as download:
            site.button(name).click()
        assert download.value.suggested_filename == f"full_{format}.zip"
        assert json.loads(Path(download.value.path()).read_bytes()[2:]) == {"format": format}
    site.open("task/tickets/files")
    site.button("Posterior (zip)").wait_for()
    assert site.button("LoRA adapter (zip)").count() == 0
    site.button("Delete this task").click()
    site.expect("Delete tickets?")
    site.button("Keep it").click()
    assert "tickets" in state.tasks
    site.button("Delete this task").click()
    site.button("Delete").click()
    site.page.get_by_role("link", name="tickets").wait_for(state="detached")
    assert list(state.tasks) == ["full"]


def test_a_token_is_asked_for_and_stays_in_its_tab(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    state.token = "a-token-of-some-length"
    site.page.goto(site.url)
    site.field("Token").fill("wrong")
    site.button("Use this token").click()
    site.expect("This token is not known.")
    site.field("Token").fill(state.token)
    site.page.keyboard.press("Enter")
    site.page.get_by_role("link", name="tickets").click()
    site.page.get_by_role("link", name="Quality").click()
    site.page.get_by_role("img", name="Reliability figure").wait_for()
    site.page.reload()
    site.page.get_by_role("link", name="tickets").wait_for()
    assert not site.field("Token").is_visible()
    site.forgive("a status of 401")
    other = site.page.context.new_page()
    other.goto(site.url)
    other.get_by_label("Token", exact=True).wait_for()
    other.close()


def test_what_users_wrote_is_shown_as_text(site: Site, state: StandIn) -> None:
    label, text = f"a{MARKUP}", f"<script>alert(1)</script> {MARKUP}"
    state.put("tickets", [(text, label), ("other words", "b"), ("third", "b"), ("fourth", label)])
    site.open("new")
    site.field("One example a line").fill(f"{text}, {label}\n{text}, <b>b</b>")
    site.page.locator(".counts").get_by_text("<b>b</b>").wait_for()
    site.expect(f"“{text}” is there with two labels.")
    site.open("task/tickets/ask")
    site.field("Texts to ask about").fill(text)
    site.button("Ask").click()
    site.page.locator(".verdict").get_by_text(label, exact=True).wait_for()
    assert site.page.locator(".quoted").inner_text() == text
    site.open("task/tickets/suggest")
    site.field("Texts without labels, one a line").fill(text)
    site.button("Suggest").click()
    site.page.locator(".to-label").get_by_text(text).wait_for()
    site.open("task/tickets/examples")
    site.page.locator(".list").get_by_text(text).wait_for()
    for part in PARTS:
        site.open(f"task/tickets/{part}")
        assert site.page.locator("#main img:not(figure img), #main script, #main b b").count() == 0
    site.open(f"task/{MARKUP.replace('/', '')}/ask")
    site.page.get_by_role("heading", name=MARKUP).wait_for()
    site.forgive("a status of 404")


def test_the_keyboard_alone_learns_and_asks(site: Site) -> None:
    site.open()
    keyboard = site.page.keyboard

    def tab_to(name: str) -> None:
        for _ in range(30):
            keyboard.press("Tab")
            focused = site.page.evaluate(
                "[document.activeElement.labels?.[0] ?? document.activeElement][0].textContent"
            )
            if focused.strip() == name:
                style = site.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none", f"no visible focus on {name}"
                return
        raise AssertionError(f"Tab never comes to {name}")

    tab_to("New task")
    keyboard.press("Enter")
    site.page.get_by_role("heading", name="New task").wait_for()
    tab_to("Name")
    keyboard.type("tickets")
    tab_to("One example a line")
    keyboard.insert_text(LINES)
    tab_to("Learn")
    keyboard.press("Enter")
    site.expect("5 examples · version 1")
    tab_to("Texts to ask about")
    keyboard.type("The app crashes")
    keyboard.press("Control+Enter")
    site.page.locator(".verdict").wait_for()
    assert site.page.evaluate("document.activeElement.textContent") == "Answers"
    tab_to("Yes, it is bug")
    keyboard.press("Space")
    site.expect("Version 2 has learned it.")


def views(site: Site, state: StandIn) -> Iterator[str]:
    """Every view in turn, with something in it."""
    long = "Donaudampfschifffahrtsgesellschaft" * 4
    state.put("tickets", [*EXAMPLES, (long, "a label of " + "very " * 20 + "many words")], how="full")
    state.put(long[:100], EXAMPLES)
    yield from ("", "new")
    site.field("One example a line").fill(f"{LINES}\n{long},{long}\n{long}")
    site.page.locator(".counts tr").nth(3).wait_for()
    yield "new"
    yield "task/tickets/ask"
    site.field("Texts to ask about").fill(f"{long}\nThe app crashes")
    site.button("Ask").click()
    site.page.locator(".card").nth(1).wait_for()
    site.page.get_by_text("What the two kinds of doubt mean").click()
    yield "task/tickets/ask"
    yield "task/tickets/suggest"
    site.field("Texts without labels, one a line").fill(f"{long}\nThe app crashes")
    site.button("Suggest").click()
    site.page.locator(".to-label").nth(1).wait_for()
    yield from (f"task/tickets/{part}" for part in ("suggest", "examples", "quality", "files"))
    yield f"task/{long[:100]}/ask"


def test_a_narrow_screen_never_scrolls_sideways(site: Site, state: StandIn) -> None:
    site.page.set_viewport_size({"width": 360, "height": 740})
    for view in views(site, state):
        site.open(view)
        site.page.wait_for_load_state("networkidle")
        assert site.page.evaluate("document.documentElement.scrollWidth") == 360, view
    site.open()
    site.page.get_by_role("link", name="tickets").click()
    site.page.get_by_role("link", name="All tasks").click()
    assert site.page.get_by_role("link", name="tickets").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(site: Site, state: StandIn, scheme: str) -> None:
    site.page.emulate_media(color_scheme=scheme)

    def check(view: str) -> None:
        found = axe.Axe().run(site.page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], view

    for view in views(site, state):
        site.open(view)
        site.page.wait_for_load_state("networkidle")
        check(view)
    site.open("task/tickets/files")
    site.button("Delete this task").click()
    check("the question before a task is deleted")
    state.token = "a token"
    site.page.reload()
    site.field("Token").wait_for()
    check("the question for a token")
    site.forgive("a status of 401")
    ink = site.page.evaluate("getComputedStyle(document.body).color")
    assert (sum(map(int, ink[4:-1].split(","))) > 384) == (scheme == "dark")


def test_a_task_that_cannot_answer_says_why_and_is_learned_anew(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    state.tasks["tickets"]["damage"] = "A file of this task is damaged."
    site.open("task/tickets/ask")
    site.expect("A file of this task is damaged.")
    site.expect("No version of this task can answer yet.")
    assert not site.button("Ask").is_visible()
    site.button("Learn it anew").click()
    site.expect("version 2")
    assert site.button("Ask").is_visible()
    assert site.page.get_by_text("A file of this task is damaged.").count() == 0


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


def test_a_write_whose_answer_was_lost_is_sent_again_as_the_same(site: Site) -> None:
    keys = []

    def lose(route: Any) -> None:
        if route.request.method != "POST":
            return route.continue_()
        keys.append(route.request.headers["idempotency-key"])
        return route.abort() if len(keys) == 1 else route.continue_()

    site.page.route("**/v1/tasks", lose)
    site.open("new")
    site.field("Name").fill("tickets")
    site.field("One example a line").fill(LINES)
    site.button("Learn").click()
    site.expect("The server cannot be reached. Nothing was lost: try again when it runs.")
    site.forgive("net::ERR_FAILED")
    site.button("Learn").click()
    site.expect("5 examples · version 1")
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert len(keys[0]) == 32


def test_many_tasks_are_listed_a_hundred_at_a_time(site: Site, state: StandIn) -> None:
    for number in range(250):
        state.put(f"task{number:03}", EXAMPLES[:2])
    site.open()
    names = site.page.locator("#task-list a")
    names.nth(99).wait_for()
    assert names.count() == 100
    site.button("Show more tasks").click()
    names.nth(199).wait_for()
    site.field("Open a task by its name").fill("task249")
    site.page.keyboard.press("Enter")
    site.page.get_by_role("heading", name="task249").wait_for()
    site.button("Show more tasks").click()
    names.nth(249).wait_for()
    assert not site.button("Show more tasks").is_visible()
    assert site.page.locator("#task-list a[aria-current]").inner_text().split() == ["task249", "ready"]


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
    assert read("fromCsv", "a\tb,c\n1\t2") == [["a", "b,c"], ["1", "2"]]
    assert read("guessColumns", ["id", " Text", "LABEL"]) == {"text": 1, "label": 2}
    assert read("guessColumns", ["words", "label"]) == {"text": 0, "label": 1}
    assert read("guessColumns", ["input", "tag", "category"]) == {"text": 0, "label": -1}
    assert read("toCsv", [["=a", 'b"c', -1.5, "-x"]]) == '\'=a,"b""c",-1.5,\'-x\r\n'


def test_the_interface_is_described_without_anything_from_elsewhere(site: Site) -> None:
    site.page.goto(f"{site.url}/docs")
    site.page.get_by_role("heading", name="POST /v1/tasks/{name}/predict").wait_for()
    assert site.page.get_by_text("after (query, string); limit (query, integer)").count() == 1
    found = axe.Axe().run(site.page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    schema = {
        "type": "object",
        "required": ["name", "examples"],
        "properties": {
            "name": {"type": "string"},
            "examples": {"type": "array", "items": {"$ref": "#/$defs/Pair"}},
            "how": {"enum": ["head", "full"]},
            "steps": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
    }
    pair = {"properties": {"text": {"type": "string"}}, "required": ["text"]}
    written = site.page.evaluate(
        "async (given) => (await import('/page/docs.js')).form(...given)", [schema, {"Pair": pair}]
    )
    assert written == (
        '{\n  "name": string,\n  "examples": [{\n    "text": string\n  }, …],\n'
        '  "how"?: "head" | "full",\n  "steps"?: integer | null\n}'
    )


def test_the_files_of_the_page_and_no_others_are_served() -> None:
    client = TestClient(stand_in_app(StandIn()))
    front = client.get("/")
    assert front.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in front.headers["content-security-policy"]
    assert "unsafe" not in front.headers["content-security-policy"]
    assert client.get("/page/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for name in ("page_files.py", "..%2Flimits.py", "%2e%2e/limits.py", "", "."):
        assert client.get(f"/page/{name}").status_code == 404, name
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        assert client.get(f"/page/{name}").text == text
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=", text), name
        assert set(re.findall(r"\w+://[^\s\"'`]*", text)) <= {"http://www.w3.org/2000/svg"}, name
