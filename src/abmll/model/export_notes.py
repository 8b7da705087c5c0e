"""What an export needs beside its weights: prompt, labels, tokens of the answers, calibration; JSON and a card.

Of a task that a head answers, the posterior lies beside it, as ABMLL saves it: no other program has heads.
"""

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from abmll.common.checkpoint import DOCUMENT, Bundle, write_bundle
from abmll.common.documents import FORMATS, Document
from abmll.common.files import json_text
from abmll.common.markdown_text import as_text, block
from abmll.language import embedded
from abmll.language.base import Base
from abmll.methods import find_rule
from abmll.model.card import base_name, front_matter
from abmll.tasks import Example, WrittenExample
from abmll.tasks.prompts import Rendered, render

if TYPE_CHECKING:
    from abmll.model.learned_task import TaskPosterior

NOTES, CARD, HEADED = "abmll.json", "README.md", "posterior"
PLACEHOLDERS = ("{option A}", "{option B}")


def export_notes(posterior: "TaskPosterior", member: int | None) -> Document:
    """All that a program without ABMLL needs to ask the exported mean as the posterior does.

    ``labels``, ``answer_texts`` and ``answer_tokens`` have one order. Where the labels are not fixed, ``labels`` is
    empty; the others are then those of the letters A to Z, or none (null) where options are scored by their text.
    Where answers are written, ``answer`` in the prompt's part says so, and nothing competes.
    """
    scorer, prompt, encoder = posterior.scorer, posterior.scorer.prompt, posterior.scorer.encoder
    rendered = _rendered(posterior, posterior.labels or PLACEHOLDERS)
    template = encoder.full_text(rendered)
    tokens, continuations = None, ()
    if (posterior.labels or prompt.answer == "letter") and not posterior.is_written:
        continuations = _rendered(posterior, posterior.labels or tuple(string.ascii_uppercase)).continuations
        tokens = [list(found) for found in encoder.answer_tokens(template, continuations)]
    method = posterior.settings.get("method")
    return {
        "format": FORMATS["export"],
        "task_name": posterior.task_name,
        "labels": list(posterior.labels),
        "prompt": {
            "template": template,
            "opening_tokens": encoder.opening,
            "answer": "written" if posterior.is_written else prompt.answer,
            "length_normalize": prompt.length_normalize,
            "max_tokens": encoder.limit,
            "demonstrations": len(posterior.demonstrations),
        },
        "answer_texts": list(continuations),
        "answer_tokens": tokens,
        "calibration": _calibration(posterior),
        "batch_calibrated": method is not None and find_rule(method).batch_calibrated,
        "members": len(posterior.members),
        "member": member,
        "head_left_out": posterior.head is not None,
        "base": {**named_base(scorer.base), "dtype": str(scorer.base.model.dtype).removeprefix("torch.")},
    }


def headed(posterior: "TaskPosterior") -> Bundle | None:
    """A posterior with a head as it is saved, its base named as others know it; None of one without: it is exported."""
    if posterior.head is None:
        return None
    bundle, base = posterior.bundle(), posterior.scorer.base.name
    known = base if base == embedded.NAME else base_name(base).name
    return replace(bundle, document={**bundle.document, "settings": {**bundle.document["settings"], "model": known}})


def write_notes(folder: Path, notes: Document, format: str, headed: Bundle | None = None) -> None:
    """Write ``abmll.json`` and the card into the folder of an export of a ``format``, peft or merged.

    What is ``headed`` goes into a folder of its own there. The folder is a temporary one of ``atomic_folder``, which
    names the right place in the error of a full disk.
    """
    if headed is not None:
        (folder / HEADED).mkdir()
        write_bundle(folder / HEADED, headed, DOCUMENT)
    (folder / NOTES).write_text(json_text(notes), encoding="utf-8")
    (folder / CARD).write_text(card(notes, format), encoding="utf-8")


def card(notes: Document, format: str) -> str:
    """The card that a model hub shows, in Markdown."""
    base, library = notes["base"], "peft" if format == "peft" else "transformers"
    model = base["name"] if base["is_hub_name"] else None
    is_written = notes["prompt"]["answer"] == "written"
    kind = "text-generation" if is_written else "text-classification"
    front = ["---", front_matter(model, library, ["abmll", kind, "lora"]), "---"]
    labels = json.dumps(notes["labels"], ensure_ascii=False) if notes["labels"] else "those of each question"
    labels = "none: the answer is the text that is written behind the prompt" if is_written else labels
    lines = [
        *front,
        "",
        f"# {as_text(notes['task_name'])}",
        "",
        f"{'A LoRA adapter' if format == 'peft' else 'A language model'} for one text task, exported from ABMLL. "
        "It has the mean of what was learned.",
        "",
        f"Base model: {as_text(base['name'])}" + (f" ({base['base_note']})" if base["base_note"] else ""),
        "",
        "Labels, in their order:",
        "",
        block(labels),
        "",
        "Prompt, with the text to be sorted in the place of `{input}`:",
        "",
        block(notes["prompt"]["template"]),
        "",
        "Loading it; `BASE` is the base model, `FOLDER` is this folder:" if format == "peft" else "Loading it:",
        "",
        block(LOADING[format], "python"),
        "",
        _probabilities(notes),
    ]
    return "\n".join(lines) + "\n"


LOADING = {
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)""",
    "merged": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)""",
}


def _probabilities(notes: Document) -> str:
    """What to do with the answers."""
    parts = []
    if notes["calibration"] is not None:
        parts.append(
            "The probabilities p of the answers need the calibration in `abmll.json`: "
            "softmax(inverse_temperature * log p + biases)."
        )
    if notes["head_left_out"]:
        model = "" if notes["base"]["is_hub_name"] else " --model BASE"
        parts.append(
            "In ABMLL a head answers, on the features of this adapter, and its answers are others. It lies in "
            f"`{HEADED}`, and no other program reads it: "
            f"`abmll predict FOLDER/{HEADED}{model} --input new.csv --output answers.csv`."
        )
    if notes["members"] > 1 and notes["member"] is None:
        parts.append(f"This is the average of {notes['members']} members; in ABMLL their probabilities are averaged.")
    return " ".join([*parts, "`abmll.json` has the tokens of the answers and all other settings."])


def _rendered(posterior: "TaskPosterior", options: tuple[str, ...]) -> Rendered:
    example = Example("template", "{input}", options, None)
    if posterior.is_written:
        example = WrittenExample.of("template", "{input}", None)
    return render(example, posterior.task_name, posterior.scorer.prompt, posterior.demonstrations)


def _calibration(posterior: "TaskPosterior") -> Document | None:
    """At its mean; ``biases`` in the order of the labels, none where these have none."""
    calibration = posterior.calibration
    if calibration is None:
        return None
    mean = calibration.mean.tolist()
    own = dict(zip(calibration.labels, mean[1:], strict=False))
    return {"inverse_temperature": mean[0], "biases": [own.get(label, 0.0) for label in posterior.labels]}


def named_base(base: Base) -> Document:
    """The base without any path of this computer."""
    named = base_name(base.name)
    return {
        "name": named.name,
        "is_hub_name": named.is_hub_name,
        "fingerprint": base.fingerprint,
        "base_note": named.note,
    }
