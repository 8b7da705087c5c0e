"""What the page does where something is refused, lost or meant to do harm."""

import re
from typing import Any

from fastapi.testclient import TestClient

from abmll.serving.page_files import FILES
from tests.serving.browser import Site, needs_browser
from tests.serving.page.examples import EXAMPLES, LINES
from tests.serving.server_stand_in import StandIn, stand_in_app

pytestmark = needs_browser
MARKUP = "<img src=x onerror=alert(1)>"
PARTS = ["ask", "suggest", "examples", "quality", "files"]


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
    site.expect_of(site.field("One example a line")).to_have_value(LINES)
    site.open("task/tickets/ask")
    state.refuse["predict"] = "The queue is full."
    site.field("Texts to ask about").fill("anything")
    site.button("Ask").click()
    alert = site.page.get_by_role("alert").filter(has_text="The queue is full.")
    assert alert.evaluate("node => node.closest('form').querySelector('textarea').value") == "anything"
    site.forgive("a status of 503")
    site.button("Ask").click()
    site.expect("1 answer")
    site.expect_number(alert, 0)


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
    site.expect_of(site.field("Token")).to_be_hidden()
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
    site.expect_of(site.page.locator(".quoted")).to_have_text(text)
    site.open("task/tickets/suggest")
    site.field("Texts without labels, one a line").fill(text)
    site.button("Suggest").click()
    site.page.locator(".to-label").get_by_text(text).wait_for()
    site.open("task/tickets/examples")
    site.page.locator(".list").get_by_text(text).wait_for()
    for part in PARTS:
        site.open(f"task/tickets/{part}")
        site.expect_number(site.page.locator("#main img:not(figure img), #main script, #main b b"), 0)
    site.open(f"task/{MARKUP.replace('/', '')}/ask")
    site.page.get_by_role("heading", name=MARKUP).wait_for()
    site.forgive("a status of 404")


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
