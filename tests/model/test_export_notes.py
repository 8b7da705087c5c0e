"""What lies beside an export: enough for PEFT and transformers alone to give the posterior's probabilities."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from abmll import AbmllModel, Task
from abmll.common.config import LearningConfig, PromptConfig
from abmll.language import embedded
from abmll.model.export_notes import card, export_notes
from abmll.model.learned_task import TaskPosterior
from abmll.model.prequential import TaskCalibration

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "exports.md"
CALIBRATION = TaskCalibration(torch.tensor([[0.5, 1.0, -0.4], [1.1, 0.2, 0.0]], dtype=torch.float64), ("no", "yes"))


def stranger() -> dict[str, Any]:
    """The functions of the page's first block."""
    block, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def learn(family_folder: Callable[[str], Path], toy_tasks: list[Task]) -> Callable[..., TaskPosterior]:
    """One adapter, far from zero, whose calibration has its labels in another order than the posterior."""

    def make(prompt: PromptConfig | None = None, family: str = "llama") -> TaskPosterior:
        modules = ("q_proj", "v_proj")
        model = AbmllModel.from_base(
            str(family_folder(family)), prompt=prompt or PromptConfig(), r=2, target_modules=modules, dtype="fp32"
        )
        model.learning = LearningConfig()
        posterior = model.adapt(toy_tasks[0].train[:6], task_name="toy", steps=2)
        generator = torch.Generator().manual_seed(4)
        for tensor in posterior.phi.mean_tensors():
            tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
        return replace(posterior, calibration=CALIBRATION)

    return make


@pytest.mark.parametrize(
    "prompt",
    [
        PromptConfig(),
        PromptConfig(answer="letter"),
        PromptConfig(list_options=True, length_normalize=False, instruction=False),
    ],
    ids=["text", "letter", "listed"],
)
def test_a_stranger_gets_the_probabilities_at_the_mean(
    prompt: PromptConfig, learn: Callable[..., TaskPosterior], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    posterior = learn(prompt)
    posterior.export_peft(tmp_path / "out")
    names, texts = stranger(), [" 7 abc", "12 hgfedcba"]
    loaded = names["load"](str(tmp_path / "out"), str(family_folder("llama")))
    ours = posterior.predict(texts, samples=0)
    raw = replace(posterior, calibration=None).predict(texts, samples=0)
    for text, expected in zip(texts, ours.lists(), strict=True):
        found = names["probabilities"](*loaded, text)
        assert tuple(found) == posterior.labels
        assert list(found.values()) == pytest.approx(expected, abs=1e-5)
    assert float((ours.probs - raw.probs).abs().max()) > 1e-3  # the calibration matters


@pytest.mark.parametrize("write", [TaskPosterior.export_peft, TaskPosterior.export_merged])
def test_no_path_of_this_computer_is_written(
    write: Callable[..., float],
    learn: Callable[..., TaskPosterior],
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    posterior = learn()
    write(posterior, tmp_path / "out")
    notes, readme = ((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("abmll.json", "README.md"))
    about, folder = json.loads(notes), family_folder("llama")
    assert str(folder.parent) not in notes + readme
    assert (about["base"]["name"], about["base"]["fingerprint"]) == (folder.name, posterior.scorer.base.fingerprint)
    assert about["format"] == "abmll-export-1"
    assert (about["task_name"], about["members"], about["member"]) == ("toy", 1, None)
    biases = dict(zip(about["labels"], about["calibration"]["biases"], strict=True))
    assert biases == pytest.approx({"no": 0.6, "yes": -0.2})
    assert about["calibration"]["inverse_temperature"] == pytest.approx(0.8)


def test_the_embedded_model_has_its_name_on_the_hub_and_a_note(learn: Callable[..., TaskPosterior]) -> None:
    posterior = learn()
    scorer = posterior.scorer
    scorer.base = replace(scorer.base, name=embedded.NAME)
    notes = export_notes(posterior, None)
    assert notes["base"]["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "4-bit" in notes["base"]["base_note"]
    front = yaml.safe_load(card(notes, "peft").split("---\n")[1])
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["library_name"] == "peft"


def test_without_fixed_labels_letters_have_tokens_and_texts_have_none(learn: Callable[..., TaskPosterior]) -> None:
    letters = export_notes(replace(learn(PromptConfig(answer="letter")), labels=()), None)
    assert len(letters["answer_tokens"]) == 26
    assert letters["prompt"]["template"].endswith("\nChoices:\nA) {option A}\nB) {option B}\nAnswer:")
    texts = export_notes(replace(learn(), labels=()), None)
    assert (texts["answer_tokens"], texts["labels"], texts["calibration"]["biases"]) == (None, [], [])


def test_the_card_shows_the_prompt_even_with_fences_in_it(learn: Callable[..., TaskPosterior]) -> None:
    notes = export_notes(learn(), None)
    assert f"```\n{notes['prompt']['template']}\n```" in card(notes, "peft")
    notes["prompt"]["template"] = "```\n{input}\n```"
    assert "````\n```\n{input}\n```\n````" in card(notes, "peft")
    assert "library_name: transformers" in card(notes, "merged")
