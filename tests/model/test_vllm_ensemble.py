"""An ensemble behind vLLM: its adapters, and its client against a server that answers as vLLM does, by PEFT."""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from abmll import AbmllModel, Task, TaskPosterior
from abmll.cli.main import entry
from abmll.common.config import PromptConfig
from abmll.common.errors import AbmllError, ConfigError
from abmll.model.prequential import TaskCalibration
from abmll.model.vllm_ensemble import fitting_rank

# PEFT 0.21 asks transformers 5.23 for an attribute under its old name; any other warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "exports.md"
CALIBRATION = TaskCalibration(torch.tensor([[0.5, 1.0, -0.4], [1.1, 0.2, 0.0]], dtype=torch.float64), ("no", "yes"))
LETTERS = PromptConfig(answer="letter")
TEXTS = [" 7 abc", "12 hgfedcba"]
Learn = Callable[..., TaskPosterior]


@pytest.fixture(scope="session")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, surer of its answers, whose tokenizer has one token for a space and a letter, as real ones do."""
    folder = tmp_path_factory.mktemp("merging") / "model"
    shutil.copytree(tiny_llama, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for letter, unused in zip("AByn", sorted(vocabulary, key=vocabulary.__getitem__)[-4:], strict=True):
        vocabulary[f"\u0120{letter}"] = vocabulary.pop(unused)
        tokenizer["model"]["merges"].append(["\u0120", letter])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 20
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def learn(base: Path) -> Learn:
    """A task learned with letters, ``members`` adapters far from zero, and a calibration that matters."""

    def make(members: int = 1, space: str = "weight", prompt: PromptConfig = LETTERS, **settings: Any) -> TaskPosterior:
        modules = ("q_proj", "v_proj")
        model = AbmllModel.from_base(
            str(base), prompt=prompt, r=2, target_modules=modules, dtype="fp32", space=space, **settings
        )
        generator = torch.Generator().manual_seed(4)
        adapters = [model.scorer.new_adapter(0) for _ in range(members)]
        for phi in adapters:
            for tensor in phi.mean_tensors():
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
            for tensor in phi.scale_tensors():
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) - 0.4)
        known: dict[str, Any] = {"calibration": CALIBRATION, "labels": ("yes", "no")}
        return TaskPosterior(model.scorer, tuple(adapters), "toy", True, {}, **known)

    return make


class Served:
    """The tiny model with every adapter of an export, and what it was asked."""

    def __init__(self, base: Path, folder: Path) -> None:
        command = re.search(r"vllm serve .*", (folder / "README.md").read_text(encoding="utf-8"))
        assert command is not None
        words = shlex.split(command[0])
        modules = dict(word.split("=") for word in words[words.index("--lora-modules") + 1 :])
        bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        first, *others = modules
        self.model: Any = PeftModel.from_pretrained(bare, str(folder / modules[first]), adapter_name=first)
        for name in others:
            self.model.load_adapter(str(folder / modules[name]), adapter_name=name)
        self.names, self.asked = list(modules), []

    @torch.no_grad()
    def answer(self, question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """vLLM's answer: the sampled token and those that were asked for, by their ids."""
        self.asked.append(question)
        if question["model"] not in self.names:
            message = f"The model `{question['model']}` does not exist."
            return 404, {"error": {"message": message, "type": "NotFoundError", "code": 404}}
        assert question["return_tokens_as_token_ids"]
        self.model.set_adapter(question["model"])
        logs = self.model(input_ids=torch.tensor([question["prompt"]])).logits[0, -1].log_softmax(-1).tolist()
        top = max(range(len(logs)), key=logs.__getitem__)
        found = {f"token_id:{token}": max(logs[token], -9999.0) for token in [top, *question["logprob_token_ids"]]}
        sampled = f"token_id:{top}"
        logprobs = {"tokens": [sampled], "token_logprobs": [found[sampled]], "top_logprobs": [found]}
        return 200, {"object": "text_completion", "choices": [{"index": 0, "text": "", "logprobs": logprobs}]}


@contextmanager
def serving(answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """The address of a server on this machine that answers completions in this way."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            code, document = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(folder: Path) -> Any:
    """The module ``client.py`` of an export."""
    spec = importlib.util.spec_from_file_location("client", folder / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(posterior: TaskPosterior, folder: Path, base: Path) -> list[list[float]]:
    """The client's probabilities of the texts, in the order of the labels."""
    client = client_of(folder)
    with serving(Served(base, folder).answer) as url:
        found = [client.probabilities(text, url + "/") for text in TEXTS]
    assert all(tuple(one) == posterior.labels for one in found)
    return [list(one.values()) for one in found]


def as_adapters(posterior: TaskPosterior, folder: Path) -> TaskPosterior:
    """A posterior whose members are the exported adapters, read from their files and cut to any rank."""
    members = []
    for path in sorted(folder.glob("member-*")):
        tensors, phi = load_file(path / "adapter_model.safetensors"), posterior.member(0).clone()
        for shape, own in phi.stacks.items():
            names = [f"base_model.model.{name}.lora_{{}}.weight" for name in phi.layers[shape]]
            right = torch.stack([tensors[name.format("A")] for name in names])
            left = torch.stack([tensors[name.format("B")] for name in names]) / posterior.scorer.space.scaling
            phi.stacks[shape] = own._replace(mean_A=right, mean_B=left)
        members.append(phi)
    return replace(posterior, members=tuple(members))


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
@pytest.mark.parametrize("members", [1, 3])
def test_the_client_gives_the_probabilities_at_the_means(
    calibration: TaskCalibration | None, members: int, learn: Learn, base: Path, tmp_path: Path
) -> None:
    posterior = replace(learn(members), calibration=calibration)
    ensemble = posterior.export_vllm_ensemble(tmp_path / "out", samples=0 if members == 1 else None)
    assert len(ensemble.adapters) == members
    ours = posterior.predict(TEXTS, samples=0)
    for got, expected in zip(asked(posterior, tmp_path / "out", base), ours.lists(), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)
    if members == 3 and calibration is not None:
        # Calibrating the average is something else, and so is the average without any.
        raw = replace(posterior, calibration=None).predict(TEXTS, samples=0).probs
        after = calibration.calibrate(posterior._examples(TEXTS, None, None), True, raw[None], torch.arange(2))[0]
        assert min(float((ours.probs - other).abs().max()) for other in (raw, after)) > 1e-3


@pytest.mark.parametrize("space", ["weight", "factor", "factor-a", "dropout"])
def test_the_client_gives_the_average_over_the_samples(space: str, learn: Learn, base: Path, tmp_path: Path) -> None:
    posterior = learn(space=space)
    ensemble = posterior.export_vllm_ensemble(tmp_path / "out", samples=3, seed=5)
    assert (len(ensemble.adapters), ensemble.rank, ensemble.what) == (3, 8, "3 samples of the weights")
    exported = as_adapters(posterior, tmp_path / "out")
    singles = [replace(exported, members=(phi,)).predict(TEXTS, samples=0).probs for phi in exported.members]
    expected = torch.stack(singles).mean(0)
    for got, row in zip(asked(posterior, tmp_path / "out", base), expected.tolist(), strict=True):
        assert got == pytest.approx(row, abs=1e-5)
    assert float((singles[0] - singles[1]).abs().max()) > 1e-3
    assert float((expected - posterior.predict(TEXTS, samples=0).probs).abs().max()) > 1e-3


def test_one_member_of_several_is_sampled(learn: Learn, tmp_path: Path) -> None:
    posterior = learn(3)
    alone = replace(posterior, members=(posterior.member(1),))
    posterior.export_vllm_ensemble(tmp_path / "one", member=1, samples=2)
    alone.export_vllm_ensemble(tmp_path / "other", samples=2)
    for number in range(2):
        name = f"member-{number}/adapter_model.safetensors"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_same_seed_writes_the_same_bytes(learn: Learn, tmp_path: Path) -> None:
    posterior = learn()
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        posterior.export_vllm_ensemble(tmp_path / name, seed=seed)
    one, again, other = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "again", tmp_path / "other")
    )
    assert one == again
    assert len([name for name in one if name.endswith(".safetensors")]) == 4
    differing = {name for name in one if one[name] != other[name]}
    assert differing == {f"member-{number}/adapter_model.safetensors" for number in range(4)} | {"ensemble.json"}


def test_what_lies_in_the_folder(learn: Learn, base: Path, tmp_path: Path) -> None:
    learn().export_vllm_ensemble(tmp_path / "out", samples=2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("member-0", "member-1", "ensemble.json", "README.md", "client.py", "tokenizer.json")
    }
    settings = json.loads((tmp_path / "out/member-1/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (8, 8.0, "LORA")
    about = json.loads((tmp_path / "out/ensemble.json").read_text())
    assert about["format"] == "abmll-vllm-ensemble-1"
    assert (about["members"], about["max_lora_rank"], about["seed"]) == (["member-0", "member-1"], 8, 0)
    assert about["labels"] == ["yes", "no"]
    assert len(set(about["answer_tokens"])) == 2
    assert about["calibration"]["biases"] == pytest.approx([-0.2, 0.6])
    assert about["base"]["name"] == base.name
    card = (tmp_path / "out/README.md").read_text()
    command = f"vllm serve {base.name} --enable-lora --max-loras 2 --max-lora-rank 8 --lora-modules"
    assert f"{command} member-0=member-0 member-1=member-1\n" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "peft"
    assert str(base.parent) not in card + json.dumps(about)


def test_padding_adds_zeros_alone(learn: Learn, tmp_path: Path) -> None:
    posterior = learn()
    posterior.export_vllm_ensemble(tmp_path / "out", samples=0)
    tensors = load_file(tmp_path / "out/member-0/adapter_model.safetensors")
    layer = posterior.phi.by_layer()["model.layers.1.self_attn.q_proj"]
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    right, left = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
    assert (right.shape[0], left.shape[1]) == (8, 8)
    assert torch.equal(right[:2], layer.mean_A)
    assert torch.equal(left[:, :2], posterior.scorer.space.scaling * layer.mean_B)
    assert not right[2:].any()
    assert not left[:, 2:].any()


@pytest.mark.parametrize(
    ("r", "components", "expected"),
    [
        (1, 0, (1, 0)),
        (2, 0, (8, 0)),
        (8, 1, (16, 8)),
        (3, 1, (8, 5)),
        (8, 2, (32, 12)),
        (320, 1, (512, 192)),
        (512, 0, (512, 0)),
    ],
)
def test_as_many_directions_as_fit(r: int, components: int, expected: tuple[int, int]) -> None:
    assert fitting_rank(r, components) == expected


def test_a_rank_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="the adapter's rank is 513, and vLLM takes 512 at most"):
        fitting_rank(513, 0)
    with pytest.raises(ConfigError, match=r"rank 512 leaves no room for noise; export its mean with --samples 0"):
        fitting_rank(512, 1)


def test_without_samples_of_the_weights_the_mean_is_exported_and_said_so(learn: Learn, tmp_path: Path) -> None:
    ensemble = learn(space="output").export_vllm_ensemble(tmp_path / "output", samples=4)
    assert (len(ensemble.adapters), ensemble.seed) == (1, None)
    assert "the space 'output' has its noise on outputs" in ensemble.what
    ensemble = replace(learn(), is_posterior=False).export_vllm_ensemble(tmp_path / "plain")
    assert ensemble.what == "the mean alone, as no standard deviations were learned"


def test_what_cannot_be_exported(learn: Learn, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the label 'yes' is scored by \d tokens, .* train with --answer letter"):
        learn(prompt=PromptConfig(answer="text")).export_vllm_ensemble(tmp_path / "out")
    with pytest.raises(ConfigError, match="every question has its own options"):
        replace(learn(), labels=()).export_vllm_ensemble(tmp_path / "out")
    with pytest.raises(ConfigError, match="has 3 members, which are exported as they are"):
        learn(3).export_vllm_ensemble(tmp_path / "out", samples=2)
    with pytest.raises(ConfigError, match="samples: is -1; give 0 or more"):
        learn().export_vllm_ensemble(tmp_path / "out", samples=-1)
    head = AbmllModel.from_base(str(tiny_llama), dtype="fp32").adapt(toy_tasks[0].train[:6], task_name="toy")
    with pytest.raises(ConfigError, match=r"learned by a head, whose answers are not in an adapter; answer with"):
        head.export_vllm_ensemble(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    with pytest.raises(AbmllError, match="exists already"):
        learn().export_vllm_ensemble(tmp_path / "out")


def test_texts_of_one_token_each_are_exported(learn: Learn, base: Path, toy_tasks: list[Task], tmp_path: Path) -> None:
    posterior = learn(2, prompt=PromptConfig(answer="text", list_options=False))
    posterior = replace(posterior, labels=("y", "n"), calibration=TaskCalibration(CALIBRATION.points, ("n", "y")))
    posterior.export_vllm_ensemble(tmp_path / "out")
    ours = posterior.predict(TEXTS, samples=0)
    for got, expected in zip(asked(posterior, tmp_path / "out", base), ours.lists(), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)


def run_client(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``client.py`` as a program of its own, which finds no ABMLL."""
    code = f"import sys, runpy; sys.modules['abmll'] = None; sys.argv = {['client.py', *arguments]!r}; "
    code += f"runpy.run_path({str(folder / 'client.py')!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_client_as_a_program(learn: Learn, base: Path, tmp_path: Path) -> None:
    posterior, folder = learn(2), tmp_path / "out"
    posterior.export_vllm_ensemble(folder)
    served = Served(base, folder)
    with serving(served.answer) as url:
        done = run_client(folder, "--url", url, TEXTS[0])
        assert (done.returncode, done.stderr) == (0, "")
        expected = dict(zip(posterior.labels, posterior.predict(TEXTS[:1], samples=0).lists()[0], strict=True))
        assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)
        assert {one["model"] for one in served.asked} == {"member-0", "member-1"}
        # Ids in place of a text.
        again = client_of(folder).probabilities(served.asked[0]["prompt"], url)
        assert again == pytest.approx(expected, abs=1e-5)
        served.names.remove("member-1")
        done = run_client(folder, "--url", url, TEXTS[0])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "refuses to ask 'member-1' (404)" in done.stderr
    assert "The model `member-1` does not exist." in done.stderr
    done = run_client(folder, "--url", url, TEXTS[0])  # the server is gone
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{url} does not answer" in done.stderr


def test_the_clients_other_errors(learn: Learn, tmp_path: Path) -> None:
    learn().export_vllm_ensemble(tmp_path / "out", samples=0)
    client = client_of(tmp_path / "out")
    with pytest.raises(client.ClientError, match="'localhost:8000' is no address of a server"):
        client.probabilities("a", "localhost:8000")
    with pytest.raises(client.ClientError, match=r"the prompt has \d+ tokens, more than \d+; shorten the text"):
        client.probabilities("a" * 5000, "http://127.0.0.1:1")
    documents: list[dict[str, Any]] = [{}, {"choices": []}]
    documents.append({"choices": [{"logprobs": {"top_logprobs": [{"token_id:7": -1.0}]}}]})
    for document in documents:
        with (
            serving(lambda _, document=document: (200, document)) as url,
            pytest.raises(client.ClientError, match=r"gives no log-probabilities of chosen tokens .* a newer vLLM"),
        ):
            client.probabilities("a", url)
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(client.ClientError, match=r"a text needs tokenizer.json beside client.py"):
        client.probabilities("a", "http://127.0.0.1:1")


def test_the_pages_code(learn: Learn, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, folder = learn(2), tmp_path / "adapters" / "ensemble"
    posterior.export_vllm_ensemble(folder)
    section = PAGE.read_text(encoding="utf-8").split("## An ensemble behind vLLM\n")[1].split("\n## ")[0]
    [block] = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "client", raising=False)
    with serving(Served(base, folder).answer) as url:
        Path("page.py").write_text(block.replace("http://127.0.0.1:8000", url), encoding="utf-8")
        names = runpy.run_path("page.py")
    monkeypatch.delitem(sys.modules, "client")
    [expected] = posterior.predict(["a text"], samples=0).lists()
    assert list(names["answer"].values()) == pytest.approx(expected, abs=1e-5)


def test_from_the_command_line(
    learn: Learn, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn().save_pretrained(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    command = ["export", "new", "--format", "vllm-ensemble", "--output-dir", "out"]
    assert entry([*command, "--samples", "2", "--seed", "7"]) == 0
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["what"] == "2 LoRA adapters of rank 8: 2 samples of the weights"
    assert facts["serve"] == (
        f"vllm serve {base} --enable-lora --max-loras 2 --max-lora-rank 8 "
        f"--lora-modules member-0={Path('out/member-0')} member-1={Path('out/member-1')}"
    )
    assert entry(command) == 2
    assert "out exists already" in capsys.readouterr().err
    assert entry([*command, "--overwrite", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["adapters"], result["rank"], result["seed"], result["members"]) == (4, 8, 0, 1)
    assert len(list((tmp_path / "out").glob("member-*"))) == 4
    assert entry([*command, "--overwrite", "--samples", "0"]) == 0
    assert "1 LoRA adapter of rank 8: the mean alone\n" in capsys.readouterr().out
