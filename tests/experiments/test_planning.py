"""Cells: which are wanted, what their hashes depend on, which belong together."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abmll.common.config import LATER
from abmll.common.errors import CheckpointError, ConfigError
from abmll.experiments.budget import EvaluationGrid
from abmll.experiments.cells import Cell, load_cell, load_predictions, predictions_path, save_cell
from abmll.experiments.method_spec import ComparisonConfig, Spec, defaults, parse_specs
from abmll.experiments.planning import units
from abmll.methods import REGISTRY, find_rule
from abmll.tasks.suite import Suite


def test_all_are_all_methods() -> None:
    assert [spec.method for spec in parse_specs(["all"])] == list(REGISTRY)
    assert parse_specs(["abmll@paper-v1"]) == [Spec("abmll", "paper-v1")]
    assert Spec("abmll", "paper-v1").key == "abmll@paper-v1"


def test_the_later_layer_wins() -> None:
    shared: dict[str, Any] = {"beta": 1.0, "steps": 1, "gamma": 1.0, "prior_std": 1.0}
    suite: dict[str, Any] = {"steps": 2, "answer": "text"}
    tuned, asked, own = (
        {"abmll@paper-v3": {"beta": 3.0, "gamma": 3.0}},
        {"gamma": 4.0},
        {"abmll@paper-v3": {"prior_std": 5.0}},
    )
    values = ComparisonConfig([], (0,), shared, tuned, asked, own).settings_of(Spec("abmll", "paper-v3"), suite)
    assert [values[name] for name in ("steps", "beta", "gamma", "prior_std", "answer")] == [5, 3.0, 4.0, 5.0, "letter"]
    assert values["method"] == "abmll"


def test_a_mixture_adapts_as_what_it_continues_but_for_its_own_settings() -> None:
    tuned = {"abmll": {"beta": 3.0, "learning_rate": 0.5}, "abmll-mixture": {"gamma": 2.0}}
    own = {"abmll": {"learning_rate": 0.25}, "abmll-mixture": {"ensemble_size": 3}}
    config = ComparisonConfig([], (0,), defaults(), tuned, {}, own)
    one, other = (config.settings_of(Spec(name), {}) for name in ("abmll", "abmll-mixture"))
    assert (other["beta"], other["learning_rate"], other["gamma"], other["ensemble_size"]) == (3.0, 0.25, 2.0, 3)
    assert {name for name in one if one[name] != other[name]} == {"method", "gamma", "ensemble_size"}
    config = replace(config, tuned={"regular-lora": {"learning_rate": 0.5}})
    plain = config.settings_of(Spec("ensemble"), {})
    assert plain["learning_rate"] == defaults()["learning_rate"]  # it is another kind of method than regular LoRA


def test_seeds_come_one_after_the_other(wanted: Callable[..., list[Cell]]) -> None:
    cells = wanted("abmll", "pretrained", seeds=(3, 1))
    assert [(cell.seed, cell.row) for cell in cells] == [
        (3, "abmll"),
        (3, "pretrained"),
        (1, "abmll"),
        (1, "pretrained"),
    ]
    assert len({cell.hash for cell in cells}) == 4
    assert cells[0].settings["adapt_examples"] == 7
    assert [cell.hash for cell in wanted("abmll", "pretrained", seeds=(3, 1))] == [cell.hash for cell in cells]


@pytest.mark.parametrize(
    ("change", "retrained"),
    [
        ({"steps": 3}, False),
        ({"num_samples": 5}, False),
        ({"beta": 0.5}, True),
        ({"r": 4}, True),
        ({"max_steps": 7}, True),
        ({"limit_train": 30}, True),
        ({"answer": "letter"}, True),
    ],
)
def test_what_a_hash_depends_on(change: dict[str, Any], retrained: bool, wanted: Callable[..., list[Cell]]) -> None:
    [one], [other] = wanted("abmll"), wanted("abmll", **change)
    assert one.hash != other.hash
    assert one.training is not None
    assert other.training is not None
    assert (one.training.name != other.training.name) == retrained


@pytest.mark.parametrize(
    "change", [{"save_steps": 3}, {"device": "cpu"}, {"activation_cache_gb": 0.0}, {"gradient_checkpointing": True}]
)
def test_what_it_does_not_depend_on(change: dict[str, Any], wanted: Callable[..., list[Cell]]) -> None:
    assert wanted("abmll")[0].hash == wanted("abmll", **change)[0].hash


def test_a_later_setting_counts_where_it_is_not_as_it_was(wanted: Callable[..., list[Cell]]) -> None:
    [cell], [cut] = wanted("abmll"), wanted("abmll", gradient_accumulation_steps=2)
    settings = {name: value for name, value in cell.settings.items() if name not in LATER}
    assert settings.keys() != cell.settings.keys()
    assert replace(cell, settings=settings).hash == cell.hash != cut.hash
    assert cell.training is not None
    assert replace(cell.training, settings=settings).name == replace(cell.training, settings=cell.settings).name


def test_other_data_make_another_cell(wanted: Callable[..., list[Cell]]) -> None:
    suite: Suite = wanted.suite  # pyright: ignore[reportFunctionMemberAccess]
    [cell] = wanted("abmll")
    shorter = tuple(replace(task, examples=tuple(task.examples)[1:]) for task in suite.train)
    [trained] = wanted("abmll", suite=replace(suite, train=shorter))
    [evaluated] = wanted("abmll", suite=replace(suite, evaluation=(replace(suite.evaluation[0], name="other"),)))
    assert len({cell.hash, trained.hash, evaluated.hash}) == 3
    assert cell.training != trained.training
    assert cell.training == evaluated.training


def test_methods_that_continue_a_run_share_it_and_stay_together(wanted: Callable[..., list[Cell]]) -> None:
    continued = [name for name, rule in REGISTRY.items() if rule.base_method == "regular-lora"]
    cells = wanted("regular-lora", *continued, "abmll", "pretrained")
    groups = [[cell.spec.method for cell in unit] for unit in units(cells)]
    assert groups == [["regular-lora", *continued], ["abmll"], ["pretrained"]]
    for cell in cells:
        assert cell.settings["space"] == (find_rule(cell.spec.method).space or "weight")
    assert cells[1].training is not None
    assert cells[1].training.settings["space"] == "weight"


def test_curves_vary_one_thing_at_a_time(wanted: Callable[..., list[Cell]]) -> None:
    cells = wanted(
        "abmll", adapt_examples=[1, 7, 20], num_samples=[0, 4], prune=[0.0, 0.2], recalibrate=["none", "meta"]
    )
    points = [tuple(cell.point().values()) for cell in cells if cell.row == "abmll"]
    varied = [(7, 4, 0.0), (1, 4, 0.0), (20, 4, 0.0), (7, 0, 0.0), (7, 4, 0.2)]
    assert points == [(*point, 100) for point in varied]  # at the end of 100 episodes
    assert [cell.point()["adapt_examples"] for cell in cells if cell.row == "abmll+meta"] == [7, 1, 20, 7, 7]
    assert [cell.is_main for cell in cells] == [True, False, False, False, False] * 2
    assert len(units(cells)) == 1


def test_a_calibration_of_its_own_is_not_lent(wanted: Callable[..., list[Cell]]) -> None:
    def rows(method: str, **more: Any) -> list[str]:
        return [cell.row for cell in wanted(method, **more)]

    assert rows("abmll", recalibrate=["none", "calibration"]) == ["abmll"]
    assert rows("abmll", recalibrate=["calibration"]) == ["abmll"]
    assert rows("abmll", recalibrate=["calibration"], calibration_tasks=0) == ["abmll+calibration"]
    assert rows("abmll@weights-only", recalibrate=["calibration"]) == ["abmll@weights-only+calibration"]
    assert rows("reptile", recalibrate=["none", "calibration"]) == ["reptile", "reptile+calibration"]


def test_a_cell_on_disk(wanted: Callable[..., list[Cell]], tmp_path: Path) -> None:
    path = wanted("abmll@paper-v1")[0].path(tmp_path)
    assert path.name.startswith("abmll+paper-v1-s0-")
    assert load_cell(path) is None
    whole = json.loads(next((Path(__file__).parents[2] / "results").rglob("abmll-s0-*.json")).read_bytes())
    save_cell(path, {key: value for key, value in whole.items() if key != "format"}, [{"id": "é", "probs": [1.0]}])
    found = load_cell(path)
    assert found is not None
    assert found["predictions"] == predictions_path(path).name
    assert list(load_predictions(path)) == [{"id": "é", "probs": [1.0]}]
    predictions_path(path).unlink()
    assert list(load_predictions(path)) == []
    path.write_text(path.read_text()[:20])
    with pytest.raises(CheckpointError, match=r"not valid JSON .* delete it, and the cell is computed again"):
        load_cell(path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="is not of the format"):
        load_cell(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prune": (0.1, 0.1)}, "prune names a value twice"),
        ({"prune": (1.5,)}, "prune is"),
        ({"recalibrate": ("meta", "nope")}, "recalibrate is ('meta', 'nope'); use a tuple, each 'none'"),
        ({"adapt_examples": ()}, "adapt_examples is ()"),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EvaluationGrid(**values)
    assert message in str(caught.value)


def test_a_run_is_judged_after_earlier_episodes_too(wanted: Callable[..., list[Cell]]) -> None:
    cells = wanted("structured-lora", "blob", "pretrained", max_steps=40, save_steps=10, episodes=(10, 30))
    found = [(cell.row, cell.settings["episodes"], cell.is_main) for cell in cells]
    evaluated = [(10, False), (30, False), (40, True)]
    for row in ("structured-lora", "blob"):
        assert sorted(rest for name, *rest in found if name == row) == sorted(map(list, evaluated))
    assert [rest for name, *rest in found if name == "pretrained"] == [[40, True]]
    assert len(units(cells)) == 3  # of one run, all its episodes
    assert {cell.training.kept_episodes for cell in cells if cell.training} == {(10, 30, 40)}
    plain = wanted("structured-lora", max_steps=40, save_steps=10)[0]
    assert plain.hash in [cell.hash for cell in cells]
    assert plain.training is not None
    assert plain.training.kept_episodes == (40,)


@pytest.mark.parametrize("episodes", [(15,), (50,)])
def test_episodes_without_a_checkpoint_are_refused(
    wanted: Callable[..., list[Cell]], episodes: tuple[int, ...]
) -> None:
    with pytest.raises(
        ConfigError, match=rf"episodes is {episodes[0]}.*multiples of save_steps = 10 up to max_steps = 40"
    ):
        wanted("structured-lora", max_steps=40, save_steps=10, episodes=episodes)
