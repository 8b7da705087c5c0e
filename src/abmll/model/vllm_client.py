"""Asks every member of this folder's ensemble behind a vLLM server, and averages their calibrated answers.

    python client.py --url http://127.0.0.1:8000 "a text"

``abmll export --format vllm-ensemble`` copies this file: it needs Python's standard library, ``ensemble.json`` beside
it, and for texts ``tokenizers`` with ``tokenizer.json``.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

HERE = Path(__file__).parent


class ClientError(Exception):
    """What is wrong and what to do, in one line."""


def probabilities(text: str | Sequence[int], url: str, timeout: float = 60.0) -> dict[str, float]:
    """The probability of each label, for a text or the token ids of a whole prompt."""
    about = json.loads((HERE / "ensemble.json").read_text(encoding="utf-8"))
    ids = prompt_ids(text, about) if isinstance(text, str) else list(text)
    members = about["members"]
    with ThreadPoolExecutor(len(members)) as pool:  # the server reads them in one batch
        asked = [pool.submit(log_probabilities, url, name, ids, about["answer_tokens"], timeout) for name in members]
    answers = [calibrated(one.result(), about["calibration"]) for one in asked]
    means = [sum(each) / len(members) for each in zip(*answers, strict=True)]
    return dict(zip(about["labels"], means, strict=True))


def prompt_ids(text: str, about: dict[str, Any]) -> list[int]:
    """The token ids of the prompt with this text in it."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ClientError("a text needs the package tokenizers: pip install tokenizers; or give token ids") from None
    how = about["prompt"]
    prompt = how["template"].replace("{input}", text.strip())
    if not (HERE / "tokenizer.json").is_file():
        raise ClientError("a text needs tokenizer.json beside client.py; give token ids")
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    ids = how["opening_tokens"] + tokenizer.encode(prompt, add_special_tokens=False).ids
    if len(ids) > how["max_tokens"]:
        raise ClientError(f"the prompt has {len(ids)} tokens, more than {how['max_tokens']}; shorten the text")
    return ids


def log_probabilities(url: str, member: str, ids: list[int], tokens: list[int], timeout: float) -> list[float]:
    """What one member gives each of these tokens behind the prompt."""
    question = {"model": member, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": len(tokens)}
    question |= {"logprob_token_ids": tokens, "return_tokens_as_token_ids": True}
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"'{url}' is no address of a server; give one such as http://127.0.0.1:8000")
    try:
        address = url.rstrip("/") + "/v1/completions"
        request = Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=timeout) as reply:
            found = json.load(reply)["choices"][0]["logprobs"]["top_logprobs"][0]
        return [found[f"token_id:{token}"] for token in tokens]
    except HTTPError as error:
        said = " ".join(error.read().decode(errors="replace").split())[:300]
        raise ClientError(
            f"{url} refuses to ask '{member}' ({error.code}): {said}; start vLLM as README.md says"
        ) from None
    except (OSError, HTTPException) as error:
        raise ClientError(f"{url} does not answer ({error}); start vLLM as README.md says") from None
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ClientError(f"{url} gives no log-probabilities of chosen tokens ({error}); take a newer vLLM") from None


def calibrated(logs: list[float], calibration: dict[str, Any] | None) -> list[float]:
    """softmax(inverse_temperature log p + biases), p = softmax(logs)."""
    probs = softmax(logs)
    if calibration is None:
        return probs
    slope, biases = calibration["inverse_temperature"], calibration["biases"]
    logs = [math.log(max(prob, sys.float_info.min)) for prob in probs]
    return softmax([slope * log + bias for log, bias in zip(logs, biases, strict=True)])


def softmax(logs: list[float]) -> list[float]:
    top = max(logs)
    powers = [math.exp(log - top) for log in logs]
    total = sum(powers)
    return [power / total for power in powers]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask the ensemble; prints the probability of each label as JSON.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where vLLM listens")
    parser.add_argument("text")
    given = parser.parse_args()
    try:
        print(json.dumps(probabilities(given.text, given.url), ensure_ascii=False, indent=2))
    except ClientError as problem:
        sys.exit(f"client.py: {problem}")
