"""The documentation as a site: it builds without a warning, and its pages ask nothing of other hosts."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

ROOT = Path(__file__).parents[2]
# What a browser fetches by itself; a link that a reader follows is none of these.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|embed|object)\b[^>]*\b(?:src|data)=[\"']?(?:https?:)?//|url\([\"']?https?:"
)
LINKED = re.compile(r"<link\b(?![^>]*\brel=[\"']?(?:canonical|prev|next)\b)[^>]*\bhref=[\"']?(?:https?:)?//")


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix("")
        page = site / (name.parent if name.name == "index" else name) / "index.html"
        assert page.is_file(), source
    assert not list(site.rglob("*.py"))


def test_the_scripts_stand_on_the_page_of_examples(site: Path) -> None:
    page = (site / "howto" / "examples" / "index.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    source = (ROOT / "docs" / "howto" / "examples.md").read_text(encoding="utf-8")
    scripts = re.findall(r'^--8<-- "(.*)"$', source, flags=re.MULTILINE)
    assert len(scripts) == source.count("```python") == 5
    for script in scripts:
        assert (ROOT / script).read_text(encoding="utf-8").strip() in shown


def test_pages_fetch_nothing_from_other_hosts(site: Path) -> None:
    assert FETCHED.search('<script src="https://host/x.js">')  # the patterns find what they are for
    assert LINKED.search('<link rel="stylesheet" href="https://host/x.css">')
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        found = FETCHED.search(text) or LINKED.search(text)
        assert found is None, f"{path}: {found}"
        # The theme's script asks GitHub for a repository's stars where it finds this element.
        assert "data-md-component=source" not in text.replace('"', ""), path


def test_links_to_the_repository_lead_to_what_is_there(site: Path) -> None:
    links = {
        found
        for page in site.rglob("*.html")
        for found in re.findall(
            r"github\.com/abmll/abmll/(?:blob|tree)/main/([^\"'#\s>]+)", page.read_text(encoding="utf-8")
        )
    }
    assert "benchmarks/results.json" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("wrong", ["[x](missing.md)", "[x](index.md#missing)", "[x](/index.md)"])
def test_a_wrong_link_stops_the_build(wrong: str, tmp_path: Path) -> None:
    """The same checks on a site of one page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Start\n\n{wrong}\n", encoding="utf-8")
    rules = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["validation"]
    config = {"site_name": "One page", "theme": {"name": "mkdocs"}, "validation": rules}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert wrong[4:-1].split("#")[-1] in done.stderr
