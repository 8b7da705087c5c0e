"""A posterior as an ensemble of plain adapters behind vLLM: its members, or samples of its weights, and a client."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerFast

from abmll.common.documents import FORMATS, Document
from abmll.common.errors import ConfigError
from abmll.common.files import atomic_folder, json_text
from abmll.common.markdown_text import as_text, block
from abmll.language.adapter import Adapter
from abmll.model.card import front_matter
from abmll.model.export_notes import CARD, export_notes
from abmll.model.interchange import write_adapter
from abmll.posterior import Factors
from abmll.tasks.order import sample_seed

if TYPE_CHECKING:
    from abmll.model.learned_task import TaskPosterior

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as --max-lora-rank
SAMPLES = 4
CLIENT = "vllm_client.py"  # of this package
PARTS = ("task_name", "labels", "prompt", "answer_texts", "calibration", "base")  # of ``export_notes``


@dataclass(frozen=True)
class Ensemble:
    """What is exported: adapters of one rank whose product is the update, and in words what they are."""

    adapters: tuple[Adapter, ...]
    rank: int
    what: str
    seed: int | None = None  # of the samples; None: there are none

    @property
    def names(self) -> list[str]:
        """Their folders, which are their names for the server."""
        return [f"member-{number}" for number in range(len(self.adapters))]


def export_ensemble(
    posterior: "TaskPosterior", folder: Path, overwrite: bool, member: int | None, samples: int | None, seed: int
) -> Ensemble:
    """``TaskPosterior.export_vllm_ensemble``: adapters, ``ensemble.json``, a card, the client and its tokenizer."""
    if posterior.head is not None:
        raise ConfigError(
            "vllm-ensemble: this task is learned by a head, whose answers are not in an adapter; answer with "
            "'abmll predict', or learn the task with --theta RUN --adapt full"
        )
    notes = export_notes(posterior, member)
    tokens = _answer_tokens(notes)
    ensemble = make_ensemble(posterior, member, samples, seed)
    document: Document = {
        "format": FORMATS["vllm-ensemble"],
        **{part: notes[part] for part in PARTS},
        "answer_tokens": tokens,
        "members": ensemble.names,
        "max_lora_rank": ensemble.rank,
        "what": ensemble.what,
        "seed": ensemble.seed,
    }
    texts = {"ensemble.json": json_text(document), CARD: _card(document, ensemble)}
    texts["client.py"] = (files(__package__ or "abmll.model") / CLIENT).read_text(encoding="utf-8")
    tokenizer = posterior.scorer.base.tokenizer
    if isinstance(tokenizer, PreTrainedTokenizerFast):  # of another one the client needs token ids
        texts["tokenizer.json"] = tokenizer.backend_tokenizer.to_str(pretty=True)
    with atomic_folder(folder, overwrite=overwrite) as target:
        for name, phi in zip(ensemble.names, ensemble.adapters, strict=True):
            (target / name).mkdir()
            write_adapter(target / name, posterior.scorer, phi, float(ensemble.rank))
        for name, text in texts.items():
            (target / name).write_text(text, encoding="utf-8")
    return ensemble


@torch.no_grad()
def make_ensemble(posterior: "TaskPosterior", member: int | None, samples: int | None, seed: int) -> Ensemble:
    """The means of several members, or ``samples`` (None: ``SAMPLES``) of one; its mean alone where it has no samples.

    Raises ``ConfigError`` for samples of several members, and where no rank of vLLM is large enough.
    """
    adapters = posterior.adapters if member is None else (posterior.member(member),)
    count = SAMPLES if samples is None else samples
    if count < 0:
        raise ConfigError(f"samples: is {count}; give 0 or more")
    if len(adapters) > 1 and samples is not None:
        raise ConfigError(
            f"samples: this posterior has {len(adapters)} members, which are exported as they are; leave it out, or "
            "sample one of them with --member"
        )
    space, r = posterior.scorer.space, posterior.scorer.adapter_config.r
    adapters = [phi.to(torch.device("cpu")) for phi in adapters]  # the same numbers are drawn for every device
    what = _means(posterior, len(adapters), count)
    if what is not None:
        rank, _ = fitting_rank(r, 0)
        plain = [_plain(phi, rank, lambda own: (space.scaling * own.mean_B, own.mean_A)) for phi in adapters]
        return Ensemble(tuple(plain), rank, what)
    rank, directions = fitting_rank(r, space.sample_components or 0)
    plain = []
    for number in range(count):
        generator = torch.Generator().manual_seed(sample_seed(seed, "export", number))
        plain.append(_plain(adapters[0], rank, partial(space.plain_sample, directions=directions, generator=generator)))
    return Ensemble(tuple(plain), rank, f"{count} samples of the weights", seed)


def _means(posterior: "TaskPosterior", members: int, samples: int) -> str | None:
    """Which means are exported in place of samples, and why; None: samples are."""
    if members > 1:
        return f"{members} members, each at its mean"
    if not posterior.is_posterior:
        return "the mean alone, as no standard deviations were learned"
    if posterior.scorer.space.sample_components is None:
        name = posterior.scorer.adapter_config.space
        return f"the mean alone, as the space '{name}' has its noise on outputs, and no samples of the weights"
    return None if samples else "the mean alone"


def fitting_rank(r: int, components: int) -> tuple[int, int]:
    """A rank that vLLM takes, and how many random directions a sample of it has besides the mean's rank ``r``.

    For each component as many as ``r``, or more where there is room, or fewer where the greatest rank has no more.
    Raises ``ConfigError`` where there is room for none.
    """
    rank = next((one for one in RANKS if one >= r * (1 + components)), RANKS[-1])
    directions = (rank - r) // components if components else 0
    if rank < r:
        raise ConfigError(
            f"vllm-ensemble: the adapter's rank is {r}, and vLLM takes {rank} at most; export peft instead"
        )
    if components and not directions:
        raise ConfigError(
            f"samples: within vLLM's greatest rank, {rank}, an adapter of rank {r} leaves no room for noise; "
            "export its mean with --samples 0"
        )
    return rank, directions


def _plain(phi: Adapter, rank: int, update: Callable[[Factors], tuple[Tensor, Tensor]]) -> Adapter:
    """An adapter whose means are the factors, left and right, of this ``update``, padded with zeros to ``rank``."""
    stacks = {}
    for shape, factors in phi.stacks.items():
        left, right = update(factors)
        missing = rank - left.shape[-1]
        left, right = pad(left, (0, missing)), pad(right, (0, 0, 0, missing))
        stacks[shape] = Factors(right, left, right[:, :0], left[..., :0])
    return Adapter(stacks, phi.layers)


def _answer_tokens(notes: Document) -> list[int]:
    """The one token of each label. Raises ``ConfigError`` where there are no labels, or not one token each."""
    if not notes["labels"]:
        raise ConfigError(
            "vllm-ensemble: every question has its own options, and the client needs one list of labels; "
            "export peft instead"
        )
    if notes["batch_calibrated"]:
        raise ConfigError(
            "vllm-ensemble: answers of this method are calibrated over all questions at once; use 'abmll predict'"
        )
    for label, tokens in zip(notes["labels"], notes["answer_tokens"], strict=True):
        if len(tokens) != 1:
            is_letter = notes["prompt"]["answer"] == "letter"
            remedy = "export peft instead" if is_letter else "train with --answer letter"
            raise ConfigError(
                f"vllm-ensemble: the label {label!r} is scored by {len(tokens)} tokens, and the client asks for one; "
                + remedy
            )
    return [token for [token] in notes["answer_tokens"]]


def serve_command(ensemble: Ensemble, base: str, folder: Path = Path()) -> str:
    """The command that serves the export in ``folder`` on the model ``base``."""
    words = ["vllm", "serve", base, "--enable-lora", "--max-loras", str(len(ensemble.adapters))]
    words += ["--max-lora-rank", str(ensemble.rank), "--lora-modules"]
    return shlex.join([*words, *(f"{name}={folder / name}" for name in ensemble.names)])


def _card(document: Document, ensemble: Ensemble) -> str:
    """The card that a model hub shows, in Markdown."""
    base = document["base"]
    model = base["name"] if base["is_hub_name"] else None
    lines = [
        "---",
        front_matter(model, "peft", ["abmll", "text-classification", "lora", "vllm"]),
        "---",
        "",
        f"# {as_text(document['task_name'])}",
        "",
        f"LoRA adapters for one text task, exported from ABMLL: {ensemble.what}. Their calibrated probabilities are "
        "averaged.",
        "",
        f"Base model: {as_text(base['name'])}" + (f" ({base['base_note']})" if base["base_note"] else ""),
        "",
        "Labels, in their order:",
        "",
        block(json.dumps(document["labels"], ensure_ascii=False)),
        "",
        "Prompt, with the text to be sorted in the place of `{input}`:",
        "",
        block(document["prompt"]["template"]),
        "",
        "Serve it, in this folder:",
        "",
        block(serve_command(ensemble, base["name"]), "bash"),
        "",
        "Ask it; `client.py` needs Python, and for texts `pip install tokenizers`:",
        "",
        block('python client.py --url http://127.0.0.1:8000 "a text"', "bash"),
        "",
        "`ensemble.json` has the tokens of the answers, the calibration and all other settings.",
    ]
    return "\n".join(lines) + "\n"
