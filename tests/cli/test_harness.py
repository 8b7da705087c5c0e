"""Our numbers by way of lm-evaluation-harness: of an exported adapter in its own model, and of ABMLL as a model."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from abmll import AbmllModel, Task
from abmll.common.config import LearningConfig, PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.model.learned_task import TaskPosterior
from abmll.model.lm_eval_export import harness_files, harness_name
from abmll.model.prequential import TaskCalibration
from abmll.tasks import Example

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from abmll.cli.harness import main
from abmll.cli.harness_model import AbmllLM

# PEFT 0.21 asks transformers 5.23 for an attribute under its old name; any other warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CALIBRATION = TaskCalibration(torch.tensor([[0.5, 1.0, -0.4], [1.1, 0.2, 0.0]], dtype=torch.float64), ("no", "yes"))


def learn(folder: Path, task: Task, prompt: PromptConfig) -> TaskPosterior:
    """One adapter, far from zero, with a calibration that matters."""
    model = AbmllModel.from_base(
        str(folder), prompt=prompt, r=2, target_modules=("q_proj", "v_proj"), dtype="fp32", device="cpu"
    )
    model.learning = LearningConfig()
    posterior = model.adapt(task.train[:6], task_name="Toy words!", steps=2)
    generator = torch.Generator().manual_seed(4)
    for tensor in posterior.phi.mean_tensors():
        tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
    return replace(posterior, calibration=CALIBRATION)


def opened(base: Path, folder: Path) -> Path:
    """The same model, whose tokenizer opens a text with a token of its own, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    for path in base.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def measure(model: Any, task: str, folder: Path, arguments: str | None = None) -> tuple[dict[str, float], list[Any]]:
    """The harness's numbers, and every question's log-probabilities."""
    evaluate: Any = simple_evaluate  # its decorator hides its parameters
    found = evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    assert found is not None
    numbers = {key.removesuffix(",none"): value for key, value in found["results"][task].items()}
    samples = sorted(found["samples"][task], key=lambda one: one["doc_id"])
    return numbers, [[answer[0] for answer in one["filtered_resps"]] for one in samples]


def expected(probs: torch.Tensor, answers: list[int]) -> dict[str, float]:
    """Accuracy, NLL and Brier score, directly."""
    right = probs[range(len(answers)), answers]
    brier = (probs - torch.eye(probs.shape[1], dtype=probs.dtype)[answers]).square().sum(-1)
    accuracy = (probs.argmax(-1) == torch.tensor(answers)).double().mean()
    return {"acc": float(accuracy), "nll": float(-right.log().mean()), "brier": float(brier.mean())}


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [(PromptConfig(answer="letter"), True), (PromptConfig(length_normalize=True), False)],
    ids=["letters behind an opening token", "texts by length"],
)
def test_both_ways_give_our_numbers_at_the_mean(
    prompt: PromptConfig, opens: bool, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path
) -> None:
    base = opened(tiny_llama, tmp_path / "base") if opens else tiny_llama
    posterior = learn(base, toy_tasks[0], prompt)
    assert bool(posterior.scorer.encoder.opening) is opens
    examples = [replace(one, options=posterior.labels) for one in toy_tasks[0].examples[30:40]]
    answers = [example.answer or 0 for example in examples]
    posterior.export_lm_eval(tmp_path / "out", examples)
    ours = posterior.predict(examples, samples=0).probs
    name = harness_name(posterior.task_name)

    arguments = f"pretrained={base},peft={tmp_path / 'out'},dtype=float32"
    numbers, logs = measure("hf", f"{name}_calibrated", tmp_path / "out", arguments)
    for metric, value in expected(ours, answers).items():
        assert numbers[metric] == pytest.approx(value, abs=1e-6), metric
    bare = replace(posterior, calibration=None)
    encoded = bare.scorer.encode(examples, bare.task_name)
    sums = bare.scorer.scores(bare.scorer.batch(encoded), bare.phi).sums
    torch.testing.assert_close(torch.tensor(logs), sums, rtol=0, atol=2e-5)

    posterior.save_pretrained(tmp_path / "saved")
    lm = AbmllLM(str(tmp_path / "saved"), num_samples=0, device="cpu")
    numbers, logs = measure(lm, name, tmp_path / "out")
    for metric, value in expected(ours, answers).items():
        assert numbers[metric] == pytest.approx(value, abs=1e-6), metric
    torch.testing.assert_close(torch.tensor(logs, dtype=torch.float64), ours.log(), rtol=0, atol=1e-6)


def test_the_model_refuses_what_has_no_options(tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> None:
    learn(tiny_llama, toy_tasks[0], PromptConfig()).save_pretrained(tmp_path / "saved")
    lm = AbmllLM(str(tmp_path / "saved"), device="cpu")
    for ask in (lm.generate_until, lm.loglikelihood_rolling):
        with pytest.raises(ConfigError, match="multiple choice only"):
            ask([])


def test_arguments_that_the_model_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"^model_args: say what 'abmll adapt' or 'abmll train' wrote, as"):
        AbmllLM(num_samples=4, batch_size=1)
    with pytest.raises(ConfigError, match=r"^model_args: abmll has no peft; it has pretrained, num_samples,"):
        AbmllLM("none", peft="adapter")


@pytest.mark.parametrize("problem", [ValueError("Tasks not found: abmll_toy"), ConfigError("none: no such folder")])
def test_what_cannot_be_is_one_line(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise problem

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fail)
    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"abmll: error: {problem}")
    assert err.count("\n") == 1


def test_what_is_no_affair_of_the_user_has_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting property name"):
        main()


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "abmll.cli.harness_model")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main() == 2
    assert capsys.readouterr().err == (
        'abmll: error: harness: lm-eval is not installed; run: pip install "abmll[lm-eval]"\n'
    )


def test_files_of_a_task(tiny_llama: Path, toy_tasks: list[Task]) -> None:
    from abmll.model.export_notes import export_notes

    posterior = learn(tiny_llama, toy_tasks[0], PromptConfig())
    notes = export_notes(posterior, None)
    texts = harness_files(notes, [Example("7", "a text", ("yes", "no"), 1)])
    assert set(texts) == {"test.jsonl", "lm_eval_task.py", "abmll_toy_words.yaml", "abmll_toy_words_calibrated.yaml"}
    assert json.loads(texts["test.jsonl"]) == {"input": "a text", "answer": notes["labels"].index("no")}
    plain = yaml.safe_load(texts["abmll_toy_words.yaml"].replace("!function ", ""))
    assert plain["process_results"] == "lm_eval_task.as_given"
    with pytest.raises(DataError, match=r"example '7' has the answer 'maybe', which is no label of the task"):
        harness_files(notes, [Example("7", "a text", ("maybe", "no"), 0)])
    with pytest.raises(DataError, match="example '7' has no answer"):
        harness_files(notes, [Example("7", "a text", ("yes", "no"), None)])
    with pytest.raises(ConfigError, match="every question has its own options"):
        harness_files(notes | {"labels": []}, [])
