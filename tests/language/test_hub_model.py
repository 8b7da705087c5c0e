"""A language model by its name on a hub: announced, fetched once, and then read without the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from abmll.common.config import ModelConfig
from abmll.common.errors import CheckpointError
from abmll.language.base import load_base
from tests.hub_stand_in import Hub

# The libraries read the hub's address once, when they are imported.
LOAD = """
import json, sys
from abmll.common.config import ModelConfig
from abmll.language.base import load_base
said = []
found = [load_base(ModelConfig(name, "fp32", "cpu"), said.append).fingerprint for name in sys.argv[1:]]
print(json.dumps([found, said]))
"""


def load(names: list[str], endpoint: str, home: Path) -> tuple[list[str], list[str]]:
    """Fingerprints of models that another process has loaded, and what was said."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", LOAD, *names], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_model_of_the_hub(hub: Hub, tiny_llama: Path, tmp_path: Path) -> None:
    api = HfApi(hub.url, token="right")
    api.create_repo("ann/tiny")
    api.upload_folder(repo_id="ann/tiny", folder_path=tiny_llama)
    (first, second, own), [line] = load(["ann/tiny", "ann/tiny", str(tiny_llama)], hub.url, tmp_path / "home")
    assert first == second == own
    assert line.startswith("fetching ann/tiny (0.")
    assert line.endswith(f" MB, once) from {hub.url}")
    closed = "http://127.0.0.1:9"
    [again], said = load(["ann/tiny"], closed, tmp_path / "home")
    assert again == own
    assert said == [f"ann/tiny: {closed} cannot be reached, so the copy in the cache is used"]


def test_a_name_that_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"^ann/none: no such folder, and http.* has no such name\."):
        load_base(ModelConfig("ann/none", "fp32", "cpu"), lambda line: None)


def test_what_is_no_name(hub: Hub) -> None:
    remedy = "for a revision give a folder, made by: hf download ann/tiny --revision v1 --local-dir FOLDER"
    for name, expected in {"ann/tiny@v1": remedy, "ann/ti~ny": "check the name"}.items():
        with pytest.raises(CheckpointError, match=f"^model: {name} is no folder, and no name on a hub; {expected}$"):
            load_base(ModelConfig(name, "fp32", "cpu"), lambda line: None)
    assert hub.requests == []


def test_without_a_network_nothing_else_is_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"^ann/none: http://127\.0\.0\.1:9 cannot be reached .* or give a folder"
    ):
        load_base(ModelConfig("ann/none", "fp32", "cpu"), lambda line: None)
    assert capfd.readouterr().err == ""
