"""Every verb from end to end on a tiny model: what it writes, what it prints, what it takes from a file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

Call = Callable[..., Any]


def jsonl(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def facts(printed: str) -> dict[str, str]:
    """The lines of a summary: name, at least two spaces, value."""
    return {name: value.strip() for name, _, value in (line.partition("  ") for line in printed.splitlines())}


def verbs(train: str) -> dict[str, str]:
    """A working command of every verb that uses a model, each with its own output."""
    return {
        "train": f"{train} --output-dir out/run --max-steps 1",
        "adapt": "adapt toy3.jsonl --theta run --output-dir out/new --steps 1",
        "predict": "predict new --input questions.jsonl --output out/answers.jsonl --num-samples 2",
        "evaluate": "evaluate run --suite suite.yaml --output-dir out/ev --num-samples 2 --steps 1",
        "export": "export new --format peft --output-dir out/adapter",
        "report": "report run",
    }


VERBS = ["train", "adapt", "predict", "evaluate", "export", "report"]


@pytest.mark.parametrize("verb", VERBS)
def test_quiet_says_nothing(verb: str, work: Any, abmll: Call) -> None:
    assert abmll(verbs(work.train)[verb], "--quiet") == (0, "", "")


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_all_there_is_on_stdout(verb: str, work: Any, abmll: Call) -> None:
    code, out, err = abmll(verbs(work.train)[verb], "--json", "--quiet")
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize("verb", VERBS)
def test_existing_output_is_kept_unless_overwritten(verb: str, work: Any, abmll: Call) -> None:
    command = verbs(work.train)[verb]
    assert abmll(command).code == 0
    if verb == "report":  # nothing but a view of the run: it is drawn anew
        assert abmll(command).code == 0
        return
    assert abmll(command).code == 2
    assert abmll(command, "--overwrite").code == 0


def test_train_leaves_a_run_folder(work: Any, abmll: Call) -> None:
    code, out, err = abmll(work.train, "--output-dir", "mine", "--max-steps", "4", "--save-steps", "2")
    assert code == 0
    assert err == "ABMLL: 3 tasks, 96 training examples; 672 trainable numbers in 2 layers\n"
    assert {"checkpoint-2", "checkpoint-4", "config.yaml", "metrics.jsonl", "timing.jsonl", "report.html"} <= {
        path.name for path in Path("mine").iterdir()
    }
    rows, costs = jsonl("mine/metrics.jsonl"), jsonl("mine/timing.jsonl")
    assert [row["episode"] for row in rows] == [1, 2, 3, 4]
    assert {row["task"] for row in rows} == {"toy0", "toy1", "toy2"}
    assert rows[0].keys() >= {"nll", "accuracy", "kl", "prior", "loss", "grad_norm", "log_sigma"}
    shown = facts(out)
    nll = sum(row["nll"] for row in rows[-3:]) / 3
    assert shown["episodes"] == "4, of 3 tasks"
    assert (
        shown["gradient steps"] == "42"
    )  # two inner steps and an outer one an episode; ten a task for the calibration
    costs.append(json.loads(Path("mine/calibration.json").read_text())["cost"])
    assert shown["tokens"] == f"{sum(cost['tokens'] for cost in costs):,}"
    assert shown["NLL"] == f"{nll:.3f} nats per training example, on average over the last 3 episodes"
    assert shown["report"] == "mine/report.html"
    settings = yaml.safe_load(Path("mine/config.yaml").read_text())
    assert (settings["max_steps"], settings["r"], settings["model"]) == (4, 2, str(work.model))


def test_train_resumed_is_train_uninterrupted(work: Any, abmll: Call) -> None:
    one = f"{work.train} --save-steps 1 --output-dir one"
    assert abmll(one, "--max-steps", "3").code == 0
    two = f"{work.train} --save-steps 1 --output-dir two"
    assert abmll(two, "--max-steps", "1").code == 0
    summary = json.loads(abmll(two, "--max-steps", "3", "--resume", "--json").out)
    assert (summary["episodes"], summary["gradient_steps"]) == (3, 9 + 30)  # the part before --resume included
    for name in ("metrics.jsonl", "checkpoint-3/theta.safetensors", "checkpoint-3/optimizer_phi.safetensors"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_train_takes_a_suites_tasks_and_prompt(work: Any, abmll: Call) -> None:
    suite = Path("suite.yaml")
    suite.write_text(suite.read_text() + "prompt: {answer: letter, instruction: false}\n")
    code = abmll(work.train, "--tasks", "suite.yaml", "--instruction", "--max-steps", "1", "--output-dir", "s").code
    assert code == 0
    settings = yaml.safe_load(Path("s/config.yaml").read_text())
    assert (settings["answer"], settings["instruction"]) == ("letter", True)  # a flag wins over the suite


def test_train_reports_what_it_cut(work: Any, abmll: Call) -> None:
    command = f"{work.train} --no-instruction --max-length 27 --max-steps 1"
    out = abmll(command, "--output-dir", "short").out
    assert facts(out)["NLL"].endswith(" nats per training example, in the last episode")
    assert facts(out)["truncated"] == "8 of 8 inputs too long for the model, cut in the middle"
    assert json.loads(abmll(command, "--output-dir", "again", "--json").out)["truncated"] == 8


def test_config_file_and_flags(work: Any, abmll: Call) -> None:
    Path("run.yaml").write_text("max-steps: 3\nr: 4\nsave_steps: 1\n")
    command = f"{work.train} --config run.yaml --output-dir mine --max-steps 1"
    assert abmll(command).code == 0
    settings = yaml.safe_load(Path("mine/config.yaml").read_text())
    assert settings["max_steps"] == 1
    assert settings["r"] == 2  # a flag of the command above
    assert settings["save_steps"] == 1


@pytest.mark.parametrize("verb", VERBS)
def test_printed_configuration_gives_the_same_command(verb: str, work: Any, abmll: Call) -> None:
    code, printed, err = abmll(verbs(work.train)[verb], "--print-config")
    assert (code, err) == (0, "")
    Path("printed.yaml").write_text(printed)
    assert abmll(verb, "--config", "printed.yaml", "--print-config") == (0, printed, "")
    assert not Path("out").exists()
    assert abmll(verb, "--config", "printed.yaml", "--quiet") == (0, "", "")
    assert Path("run/report.html" if verb == "report" else "out").exists()


def test_a_preset_and_what_wins_over_it(work: Any, abmll: Call) -> None:
    command = f"{work.train} --preset paper-v3 --beta 0.5 --print-config"
    settings = yaml.safe_load(abmll(command).out)
    assert (settings["space"], settings["beta"], settings["gamma"]) == ("output", 0.5, 1e-8)
    assert settings["per_device_train_batch_size"] == 4


@pytest.mark.parametrize("command", [["train", "--tasks", "bigbench-demo"], ["evaluate", "--suite", "bigbench-demo"]])
def test_printing_the_configuration_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from abmll.cli.main import entry\n"
        f"code = entry({[*command, '--print-config']!r})\n"
        "sys.exit(' '.join({'torch', 'transformers', 'numpy', 'matplotlib'} & {*sys.modules}) or code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_adapt_writes_a_posterior(work: Any, abmll: Call) -> None:
    code, out, _ = abmll("adapt toy3.jsonl --theta run --output-dir p --steps 3 --batch-size 4")
    assert code == 0
    shown = facts(out)
    assert shown.pop("inverse temperature").split(", ")[1].startswith("known to 0.")
    assert shown == {
        "posterior": "p",
        "task": "toy3, 40 examples",
        "gradient steps": "3, each on 4 examples",
        "members": "5, of so many steps each",
    }
    document = json.loads(Path("p/posterior.json").read_text())
    assert document["task_name"] == "toy3"
    assert document["settings"]["adapt_steps"] == 3
    tensors = {f"phi{number}.safetensors" for number in ("", "_2", "_3", "_4", "_5")}
    assert {path.name for path in Path("p").iterdir()} == {"manifest.json", "posterior.json", *tensors}


def test_adapt_learns_as_it_is_told(work: Any, abmll: Call) -> None:
    """A mixture where nothing is said, whose first component is the Gaussian that the run's own method finds."""
    said = {"mixture": "", "two": " --ensemble-size 2", "one": " --method abmll"}
    for name, more in said.items():
        assert abmll(f"adapt toy3.jsonl --theta run --output-dir {name} --steps 3{more}").code == 0
    documents = {name: json.loads(Path(name, "posterior.json").read_text()) for name in said}
    assert {name: document["members"] for name, document in documents.items()} == {"mixture": 5, "two": 2, "one": 1}
    methods = [document["settings"]["method"] for document in documents.values()]
    assert methods == ["abmll-mixture", "abmll-mixture", "abmll"]
    one, first, second = map(load_file, ("one/phi.safetensors", "two/phi.safetensors", "two/phi_2.safetensors"))
    for name, tensor in one.items():  # which members learn side by side changes their rounding
        np.testing.assert_allclose(first[name], tensor, rtol=0, atol=1e-5)
    assert not all((one[name] == second[name]).all() for name in one)


def test_a_run_of_output_space_is_adapted_as_published(work: Any, abmll: Call) -> None:
    assert abmll(f"{work.train} --max-steps 1 --space output --output-dir published").code == 0
    summary = json.loads(abmll("adapt toy3.jsonl --theta published --output-dir p --steps 1 --json").out)
    assert (summary["method"], summary["members"]) == ("abmll", 1)


def test_adapt_learns_from_the_training_split_only(work: Any, abmll: Call) -> None:
    rows = jsonl("toy3.jsonl")
    marked = [{**row, "split": "train" if n < 5 else "validation"} for n, row in enumerate(rows)]
    Path("marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    command = "adapt marked.jsonl --theta run --output-dir p --steps 1 --task-name other --json"
    summary = json.loads(abmll(command).out)
    assert (summary["examples"], summary["task"], summary["truncated"]) == (5, "other", 0)


ANSWER_KEYS = {
    "task",
    "id",
    "probs",
    "prediction",
    "label",
    "answer",
    "entropy",
    "expected_entropy",
    "mutual_information",
}


@pytest.mark.parametrize("source", ["new", "run"])
def test_predict_writes_a_line_per_example(source: str, work: Any, abmll: Call) -> None:
    code, out, _ = abmll("predict", source, "--input", "toy3.jsonl", "--output", "a.jsonl", "--num-samples", "3")
    assert code == 0
    rows, examples = jsonl("a.jsonl"), jsonl("toy3.jsonl")
    assert len(rows) == len(examples)
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        assert row.keys() == ANSWER_KEYS
        assert (row["task"], row["id"]) == ("toy3", f"toy3/{number}")
        assert sum(row["probs"]) == pytest.approx(1)
        assert row["prediction"] == row["probs"].index(max(row["probs"]))
        assert row["label"] == example["options"][row["prediction"]]
        assert example["options"][row["answer"]] == example["answer"]
        assert 0 <= row["mutual_information"] <= row["entropy"]
        assert row["mutual_information"] == pytest.approx(row["entropy"] - row["expected_entropy"], abs=1e-12)
    assert max(row["mutual_information"] for row in rows) > 0
    shown = facts(out)
    right = sum(row["prediction"] == row["answer"] for row in rows)
    assert shown["accuracy"] == f"{right / len(rows):.3f}"
    assert shown["samples"] == ("5 members, 1 sample each" if source == "new" else "3 of the posterior")
    mean = sum(max(row["probs"]) for row in rows) / len(rows)
    assert shown["confidence"].startswith(f"{mean:.3f} on average")


def test_predict_at_the_mean(work: Any, abmll: Call) -> None:
    assert abmll("adapt toy3.jsonl --theta run --output-dir one --steps 2 --method abmll").code == 0
    out = abmll("predict one --input questions.jsonl --output a.jsonl --num-samples 0").out
    assert {row["mutual_information"] for row in jsonl("a.jsonl")} == {0.0}
    assert facts(out)["samples"] == "none, answered at the mean"
    assert "mutual information" not in out


def test_predict_without_answers(work: Any, abmll: Call) -> None:
    code, out, _ = abmll(verbs(work.train)["predict"], "--json")
    summary = json.loads(out)
    assert (code, summary["examples"], summary["answered"], summary["accuracy"]) == (0, 6, 0, None)
    assert [row["answer"] for row in jsonl("out/answers.jsonl")] == [None] * 6


@pytest.mark.parametrize("source", ["new", "run"])
def test_predict_under_another_task_name(source: str, work: Any, abmll: Call) -> None:
    command = f"predict {source} --input questions.jsonl --num-samples 0 --output"
    assert abmll(command, "a.jsonl").code == abmll(command, "b.jsonl", "--task-name", "zebra").code == 0
    first, second = jsonl("a.jsonl"), jsonl("b.jsonl")
    assert {row["task"] for row in first} == {"toy3" if source == "new" else "questions"}
    assert {row["task"] for row in second} == {"zebra"}
    assert [row["probs"] for row in first] != [row["probs"] for row in second]


def test_predict_is_a_function_of_its_seed(work: Any, abmll: Call) -> None:
    command = "predict new --input questions.jsonl --num-samples 2 --output"
    for name, seed in (("a.csv", "0"), ("b.csv", "0"), ("c.csv", "1")):
        assert abmll(command, name, "--seed", seed).code == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes() != Path("c.csv").read_bytes()


def test_evaluate_writes_metrics_and_predictions(work: Any, abmll: Call) -> None:
    command = "evaluate run --suite suite.yaml --output-dir ev --steps 1 --num-samples 2 --seed 5"
    code, out, _ = abmll(command)
    assert code == 0
    metrics, rows = json.loads(Path("ev/metrics.json").read_text()), jsonl("ev/predictions.jsonl")
    named = [metrics[key] for key in ("format", "method", "label")]
    assert named == ["abmll-evaluation-2", "abmll-mixture", "ABMLL mixture"]
    assert (metrics["run"], metrics["suite"], metrics["seed"]) == ("run", "mine", 5)
    assert metrics["settings"]["num_samples"] == 2
    assert metrics["versions"].keys() >= {"abmll", "torch", "transformers"}
    assert metrics["tasks"].keys() == {"toy3"}
    assert all(row.keys() == ANSWER_KEYS - {"label"} and row["task"] == "toy3" for row in rows)
    accuracy = sum(row["prediction"] == row["answer"] for row in rows) / len(rows)
    assert metrics["tasks"]["toy3"]["accuracy"] == metrics["mean"]["accuracy"] == pytest.approx(accuracy)
    assert metrics["tasks"]["toy3"]["num_examples"] == metrics["pooled"]["num_examples"] == len(rows) == 8
    assert Path("ev/report.html").exists()
    lines = [line.split() for line in out.splitlines() if line]
    assert lines[0] == ["Task", "Examples", "Constant", "Accuracy", "↑", "NLL", "↓", "ECE", "↓"]
    assert lines[2][:2] == ["toy3", "8"]
    assert lines[5][:3] == ["ABMLL", "mixture", f"{accuracy:.3f}"]
    assert lines[-2:] == [["mean", "over", "1", "task,", "one", "seed", "(5)"], ["report:", "ev/report.html"]]


def test_evaluate_learns_as_it_is_told(work: Any, abmll: Call) -> None:
    command = "evaluate run --suite suite.yaml --steps 1 --num-samples 0 --output-dir"
    assert abmll(command, "one", "--method", "abmll").code == abmll(command, "two", "--ensemble-size", "2").code == 0
    methods = [json.loads(Path(name, "metrics.json").read_text())["method"] for name in ("one", "two")]
    assert methods == ["abmll", "abmll-mixture"]
    code, _, err = abmll(command, "three", "--method", "blob")
    assert (code, "'blob' continues a run of 'regular-lora', and this one is of 'abmll'" in err) == (2, True)


def test_evaluate_takes_a_suites_numbers_of_examples(work: Any, abmll: Call) -> None:
    suite = Path("suite.yaml")
    suite.write_text(suite.read_text() + "adapt_examples: 3\ntest_examples: 4\n")
    command = "evaluate run --suite suite.yaml --output-dir ev --steps 1 --num-samples 0 --adapt-examples 2"
    assert abmll(command).code == 0
    settings = json.loads(Path("ev/metrics.json").read_text())["settings"]
    assert (settings["adapt_examples"], settings["test_examples"]) == (2, 4)
    assert len(jsonl("ev/predictions.jsonl")) == 4


def test_evaluate_inside_a_run_shows_in_its_report(work: Any, abmll: Call) -> None:
    assert abmll("evaluate run --suite suite.yaml --output-dir run/evaluation --steps 1").code == 0
    assert facts(abmll("report", "run").out) == {"report": "run/report.html"}
    assert "toy3" in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("source", "tensors", "more"),
    [("new --member 2", "new/phi_3", ", member 2 of 5"), ("run", "run/checkpoint-2/theta", "")],
)
def test_export_peft(source: str, tensors: str, more: str, work: Any, abmll: Call) -> None:
    out = abmll(f"export {source} --format peft --output-dir adapter").out
    assert facts(out) == {"export": "adapter", "what": f"LoRA adapter of 2 layers{more}", "base model": str(work.model)}
    learned, written = load_file(f"{tensors}.safetensors"), load_file("adapter/adapter_model.safetensors")
    layer = "model.layers.1.self_attn.q_proj"
    assert (learned[f"{layer}.mean_A"] == written[f"base_model.model.{layer}.lora_A.weight"]).all()
    assert (learned[f"{layer}.mean_B"] == written[f"base_model.model.{layer}.lora_B.weight"]).all()
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (2, work.model.name)


def test_export_of_a_mixture_is_its_average(work: Any, abmll: Call) -> None:
    out = abmll("export new --format peft --output-dir adapter").out
    assert facts(out)["what"].startswith("LoRA adapter of 2 layers, the average of 5 members to within ")
    assert json.loads(Path("adapter/adapter_config.json").read_text())["r"] == 2
    summary = json.loads(abmll("export new --format merged --output-dir merged --json").out)
    assert (summary["layers"], summary["members"], summary["member"]) == (2, 5, None)


def test_export_with_a_task_for_the_harness(work: Any, abmll: Call) -> None:
    Path("rows.csv").write_text("input,output\na b,yes\nc d,no\n")
    out = facts(abmll("export new --format lm-eval --data rows.csv --output-dir measured").out)
    assert out["measure"].startswith(f"lm_eval --model hf --model_args pretrained={work.model},peft=measured --tasks ")
    assert len(Path("measured/test.jsonl").read_text().splitlines()) == 2
    code, _, err = abmll("export new --format lm-eval --output-dir other")
    assert (code, "the format lm-eval needs labelled rows" in err) == (2, True)


@pytest.mark.parametrize("source", ["new", "run"])
def test_export_merged(source: str, work: Any, abmll: Call) -> None:
    assert abmll("export", source, "--format", "merged", "--output-dir", "merged", "--json").code == 0
    merged, base = (AutoModelForCausalLM.from_pretrained(where).state_dict() for where in ("merged", work.model))
    changed = {name for name in base if not (base[name] == merged[name]).all()}
    assert changed == {f"model.layers.1.self_attn.{name}_proj.weight" for name in "qv"}
    # With its tokenizer, it is a model to begin with.
    assert abmll(f"{work.train} --model merged --max-steps 1 --output-dir next").code == 0


def test_a_model_that_moved_is_named_again(work: Any, abmll: Call) -> None:
    command = "predict new --input questions.jsonl --output a.jsonl --num-samples 0"
    document = json.loads(Path("new/posterior.json").read_text())
    assert abmll(command, "--model", str(work.model)).code == 0
    assert abmll(command, "--overwrite", "--dtype", "bf16").code == 0
    assert document["settings"]["dtype"] == "fp32"
