import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from abmll import AbmllClassifier
from abmll.cli.main import entry
from abmll.common.checkpoint import DOCUMENT, load_bundle
from abmll.common.errors import CheckpointError, ConfigError
from abmll.model.hub import find_folder
from abmll.model.learned_task import TaskPosterior
from abmll.model.meta_learner import AbmllModel
from abmll.model.saved_learner import read_learner
from abmll.model.saved_posterior import saved
from abmll.model.shipped import THETAS, meant_theta, shipped_theta
from abmll.tasks.definition import read_suite
from tests.conftest import toy_task

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("name", NAMES)
def test_the_suite_of_a_shipped_theta_has_its_tasks_and_others_to_judge_it_on(name: str) -> None:
    suite = read_suite(ROOT / "results" / "settings" / f"theta-{name}.yaml")
    assert set(suite.train) == set(read_learner(THETAS / name).document["tasks"])
    for other in ("cls-45", "mcqa", "chembench", "legalbench-heldout"):
        assert not set(suite.evaluation) & set(read_suite(other).evaluation)


def test_a_name_keeps_its_numbers() -> None:
    """What was saved or compared by name means these numbers: others get another name."""
    manifest = json.loads((THETAS / "bigbench" / "checkpoint-150" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["sha256"]["theta.safetensors"].startswith("1e4dedfb73562e3cf5bc")
    assert NAMES == ["bigbench"]


def test_it_is_refused_on_another_model(tiny_model: AbmllModel) -> None:
    with pytest.raises(CheckpointError):
        AbmllModel.from_pretrained("bigbench", model=tiny_model.scorer.base.twin())


@pytest.mark.parametrize(
    ("theta", "model", "is_quantized", "meant"),
    [
        (Path("auto"), "smollm2-135m", False, THETAS / "bigbench"),
        ("auto", "smollm2-135m", True, None),
        ("auto", "some/other", False, None),
        (None, "smollm2-135m", False, None),
        ("runs/mine", "some/other", True, "runs/mine"),
    ],
)
def test_auto_is_the_usual_theta_of_the_embedded_model(
    theta: Path | str | None, model: str, is_quantized: bool, meant: Path | str | None
) -> None:
    assert meant_theta(theta, model, is_quantized) == meant


def test_a_head_names_the_shipped_theta_that_it_reads_with(shipped: AbmllModel, tmp_path: Path) -> None:
    task = toy_task("letters")
    posterior = shipped.adapt(task.train[:6], task_name="letters")
    posterior.save_pretrained(tmp_path / "p")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"posterior.json", "head.safetensors", "manifest.json"}
    back = TaskPosterior.from_pretrained(tmp_path / "p")
    assert torch.equal(back.predict(task.test).probs, posterior.predict(task.test).probs)
    assert back.phi.digest() == shipped.theta.digest()
    bare = AbmllModel.from_base(shipped.scorer.base.twin(), prompt=shipped.scorer.prompt).adapt(task.train[:6])
    assert not torch.equal(bare.predict(task.test).probs, posterior.predict(task.test).probs)
    assert saved(bare).document["theta"] is None


def test_a_theta_of_ones_own_is_saved_itself(shipped: AbmllModel, tmp_path: Path) -> None:
    next(iter(shipped.theta.mean_tensors())).add_(1e-3)
    posterior = shipped.adapt(toy_task("letters").train[:6])
    posterior.save_pretrained(tmp_path / "p")
    assert (tmp_path / "p" / "phi.safetensors").exists()
    assert saved(posterior).document["theta"] is None


@pytest.mark.parametrize("what", ["is gone", "is another"])
def test_a_posterior_of_another_versions_theta_is_refused(shipped: AbmllModel, tmp_path: Path, what: str) -> None:
    shipped.adapt(toy_task("letters").train[:6]).save_pretrained(tmp_path / "p")
    if what == "is gone":
        (tmp_path / "thetas" / "small").rename(tmp_path / "thetas" / "large")
    else:
        shipped.theta.mean_tensors()[0].add_(1e-3)
        shipped.save_pretrained(tmp_path / "thetas" / "small", overwrite=True)
    with pytest.raises(CheckpointError, match=r"theta 'small' \([0-9a-f]{8}\), which comes with another version"):
        TaskPosterior.from_pretrained(tmp_path / "p")


def test_several_labels_are_learned_and_saved_so_too(shipped: AbmllModel, tmp_path: Path) -> None:
    task = toy_task("letters")
    chosen = [[one.options[one.answer or 0]] for one in task.train[:6]]
    posterior = shipped.adapt_multi_label(task.train[:6], chosen)
    posterior.save_pretrained(tmp_path / "p")
    assert not (tmp_path / "p" / "phi.safetensors").exists()
    back = TaskPosterior.from_pretrained(tmp_path / "p")
    assert torch.equal(back.predict(task.test).probs, posterior.predict(task.test).probs)


@pytest.mark.parametrize("write", [TaskPosterior.export_peft, TaskPosterior.export_merged])
def test_its_adapter_is_not_exported_as_if_it_had_learned_the_task(
    shipped: AbmllModel, tmp_path: Path, write: Callable[..., float]
) -> None:
    posterior = shipped.adapt(toy_task("letters").train[:6])
    with pytest.raises(ConfigError, match="a theta that comes with the package and has learned nothing of the task"):
        write(posterior, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_usual_theta_is_used_unless_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever folder is called as it is."""
    (tmp_path / "bigbench").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("theta: none\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("input,output\nCharged twice,billing\nIt crashes,bug\n", encoding="utf-8")
    methods = {}
    for name, more in (("usual", []), ("bare", ["--theta", "none"]), ("file", ["--config", "run.yaml"])):
        capsys.readouterr()
        assert entry(["adapt", "t.csv", "--output-dir", name, "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["theta"] == ("bigbench" if name == "usual" else None)
        methods[name] = load_bundle(tmp_path / name, DOCUMENT).document["settings"]["method"]
        assert sum(path.stat().st_size for path in (tmp_path / name).iterdir()) < 100_000
    assert methods == {"usual": "trained-head", "bare": "head", "file": "head"}
    texts = ["The invoice is wrong"]
    from_folder = TaskPosterior.from_pretrained(tmp_path / "usual").predict(texts).probs
    fitted = AbmllClassifier(task_name="t").fit(["Charged twice", "It crashes"], ["billing", "bug"])
    assert np.allclose(fitted.predict_proba(texts), from_folder.numpy(), atol=1e-6)
    fitted.save_pretrained("classifier")
    pickled = pickle.dumps(fitted)
    assert len(pickled) < 100_000
    for back in (AbmllClassifier.from_pretrained("classifier"), pickle.loads(pickled)):
        assert np.array_equal(back.predict_proba(texts), fitted.predict_proba(texts))
