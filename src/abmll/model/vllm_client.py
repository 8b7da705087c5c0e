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
    ids = prompt_ids(text, about["prompt"]) if isinstance(text, str) else list(text)
    members, tokens = about["members"], about["answer_tokens"]
    with ThreadPoolExecutor(len(members)) as pool:  # the server reads them in one batch
        found = pool.map(lambda member: log_probabilities(url, member, ids, tokens, timeout), members)
        answers = [calibrated(logs, about["calibration"]) for logs in found]
    means = [sum(each) / len(answers) for each in zip(*answers, strict=True)]
    return dict(zip(about["labels"], means, strict=True))


def prompt_ids(text: str, how: dict[str, Any]) -> list[int]:
    """The token ids of the prompt with this text in it."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ClientError("a text needs the package tokenizers: pip install tokenizers; or give token ids") from None
    if not (HERE / "tokenizer.json").is_file():
        raise ClientError("a text needs tokenizer.json beside client.py; give token ids")
    prompt, tokenizer = how["template"].replace("{input}", text.strip()), Tokenizer.from_file(f"{HERE}/tokenizer.json")
    ids = how["opening_tokens"] + tokenizer.encode(prompt, add_special_tokens=False).ids
    if len(ids) > how["max_tokens"]:
        raise ClientError(f"the prompt has {len(ids)} tokens, more than {how['max_tokens']}; shorten the text")
    return ids


def log_probabilities(url: str, member: str, ids: list[int], tokens: list[int], timeout: float) -> list[float]:
    """What one member gives each of these tokens behind the prompt."""
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"'{url}' is no address of a server; give one such as http://127.0.0.1:8000")
    question = {"model": member, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": len(tokens)}
    question |= {"logprob_token_ids": tokens, "return_tokens_as_token_ids": True}
    request = Request(f"{url.rstrip('/')}/v1/completions", json.dumps(question).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urlopen(request, timeout=timeout) as reply:
            found = json.load(reply)["choices"][0]["logprobs"]["top_logprobs"][0]
        return [found[f"token_id:{token}"] for token in tokens]
    except HTTPError as error:
        said = " ".join(error.read().decode(errors="replace").split())[:300]
        why = f"refuses to ask '{member}' ({error.code}): {said}"
    except (OSError, HTTPException) as error:
        why = f"does not answer ({error})"
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ClientError(f"{url} gives no log-probabilities of chosen tokens ({error}); take a newer vLLM") from None
    raise ClientError(f"{url} {why}; start vLLM as README.md says")


def calibrated(logs: list[float], calibration: dict[str, Any] | None) -> list[float]:
    """softmax(inverse_temperature log p + biases), p = softmax(logs), whose divisor cancels."""
    how = calibration or {"inverse_temperature": 1.0, "biases": [0.0] * len(logs)}
    logs = [how["inverse_temperature"] * log + bias for log, bias in zip(logs, how["biases"], strict=True)]
    powers = [math.exp(log - max(logs)) for log in logs]
    return [power / sum(powers) for power in powers]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask the ensemble; prints the probability of each label as JSON.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where vLLM listens")
    parser.add_argument("text")
    given = parser.parse_args()
    try:
        print(json.dumps(probabilities(given.text, given.url), ensure_ascii=False, indent=2))
    except ClientError as problem:
        sys.exit(f"client.py: {problem}")
