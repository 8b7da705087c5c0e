"""``abmll compare`` on a tiny model: every method, cells computed once, interruptions, variants, tables."""

import csv
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from abmll.experiments import significance
from abmll.experiments.cell_runner import CellRunner
from abmll.methods import REGISTRY, find_rule

# what laplace-torch imports uses torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
Call = Callable[..., Any]
SUITE = "name: mine\ntrain: [toy0, toy1, toy2]\nvalidation: [toy2]\nevaluation: [toy3, toy4]\n"
BUDGET = (
    "--dtype fp32 --r 2 --layers-to-transform 1 --max-steps 2 --save-steps 2 --inner-steps 2 --steps 2 "
    "--per-device-train-batch-size 4 --test-examples 5"
)


@pytest.fixture
def base(work: Any) -> str:
    """The command but for what is compared; ``tasks/`` has two unseen tasks."""
    Path("tasks/toy3.jsonl").write_bytes(Path("toy3.jsonl").read_bytes())
    rows = [json.loads(line) for line in Path("toy3.jsonl").read_text().splitlines()]
    Path("tasks/toy4.jsonl").write_text(
        "".join(json.dumps({**row, "input": f"4{row['input']}"}) + "\n" for row in rows)
    )
    Path("mine.yaml").write_text(SUITE)
    return f"compare --suite mine.yaml --model {work.model} --output-dir out {BUDGET}"


FEW = "--adapt-examples 6 --num-samples 2"  # a repeated flag of several values adds to them


def cells_of(folder: str = "out") -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(Path(folder, "cells").rglob("*.json"))}


def comparison() -> dict[str, Any]:
    return json.loads(Path("out/comparison.json").read_text())


def test_every_method_of_the_registry(base: str, abmll: Call) -> None:
    methods = [name for name in REGISTRY if name != "laplace" or find_spec("laplace")]  # an optional extra
    code, out, err = abmll(base, f"--methods {','.join(methods)} --seeds 0 --override maml.meta_batch=2", FEW)
    assert (code, err) == (0, "")
    found = comparison()
    assert list(found["methods"]) == methods
    assert len(cells_of()) == len(methods)
    for name, row in found["methods"].items():
        assert row["label"] in out
        assert list(row["tasks"]) == ["toy3", "toy4"]
        assert row["mean"]["num_examples"] == 10
        assert len(row["predictions"]) == 1
        assert set(row["statistics"]["intervals"]) == {"accuracy", "nll", "brier", "squared_ce"}
        assert ("differences" in row["statistics"]) == (name != "abmll")
        trained = find_rule(name).is_trained or find_rule(name).base_method
        assert (row["cost"]["gradient_steps"] > 0) == bool(trained)
        # features are read once for all methods
        assert row["cost"]["evaluation_forward_passes"] > 0 or find_rule(name).classifier
    ranks = [row["ranks"]["nll"] for row in found["methods"].values()]
    assert sum(ranks) == pytest.approx(len(methods) * (len(methods) + 1) / 2)
    # methods that continue regular LoRA share its runs
    trained = [name for name, rule in REGISTRY.items() if rule.is_trained]
    assert sorted({path.name.split("-s")[0] for path in Path("out/runs").iterdir()}) == sorted(
        {*trained} | {"regular-lora"}
    )
    assert len(list(Path("out/runs").iterdir())) == len({*trained} | {"regular-lora"})
    assert [path.name for path in Path("out").glob("table.*")] != []
    rows = list(csv.DictReader(Path("out/table.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == set(methods)
    page = Path("out/report.html").read_text()
    assert all(row["label"] in page for row in found["methods"].values())


def test_a_finished_cell_is_never_computed_again(base: str, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    which = "--methods pretrained,structured-lora --seeds 0,1"
    assert abmll(base, which).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out/cells").rglob("*")}
    monkeypatch.setattr(CellRunner, "learned", lambda *_: pytest.fail("computed a finished cell again"))
    assert abmll(base, which).code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out/cells").rglob("*")} == before
    found = comparison()
    assert found["seeds"] == [0, 1]
    assert found["uniform_nll"] == pytest.approx(math.log(2))
    for row in found["methods"].values():
        values = [cell["mean"]["nll"] for cell in cells_of().values() if cell["label"] == row["label"]]
        assert row["mean"]["nll"] == pytest.approx(sum(values) / 2)
        assert row["mean_errors"]["nll"] == pytest.approx(abs(values[0] - values[1]) / 2)


def test_what_changes_the_result_makes_another_cell(base: str, abmll: Call) -> None:
    plain = "--methods pretrained --seeds 0"
    for more in ("", "--steps 1", "--limit-train 8", "--override pretrained.learning_rate=0.01", "--save-steps 1"):
        assert abmll(base, plain, more, FEW).code == 0
    assert len(cells_of()) == 4  # checkpoints change nothing
    rows = [json.loads(line) for line in Path("tasks/toy3.jsonl").read_text().splitlines()]
    Path("tasks/toy3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    assert abmll(base, plain, FEW).code == 0
    assert len(cells_of()) == 5


def test_curves_pruning_and_recalibration(base: str, abmll: Call) -> None:
    curves = "--adapt-examples 1,4,6 --num-samples 0,2 --prune 0,0.5 --recalibrate none,meta"
    code, out, err = abmll(base, "--methods abmll,structured-lora --seeds 0", curves)
    assert (code, err) == (0, "")
    found = comparison()["methods"]
    assert list(found) == [f"{m}{r}" for m in ("abmll", "structured-lora") for r in ("", "+meta")]
    points = {name: [point["value"] for point in curve] for name, curve in found["abmll"]["curves"].items()}
    assert points == {"adapt_examples": [1, 4, 6], "num_samples": [0, 2], "prune": [0, 0.5]}
    assert "num_samples" not in found["structured-lora"]["curves"]
    [main] = [cell for cell in cells_of().values() if cell["row"] == "abmll" and cell["is_main"]]
    assert [main["settings"][name] for name in ("adapt_examples", "num_samples", "prune")] == [6, 2, 0]
    values = {curve[0]["mean"]["nll"] for curve in found["abmll"]["curves"].values()}
    assert len(values) == 3
    [meta] = [cell for cell in cells_of().values() if cell["row"] == "abmll+meta" and cell["is_main"]]
    assert list(meta["temperatures"]) == ["all"]
    assert meta["mean"]["accuracy"] == main["mean"]["accuracy"]
    assert meta["mean"]["nll"] != main["mean"]["nll"]
    assert "ABMLL + temperature (meta)" in out
    assert len(list(Path("out/runs").iterdir())) == 2


def test_the_calibration_is_abmll_s_own_and_others_get_it_on_request(base: str, abmll: Call) -> None:
    methods = "abmll,abmll@weights-only,structured-lora,pretrained-adapted,icl"
    code, out, err = abmll(base, f"--methods {methods} --seeds 0 --recalibrate none,calibration", FEW)
    assert (code, err) == (0, "")
    others = ["abmll@weights-only", "structured-lora", "pretrained-adapted", "icl"]
    assert list(comparison()["methods"]) == [
        "abmll",
        *(row for name in others for row in (name, f"{name}+calibration")),
    ]
    assert "Structured LoRA + ABMLL calibration" in out
    cells = {cell["row"]: cell for cell in cells_of().values()}
    assert len(list(Path("out/runs").iterdir())) == 2  # ABMLL's serves both presets
    for row, cell in cells.items():
        calibration = cell["calibration"] or {"inverse_temperatures": {}}
        assert (calibration["inverse_temperatures"].keys() == cell["tasks"].keys()) == (
            row == "abmll" or row.endswith("+calibration")
        )
    assert cells["abmll"]["mean"]["nll"] == cells["abmll@weights-only+calibration"]["mean"]["nll"]
    for row in others:
        assert cells[row]["mean"]["nll"] != cells[f"{row}+calibration"]["mean"]["nll"]


def test_runs_are_judged_prequential_and_asked_what_they_were_not_meant_for(base: str, abmll: Call) -> None:
    more = "--save-steps 1 --episodes 1 --ood-examples 4"
    code, _, err = abmll(base, "--methods abmll,structured-lora,blob --seeds 0,1", FEW, more)
    assert (code, err) == (0, "")
    found = comparison()["methods"]
    for key, row in found.items():
        assert [point["value"] for point in row["curves"]["episodes"]] == [1, 2]
        assert 0 <= row["out_of_distribution"]["mean"]["entropy"] <= 1
        assert (row["out_of_distribution"]["mean"]["mutual_information"] is None) == (key == "structured-lora")
        assert row["cost"]["episodes"] == 2
    assert len(list(Path("out/runs").iterdir())) == 6  # blob continues a run of its own method
    page = Path("out/report.html").read_text()
    assert "Over training: episodes" in page
    assert "Out-of-distribution inputs" in page


def test_presets_settings_files_and_overrides(base: str, abmll: Call) -> None:
    tuned = {"format": "abmll-settings-2", "methods": {"abmll": {"learning_rate": 0.5, "beta": 0.25}}}
    Path("kept").mkdir()
    Path("kept/tuned.json").write_text(json.dumps(tuned))
    Path("tuned.json").symlink_to("kept/tuned.json")  # what a user names may be a link
    more = "--settings tuned.json --override abmll.beta=0.125,weight_decay=0.1"
    assert abmll(base, "--methods abmll,abmll@paper-v3 --seeds 0", more, FEW).code == 0
    plain, published = (
        next(cell["settings"] for cell in cells_of().values() if cell["preset"] == preset)
        for preset in ("default", "paper-v3")
    )
    assert [plain[name] for name in ("learning_rate", "beta", "weight_decay", "num_samples", "space")] == [
        0.5, 0.125, 0.1, 2, "weight",
    ]  # fmt: skip
    # what the user asks for goes before the preset
    assert [published[name] for name in ("learning_rate", "beta", "weight_decay", "num_samples", "space")] == [
        1e-5, 1e-8, 0.1, 2, "output",
    ]  # fmt: skip
    assert comparison()["methods"]["abmll@paper-v3"]["label"] == "ABMLL (paper-v3)"


def test_a_method_that_fails_leaves_the_others_alone(base: str, abmll: Call) -> None:
    code, out, err = abmll(
        base, "--methods structured-lora,pretrained --seeds 0 --override structured-lora.learning_rate=0"
    )
    assert code == 2
    assert "did not move in the first episode; are the learning rates zero?" in err
    assert "structured-lora, seed 0, failed: " in out
    assert list(comparison()["methods"]) == ["pretrained"]


def test_missing_tasks_are_named_everywhere(base: str, abmll: Call) -> None:
    Path("tasks/toy4.jsonl").unlink()
    which = "--methods pretrained --seeds 0"
    assert (
        "no evaluation task 'toy4'. Did you mean 'toy3'? Add its file, or say --allow-missing" in abmll(base, which).err
    )
    code, out, _ = abmll(base, which, "--allow-missing")
    assert code == 0
    said = "Missing tasks, not in these numbers: toy4."
    assert said in out
    assert said in Path("out/table.md").read_text()
    assert "toy4" in Path("out/report.html").read_text()


def test_differences_are_from_the_row_that_is_asked_for(base: str, abmll: Call) -> None:
    which = "--methods abmll,structured-lora,pretrained --seeds 0"
    assert abmll(base, which).code == 0
    forth = comparison()["methods"]["structured-lora"]["statistics"]["differences"]
    code, out, _ = abmll(base, which, "--reference structured-lora")
    assert code == 0
    assert "Minus Structured LoRA: difference" in out
    page = Path("out/report.html").read_text()
    assert "against ABMLL" in page
    assert "against Structured LoRA" not in page
    found = comparison()
    assert found["reference"] == "structured-lora"
    assert {name for name, row in found["methods"].items() if "differences" in row["statistics"]} == {
        "abmll",
        "pretrained",
    }
    back = found["methods"]["abmll"]["statistics"]["differences"]
    for metric, one in forth.items():
        assert back[metric]["value"] == pytest.approx(-one["value"])
        assert back[metric]["low"] == pytest.approx(-one["high"])


def statistics() -> dict[str, Any]:
    return {name: row["statistics"] for name, row in comparison()["methods"].items()}


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks are enough for the statistics of the pooled calibration error."""
    monkeypatch.setattr(significance, "MIN_TASKS", 2)


def test_a_metric_that_is_newer_than_a_cell_comes_from_its_predictions(base: str, abmll: Call) -> None:
    which = "--methods pretrained,structured-lora --seeds 0,1"
    assert abmll(base, which).code == 0
    wanted = comparison()["methods"]
    for path in Path("out/cells").rglob("*.json"):
        cell = json.loads(path.read_text())
        for metrics in (cell["mean"], cell["pooled"], *cell["tasks"].values()):
            del metrics["squared_ce"]
        del cell["sha256"]  # else it would count as damaged
        path.write_text(json.dumps(cell))
    assert abmll(base, which).code == 0
    assert comparison()["methods"] == wanted
    next(Path("out/cells").rglob("pretrained-s0*.predictions.jsonl")).unlink()
    assert abmll(base, which).code == 0
    found = comparison()["methods"]
    assert found["structured-lora"]["mean"] == wanted["structured-lora"]["mean"]
    assert "squared_ce" not in found["pretrained"]["mean"]
    assert set(found["pretrained"]["statistics"]["intervals"]) == {"accuracy", "nll", "brier"}


@pytest.mark.usefixtures("few_tasks")
def test_what_was_known_of_predictions_outlives_them(base: str, abmll: Call) -> None:
    """A method that is added later leaves the others' intervals what a comparison of all of them would say."""
    assert abmll(base, "--methods abmll,structured-lora,pretrained --seeds 0").code == 0
    wanted, uniform_nll = statistics(), comparison()["uniform_nll"]
    assert abmll(base, "--methods abmll,structured-lora --seeds 0").code == 0
    [lost] = Path("out/cells").rglob("structured-lora*.predictions.jsonl")
    lost.unlink()
    assert abmll(base, "--methods structured-lora,abmll,pretrained --seeds 0").code == 0
    assert statistics() == wanted
    assert comparison()["uniform_nll"] == uniform_nll


def pooled_statistics() -> dict[str, Any]:
    """By method, which parts of its statistics say something of the pooled error."""
    return {name: {part for part, own in one.items() if "pooled_ece" in own} for name, one in statistics().items()}


@pytest.mark.usefixtures("few_tasks")
def test_pooled_statistics_of_other_numbers_are_not_kept(base: str, abmll: Call) -> None:
    which = "--methods abmll,structured-lora --seeds 0"
    assert abmll(base, which).code == 0
    before = statistics()
    for path in Path("out/cells").rglob("*.predictions.jsonl"):
        path.unlink()
    assert abmll(base, which, "--reference structured-lora").code == 0
    assert pooled_statistics() == {"abmll": {"intervals"}, "structured-lora": {"intervals"}}
    for name, one in statistics().items():
        assert one["intervals"] == before[name]["intervals"]
    assert set(statistics()["abmll"]["differences"]) == {"accuracy", "nll", "brier", "squared_ce"}
    [cell] = Path("out/cells").rglob("abmll-s0*.json")
    changed = json.loads(cell.read_text())
    changed["pooled"]["ece"] += 1e-9
    del changed["sha256"]  # else it would count as damaged
    cell.write_text(json.dumps(changed))
    assert abmll(base, which).code == 0
    assert pooled_statistics() == {"abmll": set(), "structured-lora": {"intervals"}}
    Path("out/comparison.json").write_text("{")
    code, _, err = abmll(base, which)
    assert code == 2
    assert "comparison.json: is not valid JSON" in err


def test_a_mixture_has_the_calibration_that_abmll_has_midway_too(base: str, abmll: Call) -> None:
    assert abmll(base, "--methods abmll,abmll-mixture --seeds 0 --episodes 1 --save-steps 1 --max-steps 2").code == 0
    priors: dict[int, list[Any]] = {}
    for cell in cells_of().values():
        known = ("mean", "std", "bias_std")
        priors.setdefault(cell["settings"]["episodes"], []).append([cell["calibration"][name] for name in known])
    assert set(priors) == {1, 2}
    for one, other in priors.values():
        assert one == other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--methods abml,abmlll", "Did you mean 'abmll'?"),
        ("--methods abmll@paper-v2", "preset: unknown 'paper-v2'"),
        ("--methods abmll,abmll", "methods: 'abmll' is named twice"),
        ("--seeds 1,1", "seeds: one is named twice"),
        ("--override bta=1", "override: 'bta=1' is no setting. Did you mean 'beta'?"),
        ("--override mamll.beta=1 --methods abmll", "method: unknown 'mamll'; Did you mean 'maml'?"),
        ("--override beta=much", "override: beta is 'much'; use a finite number of 0 or more"),
        ("--prune 0,1", "compare: --prune is '1'; use a finite number of 0 or more and below 1"),
        ("--adapt-examples 0", "compare: --adapt-examples is '0'; use a whole number of 1 or more"),
        ("--recalibrate some", "--recalibrate is 'some'; use 'none', 'meta' or 'calibration'"),
        ("--settings mine.yaml", "mine.yaml: is not valid JSON"),
        ("--jobs 0", "compare: --jobs is '0'; use none or a whole number of 1 or more"),
        (
            "--methods abmll,maml --reference mal",
            "reference: the tables have no row 'mal', only abmll, maml. Did you mean 'maml'?",
        ),
    ],
)
def test_refusals(flags: str, message: str, base: str, refused: Callable[..., str]) -> None:
    refused(f"{base} {flags}", message)


def test_ctrl_c_says_how_to_go_on(base: str, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CellRunner, "compute", interrupted)
    code, out, err = abmll(base, "--methods pretrained --seeds 0 --quiet")
    assert (code, out) == (130, "")
    assert err == "abmll: interrupted: out: run the same command to go on; what is finished is kept\n"


PROGRAM = "import sys\nfrom abmll.cli.main import entry\nif __name__ == '__main__': sys.exit(entry())"


def episodes() -> dict[str, int]:
    """How far each training run is."""
    files = Path("out/runs").glob("*/timing.jsonl")
    return {path.parent.name: len(path.read_text().splitlines()) for path in files}


def test_a_killed_comparison_goes_on(base: str, abmll: Call, tmp_path: Path) -> None:
    """Killed in the middle of its training runs, the same command finishes them with the results of an unbroken one."""
    budget = base.replace("--max-steps 2 --save-steps 2", "--max-steps 12 --save-steps 1")
    long = f"{budget} {FEW} --methods abmll,reptile --seeds 0 --jobs"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, str(program), *f"{long} 2".split()], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 600  # only so that a defect does not hang the tests
        while not list(Path().glob("out/runs/*/checkpoint-3")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    begun = episodes()
    assert max(begun.values()) >= 3
    time.sleep(0.5)  # an episode takes a twentieth of it
    now = episodes()
    time.sleep(0.5)
    assert episodes() == now  # no process goes on without the first one
    assert not cells_of()
    assert abmll(long, "1").code == 0
    assert set(episodes().values()) == {12}
    broken = cells_of()
    assert abmll(long, "1 --output-dir whole").code == 0
    assert {name: cell["tasks"] for name, cell in broken.items()} == {
        name: cell["tasks"] for name, cell in cells_of("whole").items()
    }
    assert not list(Path("out").rglob(".*.tmp"))


def test_a_theta_that_comes_with_the_package_takes_the_place_of_a_run(
    base: str, abmll: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is that of the run it was copied from, whatever layers are asked for now."""
    assert abmll(base, "--methods trained-head --seeds 0", FEW).code == 0
    (run,) = Path("out/runs").iterdir()
    shutil.copytree(run, tmp_path / "thetas" / "small")
    monkeypatch.setattr("abmll.model.shipped.THETAS", tmp_path / "thetas")
    which = "--methods trained-head,trained-head@small --seeds 0 --layers-to-transform 0-1 --r 4"
    assert abmll(base, which, FEW, "--override trained-head.layers_to_transform=1,trained-head.r=2").code == 0
    rows = comparison()["methods"]
    assert list(rows) == ["trained-head", "trained-head@small"]
    assert rows["trained-head@small"]["label"] == "Head, trained features (small)"
    assert rows["trained-head@small"]["tasks"] == rows["trained-head"]["tasks"]
    assert rows["trained-head@small"]["cost"]["gradient_steps"] == 0 < rows["trained-head"]["cost"]["gradient_steps"]
    (cell,) = (one for one in cells_of().values() if one["row"] == "trained-head@small")
    assert (cell["training"], cell["settings"]["r"], cell["settings"]["layers_to_transform"]) == (None, 2, "1")
    Path("seen.yaml").write_text("name: mine\ntrain: [toy0, toy1, toy3]\nevaluation: [toy2, toy4]\n")
    outcome = abmll(base, "--suite seen.yaml --methods trained-head@small --seeds 0", FEW)
    assert outcome.code == 2
    assert "trained-head@small was trained on 1 of the unseen tasks of mine (toy2); leave it out" in outcome.err
    outcome = abmll(base, "--model other --methods trained-head@small --seeds 0", FEW)
    assert outcome.code == 2
    assert "the theta of trained-head@small belongs to" in outcome.err
    if find_spec("optuna") is not None:
        outcome = abmll(base.replace("compare", "tune"), "--methods trained-head@small --seeds 0 --trials 1")
        assert "trained-head@small has its theta already, and nothing to tune; leave it out" in outcome.err


@pytest.mark.parametrize("method", ["trained-head@large", "head@bigbench"])
def test_no_other_method_has_a_shipped_theta(base: str, abmll: Call, method: str) -> None:
    outcome = abmll(base, f"--methods {method} --seeds 0", FEW)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "preset: unknown" in outcome.err
