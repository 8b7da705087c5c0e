"""What a user can get wrong in tasks, suites and settings: one line that says where and what to do, nothing touched."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]

GOOD = '{"input": "first", "options": ["yes", "no"], "answer": "no"}\n'


def second_row(**values: Any) -> bytes:
    """A good first line, and a second one with other values (None: without the key)."""
    row = {key: value for key, value in {**json.loads(GOOD), **values}.items() if value is not None}
    return (GOOD + json.dumps(row) + "\n").encode()


# What is in the file, and what the error must say; "?" at the end of a name: refused as questions without answers too.
TASK_FILES: dict[str, tuple[bytes, str]] = {
    "empty?": (b"", "bad.jsonl: the file is empty; it needs at least one row"),
    "blank?": (b"\n \n", "bad.jsonl: the file is empty"),
    "malformed?": (GOOD.encode() * 2 + b'{"input": \n', "bad.jsonl:3: malformed JSON (Expecting value at column 10)"),
    "not an object?": (GOOD.encode() + b"[1, 2]\n", "bad.jsonl:2: expected an object such as"),
    "no input?": (second_row(input=None), "bad.jsonl:2: no key 'input'. Add it."),
    "another input?": (second_row(input=None, inputs="x"), "bad.jsonl:2: no key 'input'. Rename 'inputs' to 'input'."),
    "no options?": (second_row(options=None), "bad.jsonl:2: no key 'options'. Add it."),
    "no answer": (second_row(answer=None), "bad.jsonl:2: no key 'answer'. Add it."),
    "ood answer?": (second_row(answer="maybe"), "bad.jsonl:2: answer 'maybe' is not among the 2 options; give"),
    "answer out of range?": (
        second_row(answer=2),
        "bad.jsonl:2: answer 2 is out of range: 2 options count from 0 to 1",
    ),
    "one option?": (second_row(options=["no"]), "bad.jsonl:2: 1 option; a question needs at least 2"),
    "equal options?": (
        second_row(options=["no", "no "]),
        "bad.jsonl:2: options 0 and 1 are both 'no'; make them distinct",
    ),
    "201 options?": (
        second_row(options=["no", *map(str, range(200))]),
        "bad.jsonl:2: 201 options; at most 200 are possible",
    ),
    "mixed encodings?": (
        GOOD.encode() + 'é {"input"'.encode("latin-1"),
        "bad.jsonl:2: byte 1 of the line is not UTF-8",
    ),
    "UTF-16?": (GOOD.encode("utf-16"), "bad.jsonl:1: the file is UTF-16; save it as UTF-8"),
    "NaN as a number?": (
        GOOD.encode() + b'{"input": "x", "options": ["a", "b"], "answer": NaN}\n',
        "bad.jsonl:2: malformed JSON (NaN is no JSON number); correct or remove it",
    ),
    "number as an input?": (second_row(input=7), "bad.jsonl:2: 'input' is 7 (int); it must be a text"),
    "equal ids?": (
        b"".join(second_row(id="a").splitlines(keepends=True)[1:]) * 2,
        "bad.jsonl:2: id 'a' is that of bad.jsonl:1 too; make ids unique",
    ),
}
READERS = {
    "train": "{train} --tasks bad.jsonl --output-dir out",
    "adapt": "adapt bad.jsonl --theta run --output-dir out",
    "evaluate": "evaluate run --suite bad.yaml --output-dir out",
    "predict": "predict new --input bad.jsonl --output out.jsonl",
    "validate": "tasks validate bad.jsonl",
    "ls": "tasks ls bad.jsonl",
}


def reading(verb: str, train: str) -> str:
    """The command by which a verb reads bad.jsonl."""
    Path("bad.yaml").write_text("name: bad\ntrain: [toy0]\nevaluation: [bad]\n")
    return READERS[verb].format(train=train)


@pytest.mark.parametrize(
    ("kind", "verb"),
    [(kind, verb) for kind in TASK_FILES for verb in READERS if kind.endswith("?") or verb != "predict"],
)
def test_bad_task_files(kind: str, verb: str, work: Any, refused: Call) -> None:
    content, fragment = TASK_FILES[kind]
    Path("bad.jsonl").write_bytes(content)
    refused(reading(verb, work.train), fragment)


@pytest.fixture
def long_line(work: Any) -> None:
    """A file whose second line has 50 MB."""
    with Path("bad.jsonl").open("w") as file:
        file.write(GOOD + '{"input": "')
        for _ in range(50):
            file.write("x" * 10**6)
        file.write('", "options": ["yes", "no"], "answer": "no"}\n')


@pytest.mark.usefixtures("long_line")
@pytest.mark.parametrize("verb", ["train", "predict", "validate"])
def test_a_line_of_50_megabytes(verb: str, work: Any, abmll: Call) -> None:
    command = reading(verb, work.train)
    tracemalloc.start()
    try:
        code, out, err = abmll(command, "--quiet")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (code, out, err) == (2, "", "abmll: error: bad.jsonl:2: line longer than 10 MB; shorten or split it\n")
    assert peak < 30e6  # bytes: less than the line
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", ["train", "adapt", "evaluate", "predict", "validate"])
def test_a_byte_order_mark_is_no_error(verb: str, work: Any, abmll: Call) -> None:
    Path("bad.jsonl").write_bytes(b"\xef\xbb\xbf" + Path("toy3.jsonl").read_bytes())
    command = reading(verb, work.train) + (" --max-steps 1" if verb == "train" else "")
    assert abmll(command, "--quiet").code == 0


SUITE = "name: bad\ntrain: {train}\nevaluation: {evaluation}\n{more}"
SUITES: dict[str, tuple[dict[str, str], str]] = {
    "a task in both splits": ({"evaluation": "[toy3, toy1]"}, "task 'toy1' is a training and an evaluation task"),
    "an example in both splits": (
        {"evaluation": "[copy]"},
        "evaluation task 'copy' shares 2 examples (such as 'copy/0') with training task 'toy1'; leave it out of",
    ),
    "an unknown task": ({"evaluation": "[toi3]"}, "bad.yaml: no evaluation task 'toi3'. Did you mean 'toy3'?"),
    "an unknown key": ({"more": "prompts: {}\n"}, "bad.yaml: unknown key 'prompts'. Did you mean 'prompt'?"),
    "an unknown prompt key": (
        {"more": "prompt: {instructions: true}\n"},
        "bad.yaml: unknown key of 'prompt' 'instructions'. Did you mean 'instruction'?",
    ),
    "an unknown prompt": (
        {"more": "prompt: {answer: texts}\n"},
        "bad.yaml: prompt: answer is 'texts'; use 'letter' or 'text'",
    ),
    "no example to judge by": ({"more": "test_examples: 0\n"}, "bad.yaml: 'test_examples' is 0; it must be a whole"),
    "malformed": ({"more": "prompt: [\n"}, "bad.yaml:5: not valid YAML"),
    "no evaluation tasks": ({"evaluation": "[]"}, "bad.yaml: 'evaluation' is missing; add it"),
}


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("kind", SUITES)
def test_bad_suites(kind: str, verb: str, work: Any, refused: Call) -> None:
    rows = Path("tasks/toy1.jsonl").read_text().splitlines(keepends=True)
    Path("copy.jsonl").write_text("".join(rows[:2]) + Path("toy3.jsonl").read_text())
    values, fragment = SUITES[kind]
    Path("bad.yaml").write_text(SUITE.format(**{"train": "[toy0, toy1]", "evaluation": "[toy3]", "more": ""} | values))
    source = "--tasks" if verb == "train" else "--suite"
    refused(f"{work.train if verb == 'train' else 'evaluate run'} {source} bad.yaml --output-dir out", fragment)


# What is added to a good command, and what the error must say.
TRAIN_SETTINGS = {
    "--method abmmll": ("method: unknown 'abmmll'", "Did you mean 'abmll'?"),
    "--method pretrained": ("method: 'pretrained' is not trained; it is a baseline of 'abmll compare'",),
    "--preset paper-v2": ("preset: unknown 'paper-v2'", "Did you mean 'paper-v"),
    "--r -3": ("train: --r is '-3'; use a whole number of 1 or more",),
    "--r 0": ("train: --r is '0'; use",),
    "--r two": ("train: --r is 'two'; use a whole number of 1 or more",),
    "--sigma-rank -1": ("train: --sigma-rank is '-1'; use",),
    "--learning-rate nan": ("train: --learning-rate is 'nan'; use a finite number of 0 or more",),
    "--learning-rate -1e-3": ("train: --learning-rate is '-1e-3'; use a finite number of 0 or more",),
    "--space wieght": (
        "train: --space is 'wieght'; use 'weight', 'output', 'factor', 'factor-a' or 'dropout'.",
        "Did you mean 'weight'?",
    ),
    "--target-modules q_prj": ("target_modules: 'q_prj' matches no layer. Did you mean 'q_proj'?", "This model has"),
    "--target-modules attn,q_proj": ("target_modules: 'attn' matches no layer.",),
    "--layers-to-transform 2": ("layers_to_transform: '2': the model has decoder layers 0-1",),
    "--layers-to-transform last": ("layers_to_transform: 'last' is not '18-29', '0,5,7', 'top-12', 'top-third' or",),
    "--max-length 9999": ("max_length: 9999 is not within the model's context of 2048 tokens",),
    "--max-length 20": ("tasks/toy", "example 'toy", "leave no room for the input within 20 tokens; shorten the"),
    "--answer letter --no-list-options": ("answer 'letter' needs the options in the prompt; set list_options true or",),
    "--chat-template": ("chat_template: this model's tokenizer has none; set it to false",),
    "--max-stps 3": ("train: unknown flag '--max-stps'. Did you mean '--max-steps'?",),
    "--config absent.yaml": ("absent.yaml: cannot be read (No such file or directory).",),
    "--model ./nowhere": ("model: there is no folder ./nowhere; give a folder, a Hugging Face name or smollm2-135m",),
    "--model smollm2-135": ("Did you mean 'smollm2-135m'?",),
    "--model tasks": ("model: cannot load tasks:",),
    "--device cuda:99": ("device: 'cuda:99' is not available here; use",),
    "--tasks taskz": ("taskz: no such file, folder or suite. Did you mean 'tasks'?",),
    "--tasks bigbench-dmo": ("no such file, folder or suite. Did you mean 'bigbench-demo'?",),
    "--tasks suit.yaml": ("no suite 'suit.yaml': give a YAML file or one of", "Did you mean 'suite.yaml'?"),
    "--tasks bigbench": ("run 'abmll tasks fetch bigbench' first",),
    "--data-dir tasks": ("data_dir is tasks, but 'tasks' is no suite whose tasks are looked up; leave it out",),
    "--output-dir run": ("run: holds a run already; continue it with --resume or replace it with --overwrite",),
    # What needs no language model is refused before one is loaded.
    "--output-dir run --model ./nowhere": ("run: holds a run already",),
    "--output-dir new --resume --model ./nowhere": ("new: no checkpoint in it",),
    "--method abmmll --model ./nowhere": ("method: unknown 'abmmll'",),
    "--tasks taskz --model ./nowhere": ("taskz: no such file, folder or suite.",),
    "--output-dir new --resume": ("new: no checkpoint in it; is it a run's folder?",),
    "--output-dir run --resume --r 3": ("run: --resume with r = 3, but the run has r = 2; use the run's settings",),
    "--output-dir run --resume --seed 1": ("run: --resume with seed = 1, but the run has seed = 0",),
    "--output-dir run --resume --max-steps 1": ("max_steps is 1, but run/checkpoint-2 has done more; give 2 or more",),
    "--output-dir run --resume --tasks toy3.jsonl": ("the training tasks are not those the run began with",),
    "--output-dir .": (".: holds", "but no config.yaml of a run; choose another folder"),
}


@pytest.mark.parametrize("flags", TRAIN_SETTINGS)
def test_bad_training_settings(flags: str, work: Any, refused: Call) -> None:
    Path("metrics.jsonl").write_text("not of this program\n")
    refused(f"{work.train} --output-dir out --max-steps 3 {flags}", *TRAIN_SETTINGS[flags])
    assert not Path("out").exists()


CONFIG_FILES = {
    "max_stpes: 3": "run.yaml:1: unknown setting 'max_stpes'. Did you mean 'max_steps'?",
    "seed: 1\nr: two": "run.yaml:2: r is 'two'; use a whole number of 1 or more",
    "seed: 1\nseed: 2": "run.yaml:2: seed is set a second time; keep one",
    "adapter: {r: 3}": "run.yaml:1: adapter must be a value or a list of values; settings are not nested",
    "- r": "run.yaml:1: must be a mapping",
    "r: [": "run.yaml:1: not valid YAML",
    "r: -2": "run.yaml:1: r is '-2'; use a whole number of 1 or more",
}


@pytest.mark.parametrize("text", CONFIG_FILES)
def test_bad_configuration_files(text: str, work: Any, refused: Call) -> None:
    Path("run.yaml").write_text(text)
    refused(work.train.replace("--r 2", "--config run.yaml --output-dir out"), CONFIG_FILES[text])


# Whole commands, and what the error must say.
COMMANDS = {
    "adapt": ("adapt: missing TASK, --output-dir; see 'abmll adapt --help'",),
    "adapt toy3.jsonl --theta rnu --output-dir out": ("rnu: no such folder. Did you mean 'run'?", "'abmll train'"),
    "adapt toy3.jsonl --theta toy3.jsonl --output-dir out": ("toy3.jsonl: is a file, not a folder.",),
    "adapt toy3.jsonl --theta tasks --output-dir out": ("tasks: no checkpoint in it; is it a run's folder?",),
    "adapt toy3.jsonl --theta new --output-dir out": (
        "new: is what 'abmll adapt' wrote; give the folder of the training",
    ),
    "adapt toi3.jsonl --theta run --output-dir out": ("toi3.jsonl: no such file. Did you mean 'toy3.jsonl'?",),
    "adapt tasks --theta run --output-dir out": ("tasks: is a folder; give one file of it",),
    "adapt suite.yaml --theta run --output-dir out": ("suite.yaml: unknown kind of file; use one of .jsonl",),
    "adapt test.jsonl --theta run --output-dir out": (
        "test.jsonl: no training examples, every row has 'split': 'test'",
    ),
    "adapt toy3.jsonl --theta run --output-dir out --steps -1": (
        "adapt: --steps is '-1'; use a whole number of 0 or more",
    ),
    "adapt toy3.jsonl --theta run --output-dir out --batch-size 0": ("adapt: --batch-size is '0'; use",),
    "predict tasks --input toy3.jsonl --output out.jsonl": ("tasks: no checkpoint in it",),
    "predict none --input toy3.jsonl --output out.jsonl": ("none: no such folder.", "'abmll adapt'"),
    "predict new --input none.jsonl --output out.jsonl": ("none.jsonl: no such file.",),
    "predict new --input toy3.jsonl --output out.jsonl --num-samples -1": ("predict: --num-samples is '-1'; use",),
    "predict new --input toy3.jsonl --output a.json": ("a.json: answers are written as .jsonl, .csv, .tsv, .parquet",),
    "predict new --input toy3.jsonl --output tasks": ("tasks is a folder; name a file to write",),
    "predict new --input toy3.jsonl --output tasks --overwrite": ("tasks is a folder; name a file to write",),
    "predict new --input toy3.jsonl --output toy3.jsonl": ("toy3.jsonl exists already; choose another place or say",),
    "evaluate new --suite suite.yaml --output-dir out": ("new: is what 'abmll adapt' wrote",),
    "evaluate run --suite bigbench-demo --output-dir out": ("run: abmll tasks fetch bigbench",),
    "evaluate run --suite tasks --output-dir out": (
        "no suite 'tasks': give a YAML file or one of bigbench, bigbench-demo, ",
    ),
    "evaluate run --suite suite.yaml --data-dir taks --output-dir out": ("taks: no such folder",),
    "evaluate run --suite suite.yaml --output-dir tasks": ("tasks exists already; choose another place or say",),
    "evaluate run --suite learned.yaml --output-dir out": (
        "run: was trained on 'toy0', an evaluation task of 'learned'",
    ),
    "export new --format onnx --output-dir out": (
        "export: --format is 'onnx'; use 'peft', 'merged', 'lm-eval' or 'vllm-ensemble'",
    ),
    "export new --format peft --samples 3 --output-dir out": ("samples: only the format vllm-ensemble has any",),
    "export new --format vllm-ensemble --output-dir out": ("the label 'yes' is scored by", "--answer letter"),
    "export run --format vllm-ensemble --output-dir out": ("every question has its own options",),
    "export none --format peft --output-dir out": ("none: no such folder.",),
    "export new --format peft --output-dir run": ("run exists already; choose another place or say --overwrite",),
    "export new --format peft --output-dir run --overwrite": ("run holds other things than a peft export",),
    "export new --format merged --output-dir model --overwrite": ("model is the folder of the language model itself",),
    "adapt toy3.jsonl --theta run --output-dir tasks --overwrite": ("tasks holds other things than a posterior",),
    "report tasks": ("tasks: nothing to report", "give a folder that train, evaluate or compare has written"),
    "report none": ("none: nothing to report",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_commands(command: str, work: Any, refused: Call) -> None:
    Path("learned.yaml").write_text("name: learned\ntrain: [toy1]\nevaluation: [toy3, toy0]\n")
    Path("test.jsonl").write_text(GOOD.replace("{", '{"split": "test", ') * 2)
    Path("model").symlink_to(work.model)
    if " model " in command:
        command += " --model model"
    refused(command, *COMMANDS[command.removesuffix(" --model model")])


LONG = "x" * 3000  # tokens: one a letter; the model takes 2048


def test_a_prompt_longer_than_the_context_loses_its_middle(work: Any, abmll: Call) -> None:
    rows = [{"input": f"{n} {LONG if n == 3 else 'x'}", "options": ["yes", "no"], "answer": n % 2} for n in range(12)]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"adapt long.jsonl --theta run --output-dir long --steps 1 --model {work.model}"
    assert "truncated            1 of 12 inputs too long for the model, cut in the middle\n" in abmll(command).out
    command = "predict long --input long.jsonl --output a.jsonl --num-samples 0"
    assert "truncated           1 of 12 inputs too long for the model, cut in the middle\n" in abmll(command).out
    assert json.loads(abmll(command, "--overwrite --json").out)["truncated"] == 1
    Path("long.yaml").write_text("name: long\ntrain: [toy0]\nevaluation: [long]\n")
    code, _, err = abmll("evaluate run --suite long.yaml --output-dir ev --num-samples 0 --steps 1")
    assert code == 0
    assert err == "1 input too long for the model, cut in the middle\n"
    assert json.loads(Path("ev/metrics.json").read_text())["truncated_prompts"] == 1


@pytest.mark.parametrize("verb", ["train", "adapt", "predict", "evaluate"])
def test_options_longer_than_the_context_are_never_cut(verb: str, work: Any, refused: Call) -> None:
    rows = [{"input": f"{n}", "options": ["yes", LONG if n == 7 else "no"], "answer": n % 2} for n in range(12)]
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = "bad.jsonl: task 'bad', example 'bad/7'" if verb == "train" else "task 'bad', example 'bad/7'"
    command = reading(verb, work.train).replace("predict new", "predict run")
    more = " --max-steps 3" if verb == "train" else ""
    refused(command + more, where, "leave no room for the input within 2048 tokens; shorten the options")


@pytest.mark.parametrize(
    "command",
    ["adapt toy3.jsonl --output-dir out", "compare --suite suite.yaml", "tune --suite suite.yaml", "serve --store s"],
)
def test_several_processes_are_refused(
    command: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(command, f"WORLD_SIZE is 2, but '{command.split()[0]}' is for one process; start it by itself")


def test_a_process_that_nobody_started_with_others_is_refused(
    work: Any, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    refused(f"{work.train} --output-dir out", "WORLD_SIZE is 2, but RANK is not set; start the command with torchrun")
