"""OpenAI's completions against the model itself, by way of lm-evaluation-harness and of vLLM's client."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig
from abmll.language.adapter import Adapter
from abmll.language.base import load_base
from abmll.language.scorer import OptionScorer
from abmll.language.token_scores import TokenScores, Wanted, token_scores
from abmll.model import vllm_client
from abmll.serving import completions as module
from abmll.serving.completions import completions_router
from abmll.serving.limits import ServeConfig
from abmll.serving.problems import Problem, install

TEXT = "the sky is blue"


class OneModel:
    """The bare model, and a task that has an adapter."""

    def __init__(self, scorer: OptionScorer, adapter: Adapter) -> None:
        self.scorer = scorer
        self.adapters = {"base": None, "tickets/0": adapter}
        self.seconds = 0.0
        self.given_up = threading.Event()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.scorer.base.tokenizer

    async def model_names(self, tenant: str) -> list[str]:
        return list(self.adapters) if tenant == "anna" else ["base"]

    async def token_scores(
        self, tenant: str, model: str, texts: Sequence[Sequence[int]], wanted: Wanted
    ) -> list[TokenScores]:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        if model not in self.adapters:
            raise Problem(404, f"no model '{model}'")
        return token_scores(self.scorer, texts, self.adapters[model], wanted)


@pytest.fixture(scope="module")
def scored(tiny_llama: Path) -> OneModel:
    base = load_base(ModelConfig(str(tiny_llama), "fp32", "cpu"), announce=lambda line: None, quiet=True)
    scorer = OptionScorer(base, AdapterConfig(r=2, target_modules=("q_proj", "v_proj")), PromptConfig())
    adapter, generator = scorer.new_adapter(0), torch.Generator().manual_seed(0)
    for tensor in adapter.mean_tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return OneModel(scorer, adapter)


@pytest.fixture(scope="module")
def app(scored: OneModel) -> FastAPI:
    app = FastAPI()
    install(app)
    app.include_router(completions_router(scored, ServeConfig(max_texts=4)))

    @app.middleware("http")
    async def anna(request: Request, call_next: Any) -> Any:
        request.state.tenant = "anna"
        return await call_next(request)

    return app


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


@pytest.fixture(scope="module")
def url(app: FastAPI, listen: Callable[[Any], str]) -> str:
    return listen(app)


@torch.no_grad()
def logs_of(folder: Path, ids: list[int]) -> torch.Tensor:
    """log p(each token | those before) in every place, by transformers' own forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def test_echoed_prompts(client: TestClient, tiny_llama: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    asked = {"model": "base", "prompt": [TEXT, "no"], "max_tokens": 1, "logprobs": 2, "echo": True}
    response = client.post("/v1/completions", json=asked)
    assert response.status_code == 200
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("text_completion", "base")
    count = len(TEXT) + 2
    assert answer["usage"] == {"prompt_tokens": count, "completion_tokens": 2, "total_tokens": count + 2}
    for choice, text in zip(answer["choices"], (TEXT, "no"), strict=True):
        ids = tokenizer(text)["input_ids"]
        rows, found = logs_of(tiny_llama, ids), choice["logprobs"]
        greedy = int(rows[-1].argmax())
        assert choice["text"] == text + tokenizer.decode([greedy])
        assert found["tokens"] == [*text, tokenizer.decode([greedy])]
        assert found["text_offset"] == list(range(len(text) + 1))
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        expected = [float(row[token]) for row, token in zip(rows, [*ids[1:], greedy], strict=True)]
        assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-5)
        for row, top, own in zip(rows, found["top_logprobs"][1:], found["token_logprobs"][1:], strict=True):
            assert own in top.values()  # to the bit: harnesses compare them for equality
            assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-5)
            assert 1 <= len(top) <= 3


def test_all_forms_of_a_prompt_are_the_same(client: TestClient, tiny_llama: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    ids = tokenizer(TEXT)["input_ids"]
    answers = []
    for prompt in (TEXT, [TEXT], ids, [ids]):
        response = client.post("/v1/completions", json={"model": "base", "prompt": prompt, "logprobs": 0})
        answers.append(response.json()["choices"])
    assert answers[0] == answers[1] == answers[2] == answers[3]
    [choice] = answers[0]
    assert choice["logprobs"]["tokens"] == [choice["text"]]
    assert choice["logprobs"]["top_logprobs"] == [{choice["text"]: choice["logprobs"]["token_logprobs"][0]}]
    bare = client.post("/v1/completions", json={"model": "base", "prompt": TEXT, "max_tokens": 0, "echo": True}).json()
    assert (bare["choices"][0]["text"], bare["choices"][0]["logprobs"]) == (TEXT, None)
    found = client.post("/v1/completions", json={"model": "tickets/0", "prompt": TEXT, "logprobs": 0}).json()["choices"]
    assert found[0]["logprobs"]["token_logprobs"] != choice["logprobs"]["token_logprobs"]


def test_names(client: TestClient) -> None:
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [one["id"] for one in answer["data"]] == ["base", "tickets/0"]
    response = client.post("/v1/completions", json={"model": "other", "prompt": "a"})
    assert (response.status_code, response.json()["detail"]) == (404, "no model 'other'")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"prompt": []}, "prompt: should be a text, a list of token ids, or a list of either"),
        ({"prompt": ["a", [1]]}, "prompt: should be a text"),
        ({"prompt": [True]}, "prompt: should be a text"),
        ({"prompt": ""}, "prompt[0]: is empty"),
        ({"prompt": [[5], []]}, "prompt[1]: is empty"),
        ({"prompt": [5, 1000]}, "prompt[0]: the model's tokens are 0 to 258"),
        ({"logprobs": 1, "logprob_token_ids": [259]}, "logprob_token_ids: the model's tokens are 0 to 258"),
        ({"max_tokens": 2}, "max_tokens: should be less than or equal to 1"),
        ({"logprobs": 21}, "logprobs: should be less than or equal to 20"),
        ({"stream": True}, "stream: should be False"),
        ({"n": 2}, "n: should be 1"),
        ({"prompt": ["a", "\ud800"]}, "prompt: should have no half of a surrogate pair"),
        ({"model": "\ud800"}, "model: should have no half of a surrogate pair"),
        ({"model": 5}, "model: should be a valid string"),
    ],
)
def test_what_is_refused(client: TestClient, change: dict[str, Any], detail: str) -> None:
    asked = json.dumps({"model": "base", "prompt": "a", **change})
    response = client.post("/v1/completions", content=asked, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(detail)


def test_too_much_is_refused(client: TestClient, scored: OneModel, monkeypatch: pytest.MonkeyPatch) -> None:
    long = [5] * (scored.scorer.base.context + 1)
    response = client.post("/v1/completions", json={"model": "base", "prompt": long})
    assert "more than the model's" in response.json()["detail"]
    response = client.post("/v1/completions", json={"model": "base", "prompt": ["a"] * 5})
    assert (response.status_code, response.json()["detail"]) == (413, "5 prompts; ask for 4 at most at once")
    monkeypatch.setattr(module, "MAX_NUMBERS", 20)
    asked = {"model": "base", "prompt": ["abcd", "efgh"], "logprobs": 2}
    assert client.post("/v1/completions", json=asked).status_code == 200
    response = client.post("/v1/completions", json={**asked, "echo": True})
    assert (response.status_code, response.json()["detail"][:21]) == (413, "24 log-probabilities;")


def test_a_deadline(client: TestClient, scored: OneModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored, "seconds", 60.0)
    asked = {"model": "base", "prompt": "a"}
    response = client.post("/v1/completions", json=asked, headers={"Request-Timeout": "0.01"})
    assert (response.status_code, response.json()["type"]) == (504, "/problems/deadline")
    response = client.post("/v1/completions", json=asked, headers={"Request-Timeout": "-1"})
    assert (response.status_code, response.json()["detail"][:24]) == (400, "Request-Timeout: must be")


def test_what_a_client_that_goes_away_asked_is_given_up(
    url: str, scored: OneModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx = pytest.importorskip("httpx")
    monkeypatch.setattr(scored, "seconds", 60.0)
    scored.given_up.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json={"model": "base", "prompt": "a"}, timeout=0.3)
    assert scored.given_up.wait(15)  # and not only at the end of its time, of 30 seconds


def test_the_client_of_an_exported_ensemble(
    url: str, scored: OneModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, tokens = [40, 60, 33, 12], [70, 5, 258]
    found = vllm_client.log_probabilities(url, "tickets/0", ids, tokens, 60)
    with torch.no_grad():
        [scores] = token_scores(scored.scorer, [ids], scored.adapters["tickets/0"], Wanted(chosen=tuple(tokens)))
    assert found == pytest.approx(list(scores.following.others.values()), abs=1e-6)
    with pytest.raises(vllm_client.ClientError, match="no model 'other'"):
        vllm_client.log_probabilities(url, "other", ids, tokens, 60)
    about = {"labels": ["a", "b", "c"], "answer_tokens": tokens, "members": ["tickets/0"], "calibration": None}
    (tmp_path / "ensemble.json").write_text(json.dumps(about))
    monkeypatch.setattr(vllm_client, "HERE", tmp_path)
    probabilities = torch.tensor(list(vllm_client.probabilities(ids, url).values()))
    torch.testing.assert_close(probabilities, torch.tensor(found).softmax(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lm_evaluation_harness_asks_it(url: str, tiny_llama: Path, batch_size: int) -> None:
    for package in ("lm_eval", "tenacity", "aiohttp", "requests"):
        pytest.importorskip(package)
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    made: Any = LocalCompletionsAPI  # its decorators hide its parameters
    lm = made(
        base_url=f"{url}/v1/completions",
        tokenizer_backend="huggingface",
        model="base",
        tokenizer=str(tiny_llama),
        max_length=256,
        batch_size=batch_size,
    )
    pairs = [("what colour is the sky?", " blue"), ("the sky is", " green as grass"), ("two", "2"), ("one", " 1")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    for (context, continuation), (log, is_greedy) in zip(pairs, found, strict=True):
        ids, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
        rows = logs_of(tiny_llama, ids)[start - 1 : -1]
        assert log == pytest.approx(
            float(sum(row[token] for row, token in zip(rows, ids[start:], strict=True))), abs=1e-5
        )
        assert is_greedy is bool((rows.argmax(-1) == torch.tensor(ids[start:])).all())
