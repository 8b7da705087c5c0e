"""Using a task on the page: answers and their doubt, corrections, suggestions, examples, quality, files."""

import json
import math
import re
from pathlib import Path

import pytest

from tests.serving.browser import Site, needs_browser
from tests.serving.page.examples import EXAMPLES
from tests.serving.server_stand_in import StandIn

pytestmark = needs_browser


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
        confidence = f"{answer['probabilities'][answer['label']] * 100:.1f} %"
        site.expect_of(card.locator(".quoted")).to_have_text(text)
        site.expect_of(card.locator(".verdict strong")).to_have_text(answer["label"])
        site.expect_of(card.locator(".verdict")).to_contain_text(confidence)
        few, most = answer["mutual_information"], math.log(3)
        numbers = f"{few:.2f} from few examples, {answer['entropy'] - few:.2f} from the text itself"
        said = f"Doubt: {numbers}, of at most {most:.2f} nats"
        site.expect_of(card.get_by_role("img")).to_have_attribute("aria-label", said)
        inner = card.locator(".split").evaluate("node => node.clientWidth")
        for part, value in ((".few", few), (".itself", answer["entropy"] - few)):
            width = card.locator(f".split {part}").evaluate("node => node.getBoundingClientRect().width")
            assert width == pytest.approx(inner * value / most, abs=1)
    site.expect_of(cards.nth(1)).to_contain_text("Much doubt")
    site.expect_of(cards.nth(2)).to_contain_text("only a part of it was read")


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
    site.expect_number(site.page.locator(".card"), 20)
    site.button("Show more").click()
    site.button("Show more").click()
    site.expect_number(site.page.locator(".card"), 50)
    site.expect_of(site.button("Show more")).to_be_hidden()
    with site.page.expect_download() as download:
        site.button("Download answers (CSV)").click()
    saved = Path(download.value.path()).read_bytes()
    assert saved.startswith(b"\xef\xbb\xbf")  # without it Excel takes it for another encoding
    rows = saved.decode("utf-8-sig").splitlines()
    assert rows[0] == "text,predicted_label,prob_account,prob_billing,prob_bug,entropy,mutual_information"
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
    counts = re.compile(r"^\s*account\s+1\s+billing\s+3\s+bug\s+2\s*$")
    site.expect_of(site.page.locator(".chips")).to_have_text(counts, use_inner_text=True)
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
    site.expect_of(site.page.locator(".to-label .quoted")).to_have_text(by_doubt[:2])
    site.button("Add these labels").click()
    site.expect("Choose a label for at least one text first.")
    site.field(f"Label of: {by_doubt[0]}").select_option("account")
    site.button("Add these labels").click()
    site.expect("1 example added. Version 2 has learned them.")
    assert state.tasks["tickets"]["examples"][by_doubt[0]]["label"] == "account"
    left = [text for text in texts if text != by_doubt[0]]
    still = re.compile("^" + "\n".join(map(re.escape, left)) + "(\n|$)")
    site.expect_of(site.field("Texts without labels, one a line")).to_have_value(still)


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
    site.expect_of(site.field("One example a line")).to_have_value("")
    site.expect_number(rows, 7)
    with site.page.expect_download() as download:
        site.button("Download examples (CSV)").click()
    assert download.value.suggested_filename == "tickets.csv"
    saved = Path(download.value.path()).read_bytes()
    assert saved.startswith(b"\xef\xbb\xbftext,label")
    assert b"Charged again,billing" in saved


def test_labels_that_are_new_are_asked_about_and_what_is_left_out_is_said(
    site: Site, state: StandIn, tmp_path: Path
) -> None:
    state.put("tickets", EXAMPLES)
    site.open("task/tickets/examples")
    site.field("One example a line").fill("Charged again, biling\nCharged again, billing\nIt hangs, bgu")
    site.expect("2 examples, 2 labels. 1 was repeated.")
    site.button("Add").click()
    site.expect("“bgu” is a new label. Keep it?")
    site.button("Go back").click()
    site.expect("Nothing was added: correct the label, then add again.")
    assert "Charged again" not in state.tasks["tickets"]["examples"]
    site.button("Add").click()
    site.button("Keep").click()
    site.expect("2 examples added. Version 2 has learned them. 1 was repeated.")
    assert state.tasks["tickets"]["examples"]["It hangs"]["label"] == "bgu"
    table = tmp_path / "more.csv"
    table.write_text("sep=;\ntext;label\nNo refund;billing\n;bug\n;\nNo refund;billing\n", encoding="utf-8")
    site.page.get_by_label("Upload a CSV file").check()
    site.field("CSV file").set_input_files(table)
    site.expect("1 example, 1 label. 2 rows were empty and left out, 1 was repeated.")
    site.button("Add").click()
    site.expect("1 example added. Version 3 has learned them. 2 rows were empty and left out, 1 was repeated.")


def test_quality_is_said_in_numbers_a_figure_and_its_words(site: Site, state: StandIn) -> None:
    state.put("tickets", EXAMPLES)
    state.put("small", EXAMPLES[:3])
    site.open("task/tickets/quality")
    site.expect("Each of 5 examples was answered by what is learned from the others.")
    numbers = site.page.locator(".metrics strong")
    site.expect_of(numbers).to_have_text(["75 %", "0.410", "6.0 %"])
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
    site.expect_number(site.button("LoRA adapter (zip)"), 0)
    site.button("Delete this task").click()
    site.expect("Delete tickets?")
    site.button("Keep it").click()
    assert "tickets" in state.tasks
    site.button("Delete this task").click()
    site.button("Delete").click()
    site.page.get_by_role("link", name="tickets").wait_for(state="detached")
    assert list(state.tasks) == ["full"]


def test_many_tasks_are_listed_a_hundred_at_a_time(site: Site, state: StandIn) -> None:
    for number in range(250):
        state.put(f"task{number:03}", EXAMPLES[:2])
    site.open()
    names = site.page.locator("#task-list a")
    names.nth(99).wait_for()
    site.expect_number(names, 100)
    site.button("Show more tasks").click()
    names.nth(199).wait_for()
    site.field("Open a task by its name").fill("task249")
    site.page.keyboard.press("Enter")
    site.page.get_by_role("heading", name="task249").wait_for()
    site.button("Show more tasks").click()
    names.nth(249).wait_for()
    site.expect_of(site.button("Show more tasks")).to_be_hidden()
    current = site.page.locator("#task-list a[aria-current]")
    site.expect_of(current).to_have_text(re.compile(r"^\s*task249\s+ready\s*$"), use_inner_text=True)
