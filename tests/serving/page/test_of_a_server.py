"""The page against the server itself, over a tiny model: the interface that both were written to is the same one."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abmll import AbmllModel
from abmll.serving.access import read_tokens
from abmll.serving.app import make_app
from abmll.serving.limits import ServeConfig
from abmll.serving.service import Service
from tests.serving.browser import Site, needs_browser, visiting
from tests.serving.live_server import running

pytestmark = needs_browser
TOKEN = "a-token-of-some-length"
LINES = "\n".join(f"{'ab'[n % 2] * 3} {n}, {'xy'[n % 2]}" for n in range(12))


@pytest.fixture
def site(chromium: Any, tiny_model: AbmllModel, tmp_path: Path, few_chains: None) -> Iterator[Site]:
    """A page whose user has given the token, of a server that learns by heads and by steps."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"desk {TOKEN}\n", encoding="utf-8")
    tokens.chmod(0o600)
    service = Service(tiny_model, f"sqlite:///{tmp_path / 'store.sqlite'}", str(tmp_path / "files"), ServeConfig())
    app = make_app(service, tokens=read_tokens(tokens))
    with running(app) as url, visiting(chromium, url) as site:
        site.page.goto(url)
        site.field("Token").fill(TOKEN)
        site.button("Use this token").click()
        site.expect("None yet.")
        site.forgive("a status of 401")
        yield site


def learn(site: Site, name: str, how: str) -> None:
    site.page.get_by_role("link", name="New task").click()
    site.field("Name").fill(name)
    site.field("One example a line").fill(LINES)
    site.page.get_by_text("More options").click()
    site.page.get_by_label(how).check()
    site.button("Learn").click()
    site.page.get_by_role("heading", name=name, exact=True).wait_for()


def part(site: Site, name: str) -> None:
    site.page.locator(".sections").get_by_role("link", name=name).click()


def download(site: Site, name: str) -> bytes:
    with site.page.expect_download() as found:
        site.button(name).click()
    return Path(found.value.path()).read_bytes()


def names(data: bytes) -> set[str]:
    return {Path(name).name for name in zipfile.ZipFile(io.BytesIO(data)).namelist()}


def test_a_task_is_learned_asked_corrected_and_taken_away(site: Site) -> None:
    site.expect("desk")
    learn(site, "letters", "A head")
    site.expect("12 examples · version 1 · head")
    site.field("Texts to ask about").fill("aaa 17\nabab")
    site.button("Ask").click()
    site.page.locator(".card").nth(1).wait_for()
    site.page.locator(".card").nth(1).get_by_role("button", name="Yes, it is").click()
    site.expect("Version 2 has learned it.")
    site.expect("13 examples · version 2")
    part(site, "Label next")
    site.field("Texts without labels, one a line").fill("aaa 18\nbab\nbbb 19")
    site.button("Suggest").click()
    site.page.locator(".to-label select").first.select_option("x")
    site.button("Add these labels").click()
    site.expect("1 example added. Version 3 has learned them.")
    part(site, "Examples")
    site.button("Remove: aaa 0").click()
    site.expect("13 examples · version 4")
    site.button("Undo").click()
    site.expect("14 examples · version 5")
    rows = download(site, "Download examples (CSV)").decode("utf-8-sig").splitlines()
    assert rows[0] == "text,label"
    assert len(rows) == 15
    part(site, "Quality")
    site.expect("Each of 14 examples was answered")
    image = site.page.get_by_role("img", name="Reliability figure: at")
    assert image.evaluate("async (node) => { await node.decode(); return node.naturalWidth; }") > 0
    part(site, "More")
    assert "posterior.json" in names(download(site, "Posterior (zip)"))
    site.button("Delete this task").click()
    site.button("Delete").click()
    site.expect("None yet.")


def test_a_task_of_gradient_steps_is_learned_and_its_adapter_taken_away(site: Site) -> None:
    learn(site, "steps", "Adapters")
    site.expect("12 examples · version 1 · adapters")
    site.field("Texts to ask about").fill("aaa 17")
    site.button("Ask").click()
    site.page.locator(".verdict").wait_for()
    part(site, "More")
    assert "adapter_model.safetensors" in names(download(site, "LoRA adapter (zip)"))


def test_the_server_says_why_it_refuses(site: Site) -> None:
    learn(site, "letters", "A head")
    part(site, "Examples")
    site.field("One example a line").fill("x" * 300 + ", " + "long label " * 30)
    site.button("Add").click()
    site.button("Keep").click()
    site.expect("must be one line of at most 200 characters")
    site.forgive("a status of 422")
    site.expect_of(site.field("One example a line")).to_have_value(re.compile("^xxx"))


def test_the_interface_is_described_as_the_server_has_it(site: Site) -> None:
    site.page.get_by_role("link", name="Interface for programs").click()
    site.page.get_by_role("heading", name="POST /v1/tasks", exact=True).wait_for()
    described: Any = site.page.locator("section").filter(has_text="POST /v1/tasks").first.locator("pre").first
    site.expect_of(described).to_contain_text('"how"?: "head" | "full"')
    site.expect("Prefer (header, string): respond-async, or wait=SECONDS")
    site.expect("Answer 202, application/json:")
    site.expect('"counts": {TEXT: integer}')
