"""Texts that the frozen model writes behind prompts, with whatever adapter is bound to its layers."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from abmll.common.config import WriteConfig
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer


def written(scorer: OptionScorer, prompts: Sequence[Encoded], how: WriteConfig, seed: int) -> list[str]:
    """The text that follows each prompt, without the space around it; see ``written_tokens``."""
    texts = []
    for tokens in written_tokens(scorer, prompts, how, seed):
        text = scorer.base.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        texts.append(text.strip())
    return texts


@torch.no_grad()
def written_tokens(scorer: OptionScorer, prompts: Sequence[Encoded], how: WriteConfig, seed: int) -> list[list[int]]:
    """The tokens that follow each prompt, before the one that ends texts, ``max_new_tokens`` of them at most.

    The prompts are padded on the left to one batch. Sampling is of all tokens, at ``temperature``, and ``seed`` alone
    determines it.
    """
    model: Any = scorer.base.model
    device, end = scorer.device, scorer.encoder.end
    pad, longest = model.config.get_text_config().pad_token_id or 0, max(len(one.prompt) for one in prompts)
    ids = torch.tensor([[pad] * (longest - len(one.prompt)) + list(one.prompt) for one in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in prompts], device=device)
    # All that a model's own generation settings could change is said here: it writes what it holds for likely.
    sampling = {"temperature": how.temperature, "top_k": 0} if how.do_sample else {"temperature": 1.0, "top_k": 50}
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        do_sample=how.do_sample,
        num_beams=1,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=end,
        pad_token_id=pad,
        **sampling,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        tokens = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    rows = [row[longest:] for row in tokens.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]
