"""A rehearsal's model, tasks and suite."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll.experiments.budget import SharedConfig
from abmll.experiments.smoke import TEST, TRAIN, rehearse, rows_of
from abmll.experiments.task_shapes import task_shape
from abmll.tasks import load_suite
from abmll.tasks.definition import read_suite

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"


@pytest.mark.parametrize(("model", "family"), [(LLAMA, "llama"), ("Qwen/Qwen2-7B-Instruct", "qwen2")])
def test_the_model_is_small_random_and_of_the_same_architecture(tmp_path: Path, model: str, family: str) -> None:
    _, small = rehearse(tmp_path, "winogrande", SharedConfig(model=model))
    loaded = AutoModelForCausalLM.from_pretrained(small.model)
    assert loaded.config.model_type == family
    assert loaded.num_parameters() < 100_000
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    assert tokenizer.decode(tokenizer("naïve").input_ids) == "naïve"
    first = (Path(small.model) / "model.safetensors").read_bytes()
    rehearse(tmp_path, "winogrande", SharedConfig(model=model))
    assert (Path(small.model) / "model.safetensors").read_bytes() == first  # so that cells are those of before


def test_tasks_have_names_options_and_lengths_of_the_suite_s(tmp_path: Path) -> None:
    path, small = rehearse(tmp_path, "mcqa", SharedConfig(model=LLAMA))
    suite, real = load_suite(path, tmp_path / "tasks"), read_suite("mcqa")
    suite.refuse_leaks()
    assert suite.name == "mcqa-smoke"
    assert [task.name for task in suite.evaluation] == [real.evaluation[place] for place in (0, 6, 11)]
    for task in (*suite.train, *suite.evaluation):
        assert (len(task.train), len(task.test)) == (TRAIN, TEST)
        for example in task.examples:
            assert len(example.options) == task_shape(task.name).options
            assert task_shape(task.name).tokens < len(example.input) < task_shape(task.name).tokens + 60
    assert (small.max_steps, small.steps, small.max_length) == (2, 1, None)


def test_settings_that_make_cells_stay(tmp_path: Path) -> None:
    shared = SharedConfig(
        model=LLAMA, adapt_examples=(1, 20), num_samples=(0, 4), prune=(0.0, 0.5), recalibrate=("none", "meta"),
        limit_train=30, episodes=(50, 100),
    )  # fmt: skip
    _, small = rehearse(tmp_path, "winogrande", shared)
    for name in ("adapt_examples", "num_samples", "prune", "recalibrate"):
        assert len(getattr(small, name)) == 2
    assert (small.limit_train, small.episodes) == (TRAIN - 2, (1,))


def test_the_last_letter_decides() -> None:
    rows = rows_of("glue-mnli")
    assert json.dumps(rows) == json.dumps(rows_of("glue-mnli"))
    answers: dict[str, Counter[str]] = {}
    for row in rows:
        answers.setdefault(row["input"][-1], Counter())[row["answer"]] += 1
    assert all(len(counts) == 1 for counts in answers.values())
