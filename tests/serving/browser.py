"""The page in headless Chromium, and what a test does on it in the words of its user."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this computer"),
]
MILLISECONDS = 30_000  # that are waited for what a test expects to see
GLANCE = 50  # milliseconds between two looks


@dataclass
class Site:
    """A page in a browser, the address it is of, and what the browser complained of."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, view: str = "") -> None:
        self.page.goto(f"{self.url}/#{view}")
        self.page.locator("#main h1").wait_for()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def field(self, label: str) -> Any:
        return self.page.get_by_label(label, exact=True)

    def expect(self, words: str) -> None:
        self.page.get_by_text(words).first.wait_for()

    def expect_of(self, things: Any) -> Any:
        """Playwright's assertions of ``things``. They wait; an ``assert`` of what is there now may come too soon."""
        return pytest.importorskip("playwright.sync_api").expect(things)

    def expect_number(self, things: Any, number: int) -> None:
        """Wait until there are so many of ``things``, no more and no fewer."""
        if number:
            things.nth(number - 1).wait_for()
        things.nth(number).wait_for(state="detached")

    def forgive(self, expected: str) -> None:
        """Chromium complains of every request that fails, sooner or later; this one was meant to."""
        for _ in range(MILLISECONDS // GLANCE):
            if any(expected in complaint for complaint in self.complaints):
                break
            self.page.wait_for_timeout(GLANCE)
        else:
            raise AssertionError(f"nothing was said of {expected}")
        self.complaints[:] = [complaint for complaint in self.complaints if expected not in complaint]


@contextmanager
def chromium_running() -> Iterator[Any]:
    """A browser for all tests of a module; skips them where playwright is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect.set_options(timeout=MILLISECONDS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Any, url: str) -> Iterator[Site]:
    """An empty page for the server at ``url``. Fails where the browser complains, or asks another host for anything."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(MILLISECONDS)
    site = Site(context.new_page(), url)
    site.page.on("console", lambda line: site.complaints.append(line.text) if line.type == "error" else None)
    site.page.on("pageerror", lambda error: site.complaints.append(str(error)))
    site.page.on("request", lambda request: site.hosts.add(request.url.removeprefix("blob:")[: len(url)]))
    yield site
    context.close()
    assert site.complaints == []
    assert site.hosts <= {url}
