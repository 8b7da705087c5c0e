import zipfile
from pathlib import Path

import pytest

from abmll.common.errors import CheckpointError, ConfigError
from abmll.model.hub import find_folder
from abmll.model.meta_learner import AbmllModel
from abmll.model.saved_learner import read_learner
from abmll.model.shipped import THETAS, shipped_theta
from abmll.tasks.definition import read_suite

NAMES = sorted(folder.name for folder in THETAS.iterdir())


def test_a_shipped_theta_is_found_by_its_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_folder("bigbench") == shipped_theta(Path("bigbench")) == THETAS / "bigbench"
    assert shipped_theta("../thetas") is shipped_theta(".") is None
    with pytest.raises(ConfigError, match="leave the revision out"):
        find_folder("bigbench", revision="v1")
    (tmp_path / "bigbench").mkdir()
    assert find_folder("bigbench") == Path("bigbench")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_theta_is_small_learned_and_says_of_what(name: str, tmp_path: Path) -> None:
    folder = THETAS / name
    saved = read_learner(folder)
    means = [tensor for key, tensor in saved.theta.items() if ".mean_B" in key]
    assert means
    assert all(bool(tensor.any()) for tensor in means)
    assert saved.document["settings"]["model"] == "smollm2-135m"
    assert saved.document["settings"]["dtype"] == "auto"
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in folder.rglob("*.*"):
            packed.write(path)
    assert (tmp_path / "z.zip").stat().st_size < 3_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(task in card for task in saved.document["tasks"])


@pytest.mark.parametrize("suite", ["cls-45", "mcqa", "chembench", "legalbench-heldout"])
def test_no_shipped_theta_has_seen_an_unseen_task(suite: str) -> None:
    unseen = set(read_suite(suite).evaluation)
    for name in NAMES:
        assert not unseen & set(read_learner(THETAS / name).document["tasks"])


def test_it_is_refused_on_another_model(tiny_model: AbmllModel) -> None:
    with pytest.raises(CheckpointError):
        AbmllModel.from_pretrained("bigbench", model=tiny_model.scorer.base.twin())
