"""The client, and lm-evaluation-harness, against the server itself over a tiny model."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll import AbmllModel, Client, TaskPosterior
from abmll.serving.access import read_tokens
from abmll.serving.app import make_app
from abmll.serving.connection import Refused
from abmll.serving.limits import ServeConfig
from abmll.serving.replies import Job
from abmll.serving.service import Service
from tests.serving.live_server import running
from tests.serving.served import ASKED, PAIRS

ANNA, BEN = "a" * 32, "b" * 32


@pytest.fixture
def url(tiny_llama: Path, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "tokens"
    path.write_text(f"anna {ANNA}\nben {BEN}\n")
    path.chmod(0o600)
    model = AbmllModel.from_base(str(tiny_llama), dtype="fp32", device="cpu")
    service = Service(model, f"sqlite:///{tmp_path / 'store.sqlite'}", str(tmp_path / "files"), ServeConfig())
    with running(make_app(service, tokens=read_tokens(path))) as url:
        yield url


def test_what_a_client_can_do(url: str, tmp_path: Path) -> None:
    seen: list[Job] = []
    with Client(url, ANNA) as client, Client(url, BEN) as other:
        task = client.learn("tickets", PAIRS[:4])
        assert (task.state, task.version, task.how, task.labels) == ("ready", 1, "head", ["x", "y"])
        answers = client.predict("tickets", ASKED)
        assert answers == client.predict("tickets", ASKED)
        assert all(sum(one.probabilities.values()) == pytest.approx(1, abs=1e-9) for one in answers)
        assert all(one.label == max(one.probabilities, key=one.probabilities.__getitem__) for one in answers)
        assert client.add("tickets", PAIRS, on_progress=seen.append).version == 2
        assert seen[-1].state == "done"
        assert client.predict("tickets", ASKED, version=1) == answers != client.predict("tickets", ASKED)
        assert sorted(one.version for one in client.versions("tickets")) == [1, 2]
        assert {(one.text, one.label) for one in client.examples("tickets")} == set(PAIRS)
        assert sorted(client.suggest("tickets", ASKED).order) == [0, 1, 2]
        assert client.remove("tickets", [PAIRS[7][0]]).num_examples == 7
        assert client.relearn("tickets").state == "ready"
        path = client.export("tickets", tmp_path / "tickets.zip")
        zipfile.ZipFile(path).extractall(tmp_path / "posterior")
        posterior = TaskPosterior.from_pretrained(tmp_path / "posterior" / "tickets")
        own = [one.probabilities["y"] for one in client.predict("tickets", ASKED)]
        assert posterior.predict(ASKED).probs[:, 1].tolist() == pytest.approx(own, abs=1e-5)
        assert other.tasks() == []
        for refused in (lambda: other.task("tickets"), lambda: client.job("none"), lambda: client.task("none")):
            with pytest.raises(Refused) as error:
                refused()
            assert error.value.status == 404
        with pytest.raises(Refused, match="tickets") as error:
            client.learn("tickets", PAIRS)
        assert error.value.status == 409
        client.delete("tickets")
        assert client.tasks() == []


def test_the_harness_asks_the_server(url: str, tiny_llama: Path) -> None:
    for package in ("lm_eval", "tenacity", "aiohttp", "requests"):
        pytest.importorskip(package)
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    made: Any = LocalCompletionsAPI  # its decorators hide its parameters
    lm = made(
        base_url=f"{url}/v1/completions",
        model="base",
        tokenizer=str(tiny_llama),
        tokenizer_backend="huggingface",
        header={"Authorization": f"Bearer {ANNA}"},
        max_length=256,
        batch_size=2,
    )
    pairs = [("the sky is", " blue"), ("the sky is", " green"), ("one", " 1")]
    found = lm.loglikelihood(
        [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)], disable_tqdm=True
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    for (context, continuation), (log, _) in zip(pairs, found, strict=True):
        ids, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
        with torch.no_grad():
            rows = torch.log_softmax(plain(torch.tensor([ids])).logits[0].double(), -1)
        expected = sum(float(rows[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert log == pytest.approx(expected, abs=1e-5)
