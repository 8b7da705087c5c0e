"""The whole method on real tasks: meta-train, adapt to unseen tasks, compare, report.

Every method gets the same base model, the same layers to adapt, the same episodes with the same examples, the same
adaptation steps and examples (the mixture takes the steps five times), and is asked the same questions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abmll.common.config import AdapterConfig, EvaluateConfig, ModelConfig, PromptConfig, TrainConfig
from abmll.common.files import remove, write_json
from abmll.common.settings import flatten, pick
from abmll.experiments.few_shot import Evaluation, evaluate_tasks, save_evaluation, versions
from abmll.experiments.trained import no_cost, train_once
from abmll.language.activation_cache import open_cache
from abmll.language.base import load_base
from abmll.methods import find_rule
from abmll.model.meta_learner import AbmllModel
from abmll.tasks import Suite, load_suite
from abmll.tasks.bigbench import fetch_bigbench
from abmll.tasks.order import sample_seed

FORMAT = "abmll-comparison-2"
RESULT = "comparison.json"
SUITE = "bigbench-demo"
METHODS = ("pretrained-adapted", "structured-lora", "abmll", "abmll-mixture")


@dataclass(frozen=True)
class DemoSettings:
    """What a comparison is run with; one learning configuration for all methods."""

    adapter: AdapterConfig
    train: TrainConfig
    evaluate: EvaluateConfig


# Sized for two processor cores and a quarter of an hour; everything not named here is the project's default.
DEMO = DemoSettings(
    adapter=AdapterConfig(
        target_modules=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        layers_to_transform="top-6",
    ),
    train=TrainConfig(max_steps=30, per_device_train_batch_size=4, save_steps=6),
    evaluate=EvaluateConfig(test_examples=30, num_samples=4),
)


class Demo:
    """The comparison in ``folder``; finished parts of an interrupted one are used again."""

    def __init__(
        self, folder: Path, settings: DemoSettings, base: ModelConfig, say: Callable[[str], None], quiet: bool
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.say = say
        self.quiet = quiet
        fetch_bigbench(say, quiet=quiet)
        self.suite: Suite = load_suite(SUITE)
        self.suite.refuse_leaks()
        prompt = pick(PromptConfig, self.suite.prompt)
        self.model = AbmllModel(load_base(base, say, quiet), settings.adapter, prompt, settings.train.seed)
        scorer = self.model.scorer
        self.cache = open_cache(
            scorer.base, scorer.lower_blocks, settings.train, settings.train.activation_cache_gb, say
        )

    def run(self) -> dict[str, Any]:
        """All methods; returns what ``comparison.json`` holds."""
        # A finished comparison is done again from the start, an interrupted one goes on.
        if (self.folder / RESULT).exists():
            for name in (RESULT, "report.html", "evaluation", *METHODS):
                remove(self.folder / name)
        methods = {}
        for name in METHODS:
            model, run, cost = self._learner(name)
            self.say(f"{find_rule(name).label}: adapting to {len(self.suite.evaluation)} unseen tasks")
            evaluation = evaluate_tasks(
                model,
                self.suite.evaluation,
                self.settings.evaluate,
                seed=self.settings.train.seed,
                cache=self.cache,
                quiet=self.quiet,
            )
            methods[name] = self._row(model, run, evaluation, cost)
        document = {
            "format": FORMAT,
            "suite": self.suite.name,
            "seeds": [self.settings.train.seed],
            "settings": flatten(self.settings.evaluate) | self.model.scorer.settings(),
            "versions": versions(),
            "methods": methods,
        }
        write_json(self.folder / RESULT, document)
        return document

    def _learner(self, name: str) -> tuple[AbmllModel, str | None, dict[str, float | None]]:
        """The model as the method learns unseen tasks; the folder and the cost of its run, which may be another's."""
        trained = find_rule(name).base_method or name
        cost = self._train(trained)
        run = trained if find_rule(trained).is_trained else None
        return self.model if trained == name else self.model.continue_as(name), run, cost

    def _train(self, name: str) -> dict[str, float | None]:
        """Leave the method's theta in the model; returns the cost of learning it."""
        config = replace(self.settings.train, method=name, output_dir=str(self.folder / name))
        if not find_rule(name).is_trained:
            fresh = self.model.scorer.new_adapter(sample_seed(config.seed, "init"))
            self.model.learned(fresh, config, len(self.suite.train))
            return no_cost()
        return train_once(self.model, self.suite.train, config, self.cache, self.say, self.quiet)

    def _row(
        self, model: AbmllModel, run: str | None, evaluation: Evaluation, cost: dict[str, float | None]
    ) -> dict[str, Any]:
        name = model.learning.method
        place = Path("evaluation") / name
        about = {"run": run, "suite": self.suite.name, "seed": self.settings.train.seed}
        save_evaluation(evaluation, self.folder / place, model, self.settings.evaluate, about)
        return {
            "label": find_rule(name).label,
            "settings": flatten(model.learning),
            "cost": cost,
            "tasks": evaluation.tasks,
            "mean": evaluation.mean,
            "pooled": evaluation.pooled,
            "evaluation": place.as_posix(),
            "run": run,
        }
