"""The page by keyboard alone, on a narrow screen, in light and dark, and for who does not see it."""

from collections.abc import Iterator

import pytest

from tests.serving.browser import Site, needs_browser
from tests.serving.page.examples import EXAMPLES, LINES
from tests.serving.server_stand_in import StandIn

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = needs_browser


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
    site.expect_of(site.page.get_by_role("heading", name="Answers", exact=True)).to_be_focused()
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
    site.expect_of(site.page.get_by_role("link", name="tickets")).to_be_visible()


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


def test_the_interface_is_described_without_anything_from_elsewhere(site: Site) -> None:
    site.page.goto(f"{site.url}/docs")
    site.page.get_by_role("heading", name="POST /v1/tasks/{name}/predict").wait_for()
    site.expect_number(site.page.get_by_text("after (query, string)", exact=True), 1)
    site.expect_number(site.page.get_by_text("limit (query, integer)", exact=True), 1)
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
