"""ABMLL as a model of lm-evaluation-harness, in whose registry it is called ``abmll`` once this is imported.

The harness has no way to find models of other packages by itself; ``abmll.cli.harness`` runs it with this one.
"""

from itertools import groupby
from pathlib import Path
from typing import cast

import lm_eval.models  # noqa: F401 (the harness adds its own models only to a registry that is empty)
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from abmll.cli.loading import load_posterior
from abmll.common.config import PlaceConfig, PredictConfig
from abmll.common.errors import ConfigError
from abmll.model.export_notes import export_notes
from abmll.tasks import Example


class AbmllLM(LM):
    """A posterior that answers multiple choice.

    Args:
        pretrained: a posterior's folder, or a training run's.
        num_samples: of the posterior, for every question (0: at its mean). A head has its own.
        seed: of the samples.
        task: the task's name, of a training run.
        device: where the language model runs.
        batch_size, max_batch_size: what the harness gives every model; batches are made by their tokens instead.
        others: refused.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        num_samples: int = PredictConfig.num_samples,
        seed: int = 0,
        task: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        if others:
            known = "pretrained, num_samples, seed, task and device"
            raise ConfigError(f"model_args: abmll has no {min(others)}; it has {known}")
        if pretrained is None:
            raise ConfigError("model_args: say what 'abmll adapt' or 'abmll train' wrote, as pretrained=FOLDER")
        place = PlaceConfig(device=device or PlaceConfig.device)
        self.posterior = load_posterior(Path(str(pretrained)), task, "task", place, quiet=True)
        self.how = PredictConfig(num_samples=num_samples)
        self.seed = seed
        self.answers = export_notes(self.posterior, None)["answer_texts"]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probabilities of each question's options among each other, calibrated and averaged as in ``predict``.

        The second value says whether an option is the most probable one of its question. Raises ``ConfigError`` for a
        text that competes with no other.
        """
        if not requests:
            return []
        examples, encoded = [], []
        for (task, number, context), group in groupby(requests, _question):
            texts = [_pair(one)[1] for one in group]
            if len(texts) < 2:
                raise ConfigError(
                    f"task '{task}', question {number}: abmll answers multiple choice only, where all options follow "
                    "one prompt; use --model hf with an export of format peft"
                )
            options = self.posterior.labels if texts == self.answers and self.posterior.labels else tuple(texts)
            examples.append(Example(str(number), context, options, None))
            encoded.append(self.posterior.scorer.encoder.encode_text(context, texts))
        prediction = self.posterior.predict_encoded(examples, encoded, self.how, seed=self.seed)
        found = []
        for example, probs in zip(examples, prediction.probs, strict=True):
            own = probs[: len(example.options)]
            best = int(own.argmax())
            found += [(log, place == best) for place, log in enumerate(own.log().tolist())]
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused: no options compete."""
        raise ConfigError("abmll answers multiple choice only; use --model hf with an export of format peft")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Refused: nothing is written."""
        raise ConfigError("abmll answers multiple choice only; use --model hf with an export of format peft")


register_model("abmll")(AbmllLM)


def _question(request: Instance) -> tuple[str, int, str]:
    return str(request.task_name), int(request.doc_id or 0), _pair(request)[0]


def _pair(request: Instance) -> tuple[str, str]:
    """The text and what is to follow it."""
    return cast("tuple[str, str]", request.args)
