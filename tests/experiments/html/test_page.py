"""The page: complete, self-contained, safe with untrusted names, and without errors in a browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from abmll.common.errors import AbmllError
from abmll.experiments.html import write_report
from abmll.experiments.html.page import in_words

VOID = {"meta", "link", "br", "wbr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects ids and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(path):
    html = path.read_text(encoding="utf-8")
    return html, " ".join(" ".join(Page(html).text).split())


@pytest.mark.parametrize("name", ["comparison", "run", "training-only", "evaluation"])
def test_page_is_well_formed_and_self_contained(reports, name):
    html, _ = read(reports / name / "report.html")
    ids = Page(html).ids
    assert len(ids) == len(set(ids))
    assert "<script" not in html
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+", html)) - {"http://www.w3.org"}  # SVG's namespaces
    assert addresses == set()
    assert not re.search(r"@import|url\((?!#)", html)


def test_comparison_shows_every_section_and_its_numbers(reports):
    _, text = read(reports / "comparison" / "report.html")
    comparison = json.loads((reports / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    for heading in (
        "Results on unseen tasks", "Task by task", "Calibration", "Answering only when confident",
        "Training", "Cost", "Every metric", "What was run",
    ):  # fmt: skip
        assert heading in text
    for method in comparison["methods"].values():
        assert f"{method['mean']['nll']:.3f}" in text
        assert f"{method['tasks']['snarks']['accuracy']:.3f}" in text
        assert method["label"] in text
    assert "One seed" in text
    assert "Best constant answer" in text
    assert "moving average over 10 episodes" in text
    assert "torch 2.13.0" in text
    assert "target_modules q_proj, v_proj" in text
    assert "beta 1e-06" in text


def test_a_run_with_validation_tasks_has_their_curves(tmp_path, make):
    make.run(tmp_path)
    write_report(tmp_path)
    assert "On validation tasks" not in read(tmp_path / "report.html")[1]
    rows = [{"episode": n, "nll": 1 / n, "accuracy": n / 100} for n in (25, 50, 75, 100)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "best.json").write_text('{"format": "abmll-best-1", "episode": 75}', encoding="utf-8")
    write_report(tmp_path)
    html, text = read(tmp_path / "report.html")
    assert "On validation tasks" in text
    assert "need not meet. The ring is the evaluation whose theta was chosen, after episode 75." in text
    assert len(Page(html).ids) == len(set(Page(html).ids))


def test_one_method_is_not_compared(reports):
    html, text = read(reports / "evaluation" / "report.html")
    assert "<strong>" not in html
    assert "One seed" not in text
    assert "Training" not in text


def test_training_alone_has_curves_and_no_results(reports):
    _, text = read(reports / "training-only" / "report.html")
    assert "Training" in text
    assert "Episodes" in text
    assert "Results" not in text


def test_report_is_a_pure_function_of_its_folder(reports):
    path = reports / "training-only" / "report.html"
    before = path.read_bytes()
    assert write_report(reports / "training-only") == path
    assert path.read_bytes() == before


def test_untrusted_names_stay_text(tmp_path, make):
    evil = "<img src=x onerror=alert(1)>_\"'&\x1b[2J"
    tasks = {evil: (20, 2, 0.5), "{{ 7 * 7 }}": (20, 3, 0.5)}
    make.comparison(tmp_path, tasks, {"abmll": (evil, 1.0, 1.0), "b": (evil, 0.5, 2.0)})
    html, text = read(write_report(tmp_path))
    assert "<img" not in html
    assert "\x1b" not in html
    assert "{{ 7 * 7 }}" in text
    assert "&lt;img src=x" in html
    assert "(abmll)" in text  # two methods of one label are told apart by their keys


def test_the_page_has_a_section_for_each_setting_and_for_out_of_distribution_inputs(make, point, tmp_path):
    comparison = make.comparison(tmp_path)
    plain = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Over training" not in plain
    assert "Out-of-distribution inputs</h2>" not in plain
    abmll, lora, pretrained = comparison["methods"].values()
    abmll["curves"] = {"episodes": [point(10, 0.1), point(20, 0.2)], "num_samples": [point(0, 0.1), point(16, 0.2)]}
    lora["curves"] = {"episodes": [point(10, 0.1), point(20, 0.3)]}
    pretrained["curves"] = {}
    abmll["out_of_distribution"] = {"mean": {"entropy": 0.71, "mutual_information": 0.66}, "errors": {}}
    lora["out_of_distribution"] = {"mean": {"entropy": 0.61, "mutual_information": None}, "errors": {}}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("sweep-episodes-") > page.count("sweep-num_samples-") > 0
    assert "<h2>Over training: episodes</h2>" in page
    assert "<h2>Posterior samples (0: at the mean)</h2>" in page
    assert "<h2>Examples adapted to</h2>" not in page
    assert all(text in page for text in ("0.710", "0.660", "0.610", "\N{EN DASH}"))
    assert (
        "<title id" in page.split("Out-of-distribution inputs</h2>")[1].split("<table")[0]
    )  # a figure above the numbers


def test_missing_predictions_are_named(tmp_path, make):
    methods = {"abmll": ("ABMLL", 1.0, 1.0), "pretrained": ("Pretrained", 0.5, 2.0)}
    make.comparison(tmp_path, {"only": (20, 2, 0.5)}, methods)
    (tmp_path / "abmll" / "evaluation" / "predictions.jsonl").unlink()
    _, text = read(write_report(tmp_path))
    assert "No predictions on disk for ABMLL" in text
    assert "Reliability of Pretrained" in text
    assert "Reliability of ABMLL" not in text


def test_unwritable_folder_is_an_error_of_one_line(tmp_path, make):
    make.run(tmp_path, bayesian=False, episodes=2)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(AbmllError, match=r"report\.html") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_in_words():
    settings = {"a": 1, "b": None, "e": [1, "x"], "f": True, "g": ()}
    assert in_words(settings) == {"a": "1", "b": "none", "e": "1, x", "f": "yes", "g": "none"}


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI") == "true":
        pytest.fail("no Chromium on PATH; CI must open the report in one")
    return pytest.skip("no Chromium on PATH")


def browse(page, profile):
    """The page's DOM after loading, and what the browser's console said."""
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.browser
@pytest.mark.parametrize("name", ["comparison", "training-only"])
def test_chromium_opens_the_page_without_errors(reports, tmp_path, name):
    dom, console = browse(reports / name / "report.html", tmp_path / "profile")
    assert console == []
    _, text = read(reports / name / "report.html")
    assert " ".join(" ".join(Page(dom).text).split()) == text  # nothing was dropped or repaired
    assert dom.count("<svg") == (10 if name == "comparison" else 3)


@pytest.mark.browser
def test_console_errors_would_be_seen(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><img src='absent.png'>", "utf-8"
    )
    assert browse(page, tmp_path / "profile")[1]
