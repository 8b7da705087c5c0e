"""Runs and posteriors by name, against a hub on this computer: they come back as they went."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData, constants, metadata_load

from abmll import AbmllModel, MetaTrainer, Task
from abmll.common.config import EvaluateConfig, ModelConfig
from abmll.common.errors import CheckpointError, ConfigError
from abmll.experiments.few_shot import Evaluation, save_evaluation
from abmll.model import hub as model_hub
from abmll.model.hub import find_folder, hub_name, push_folder
from abmll.model.learned_task import TaskPosterior
from abmll.posterior.calibration import CalibrationPrior
from abmll.posterior.hypotheses import HeadPrior
from tests.hub_stand_in import Hub


@pytest.fixture
def posterior(tiny_model: AbmllModel, toy_tasks: list[Task]) -> TaskPosterior:
    learned = tiny_model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=2)
    return replace(learned, measured={"accuracy": 0.75, "nll": 0.5, "auroc": None})


def card_data(path: Path) -> ModelCardData:
    data = ModelCard.load(path).data
    assert isinstance(data, ModelCardData)
    return data


def same(one: TaskPosterior, other: TaskPosterior) -> bool:
    asked = ["7 abc", "12 hgf"]
    return torch.equal(one.predict(asked).probs, other.predict(asked).probs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann/toys", ("ann/toys", None)),
        ("ann/toys@v1", ("ann/toys", "v1")),
        ("ann/toys@refs/pr/1", ("ann/toys", "refs/pr/1")),
        (Path("ann/toys@v1"), ("ann/toys", "v1")),
        ("toys", None),
        ("a/b/c", None),
        ("/ann/toys", None),
        ("../toys", None),
        ("ann/my toys", None),
        ("ann/toys@", None),
    ],
)
def test_names(text: str, expected: tuple[str, str | None] | None) -> None:
    assert hub_name(text) == expected


def test_a_posterior_comes_back_with_the_same_bits(posterior: TaskPosterior, hub: Hub) -> None:
    url = posterior.push_to_hub("ann/toys", private=True, commit_message="First", license="mit")
    assert url == f"{hub.url}/ann/toys"
    assert (hub.private["ann/toys"], hub.messages) == ("private", ["First"])
    said: list[str] = []
    back = TaskPosterior.from_pretrained("ann/toys", announce=said.append)
    assert same(posterior, back)
    assert back.measured == posterior.measured
    [line] = [text for text in said if text.startswith("Fetching")]
    assert "ann/toys at " in line
    assert f"MB) from {hub.url}" in line
    TaskPosterior.from_pretrained("ann/toys", announce=said.append)
    assert sum(text.startswith("Fetching") for text in said) == 1  # it is in the cache


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # what the hub's library does with its own
def test_large_files_go_their_own_way(tiny_model: AbmllModel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another server
    hub.large = ".safetensors"
    tiny_model.push_to_hub("ann/theta")
    assert len(hub.uploads) == 2
    back = AbmllModel.from_pretrained("ann/theta")
    assert all(map(torch.equal, back.theta.mean_tensors(), tiny_model.theta.mean_tensors()))
    hub.large, hub.is_full = "README.md", True
    with pytest.raises(CheckpointError, match=r"ann/theta: the transfer .* broke off .*; try again"):
        tiny_model.push_to_hub("ann/theta", license="mit")


def test_a_folder_stays_a_folder(
    posterior: TaskPosterior, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    posterior.save_pretrained("ann/toys")
    assert same(posterior, TaskPosterior.from_pretrained("ann/toys"))
    assert hub.requests == []
    with pytest.raises(ConfigError, match="is a folder, which has no revision 'v1'"):
        TaskPosterior.from_pretrained("ann/toys", revision="v1")


def test_a_revision_selects(posterior: TaskPosterior, tiny_model: AbmllModel, toy_tasks: list[Task], hub: Hub) -> None:
    other = tiny_model.adapt(toy_tasks[1].train[:6], task_name="other", steps=2)
    posterior.push_to_hub("ann/toys")
    first = hub.branches["ann/toys"]["main"]
    assert other.push_to_hub("ann/toys", revision="next") == f"{hub.url}/ann/toys/tree/next"
    for place, revision, expected in [
        ("ann/toys", None, posterior),
        ("ann/toys", "next", other),
        ("ann/toys@next", None, other),
        (f"ann/toys@{first}", None, posterior),
    ]:
        back = TaskPosterior.from_pretrained(place, revision=revision)
        assert back.task_name == expected.task_name
        assert same(expected, back)
    with pytest.raises(CheckpointError, match="has it, but no revision 'v9'"):
        TaskPosterior.from_pretrained("ann/toys@v9")


def test_a_run_comes_back_and_leaves_no_older_checkpoint(
    make_trainer: Callable[..., MetaTrainer], toy_tasks: list[Task], hub: Hub, tmp_path: Path
) -> None:
    trainer = make_trainer(save_steps=1, calibration_tasks=0)
    trainer.train()
    run, prior = tmp_path / "run", CalibrationPrior()
    trainer.folder.write_calibration(3, prior, {}, {})
    (run / "evil.py").write_text("raise SystemExit")
    push_folder(run, "ann/theta")
    files = hub.commits[hub.branches["ann/theta"]["main"]]
    assert [file for file in files if file.startswith("checkpoint-")] == [
        f"checkpoint-3/{name}"
        for name in ("state.json", "manifest.json", *sorted(one.name for one in run.glob("checkpoint-3/*.safetensors")))
    ]
    assert {"config.yaml", "metrics.jsonl", "calibration.json", "README.md"} < set(files)
    assert "evil.py" not in files
    here, back = AbmllModel.from_pretrained(run), AbmllModel.from_pretrained("ann/theta")
    assert back.calibration_prior == prior
    assert back.trained_on == ("toy0", "toy1", "toy2")
    posteriors = [one.adapt(toy_tasks[0].train[:6], task_name="toy", steps=2) for one in (here, back)]
    assert same(*posteriors)
    back.episodes = 2
    back.push_to_hub("ann/theta")
    files = hub.commits[hub.branches["ann/theta"]["main"]]
    assert {file.split("/")[0] for file in files if "/" in file} == {"checkpoint-2"}


def test_a_model_is_saved_as_a_run(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> None:
    for tensor in tiny_model.theta.mean_tensors():
        tensor.add_(0.1)
    tiny_model.episodes, tiny_model.trained_on, tiny_model.num_tasks = 7, ("a", "b"), 2
    tiny_model.calibration_prior = CalibrationPrior()
    tiny_model.head_prior = HeadPrior(residual=0.25)
    tiny_model.save_pretrained(tmp_path / "saved")
    back = AbmllModel.from_pretrained(tmp_path / "saved")
    for name in ("learning", "episodes", "trained_on", "num_tasks", "calibration_prior", "head_prior"):
        assert getattr(back, name) == getattr(tiny_model, name), name
    for how in ("full", "head"):
        learned = [one.adapt(toy_tasks[0].train[:6], how=how, steps=2) for one in (tiny_model, back)]
        assert same(*learned)


def test_a_link_to_another_file_is_not_pushed(tiny_model: AbmllModel, hub: Hub, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "run")
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is a link that leads out of its folder; put the file"):
        push_folder(tmp_path / "run", "ann/theta")
    assert not hub.branches


def test_the_card_has_what_was_measured_and_nothing_else(posterior: TaskPosterior, hub: Hub, tmp_path: Path) -> None:
    scorer = posterior.scorer
    scorer.base = replace(scorer.base, name="smollm2-135m")
    posterior.push_to_hub("ann/toys", license="apache-2.0", datasets=["ann/letters"])
    readme = tmp_path / "README.md"
    readme.write_bytes(hub.commits[hub.branches["ann/toys"]["main"]]["README.md"])
    data = card_data(readme)
    assert (data.license, data.datasets, data.library_name) == ("apache-2.0", ["ann/letters"], "abmll")
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    found = {(one.metric_type, one.metric_value, one.dataset_name) for one in data.eval_results or []}
    assert found == {("accuracy", 0.75, "toy"), ("nll", 0.5, "toy")}
    replace(posterior, measured={}).push_to_hub("ann/plain")
    readme.write_bytes(hub.commits[hub.branches["ann/plain"]["main"]]["README.md"])
    assert not {"license", "datasets", "model-index"} & set(metadata_load(readme) or {})


def test_the_card_of_a_run_has_its_training_and_then_its_evaluation(
    make_trainer: Callable[..., MetaTrainer], tiny_model: AbmllModel, tiny_llama: Path, hub: Hub, tmp_path: Path
) -> None:
    make_trainer().train()
    run = tmp_path / "run"
    data = card_data(run / "README.md")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {one.metric_type: one.metric_value for one in data.eval_results or []}
    assert values == {key: pytest.approx(sum(row[key] for row in rows) / 3) for key in ("nll", "accuracy")}
    assert "base_model" not in data.to_dict()  # it is a folder of this computer
    assert str(tiny_llama) not in (run / "README.md").read_text()
    about = {"run": "run", "suite": "mine", "seed": 0, "missing": [], "known_leaks": []}
    evaluation = Evaluation({"t": {}}, {"accuracy": 0.5}, {}, [], 0, 0, {})
    save_evaluation(evaluation, run / "evaluation", tiny_model, EvaluateConfig(), about)
    push_folder(run, "ann/theta")
    readme = tmp_path / "README.md"
    readme.write_bytes(hub.commits[hub.branches["ann/theta"]["main"]]["README.md"])
    [result] = card_data(readme).eval_results or []
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("mine", "accuracy", 0.5)
    assert "--theta ann/theta" in readme.read_text()


def test_only_known_kinds_of_files_are_fetched(posterior: TaskPosterior, hub: Hub) -> None:
    posterior.push_to_hub("ann/toys")
    sha = hub.branches["ann/toys"]["main"]
    hub.commits[sha] |= {"model.bin": b"pickle", "setup.py": b"code"}
    folder = find_folder("ann/toys")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "manifest.json", "phi.safetensors", "posterior.json",
    }  # fmt: skip
    assert not any("setup.py" in request or "model.bin" in request for request in hub.requests)


def test_without_a_network_what_was_fetched_is_used(
    posterior: TaskPosterior, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior.push_to_hub("ann/toys")
    find_folder("ann/toys")
    away = ("HF_ENDPOINT", "http://127.0.0.1:9", "cannot be reached", "give a folder")
    for name, value, why, wanted in (away, (None, "", "offline", "HF_HUB_OFFLINE forbids to ask")):
        if name is None:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setenv(name, value)
        said: list[str] = []
        assert same(posterior, TaskPosterior.from_pretrained("ann/toys", announce=said.append))
        assert why in said[0]
        with pytest.raises(CheckpointError, match=f"others: .*{wanted}"):
            find_folder("ann/others")


def test_what_is_refused_is_refused_in_one_line(
    posterior: TaskPosterior, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.create("ann/foreign")
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: find_folder("ann/none"), CheckpointError, "has no such name. Is it private?"),
        (lambda: find_folder("ann/foreign"), CheckpointError, "so abmll did not write it"),
        (lambda: find_folder("none"), CheckpointError, "none: no such folder."),
        (lambda: posterior.push_to_hub("toys"), ConfigError, "'toys' is no name on a hub; write user/name"),
        (lambda: push_folder(tmp_path, "ann/toys"), CheckpointError, "no checkpoint in it"),
        (lambda: posterior.push_to_hub("ann/toys", token="wrong"), CheckpointError, "answered 403"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind) as caught:
            call()
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="no token to push with; run 'hf auth login'"):
        posterior.push_to_hub("ann/toys")


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_hub, "SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=r"ann/toys: .* cannot be reached \(ReadTimeout\); check the network"):
            find_folder("ann/toys")


def test_a_base_that_lay_elsewhere_is_named(posterior: TaskPosterior, tiny_llama: Path, hub: Hub) -> None:
    scorer = posterior.scorer
    kept, scorer.base = scorer.base, replace(scorer.base, name="/nowhere/llama")
    posterior.push_to_hub("ann/toys")
    scorer.base = kept
    back = TaskPosterior.from_pretrained("ann/toys", model=ModelConfig(str(tiny_llama)))
    assert same(posterior, back)
