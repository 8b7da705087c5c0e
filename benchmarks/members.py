"""Cells on operations: how many more several members, or several samples, hand to the device than one. No GPU, no time.

Beside a small model a GPU waits for its host, which queues one operation after the other. Members that learn side by
side, and samples that read a batch side by side, should queue hardly more of them than one does.

Counted are launches, as ``operations`` has them, of a whole call: making batches, forward and backward passes, the
optimizer.
"""

from collections.abc import Callable
from typing import Any

from abmll.common.config import ContinuedConfig, PredictConfig
from abmll.language.encoding import Encoded
from abmll.methods import Support, make_rule
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import predict
from abmll.tasks import Example
from benchmarks.bench import Bench
from benchmarks.contenders import ALL, QV, Setting
from benchmarks.operations import FOLDER, LAYERS, Operations
from benchmarks.rows import Row
from benchmarks.small import small_model

MEMBERS, SAMPLES = 5, 16
LEARNED = {"abmll-mixture": "abmll", "ensemble": "regular-lora"}  # several members, and the method that learns one
STEPS, BATCH_SIZE = 4, 2
TARGETS = {"members": 1.3, "samples": 2.0}
AT_ONCE = 10**6  # positions: no limit for what is counted here


def members(bench: Bench) -> list[Row]:
    """Learning a task by five members side by side / by one, without what is done before the first step."""
    examples = _examples(bench)
    rows = []
    for modules in (QV, ALL):
        model = _model(bench, Setting(modules))
        encoded = model.scorer.encode(examples, "task")
        for method, single in LEARNED.items():
            several, one = _adaptation(model, method, encoded), _adaptation(model, single, encoded)
            title = f"operations of {STEPS} steps, {MEMBERS} members ({method}) / one ({Setting(modules).label(bench)})"
            rows.append(_row(title, launches(several), launches(one), TARGETS["members"]))
    return rows


def samples(bench: Bench) -> list[Row]:
    """Answering with 16 samples side by side / with one."""
    examples = _examples(bench)[:5]
    rows = []
    for modules in (QV, ALL):
        model = _model(bench, Setting(modules))
        encoded = model.scorer.encode(examples, "task")
        several, one = (_prediction(model, encoded, count) for count in (SAMPLES, 1))
        title = f"operations of a prediction, {SAMPLES} samples / one ({Setting(modules).label(bench)})"
        rows.append(_row(title, launches(several), launches(one), TARGETS["samples"]))
    return rows


def launches(call: Callable[[], object]) -> int:
    """The operations of ``call`` once it has been called before."""
    call()
    with Operations() as counted:
        call()
    return counted.launches.total()


def _adaptation(model: AbmllModel, method: str, encoded: list[Encoded]) -> Callable[[], object]:
    rule = make_rule(model.scorer, ContinuedConfig(method=method, ensemble_size=MEMBERS, members_at_once=MEMBERS), 1)
    return lambda: rule.adapt(model.theta, Support(model.scorer, encoded, STEPS, BATCH_SIZE))


def _prediction(model: AbmllModel, encoded: list[Encoded], count: int) -> Callable[[], object]:
    how = PredictConfig(num_samples=count)
    return lambda: predict(model.scorer, [model.theta], encoded, how, max_positions=AT_ONCE)


def _model(bench: Bench, setting: Setting) -> AbmllModel:
    """On the bench's model, as ``load_base`` gives it on a GPU."""
    base = bench.base("bf16")
    model: Any = base.model
    model.set_attn_implementation("sdpa")
    return AbmllModel(base, setting.adapter(), bench.workload.prompt)


def small(bench: Bench) -> Bench:
    """A bench on a small model on the CPU: the count does not depend on the sizes of the weights."""
    return Bench(small_model(FOLDER, num_hidden_layers=LAYERS), data_dir=bench.data_dir)


def _examples(bench: Bench) -> list[Example]:
    return list(bench.workload.evaluation[0].train[:10])


def _row(name: str, several: int, one: int, target: float) -> Row:
    ratio = several / one
    return Row(name, ratio, ratio, ratio, "x", target, several, one, "operations")
