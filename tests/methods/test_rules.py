"""What holds for every learning rule, and what sets ABMLL's outer step apart."""

from collections.abc import Callable

import pytest
import torch

from abmll.common.config import LearningConfig
from abmll.common.errors import CheckpointError, ConfigError, TrainingError
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods import OUTER, REGISTRY, Loss, State, Support, find_rule, make_rule, read_steps
from abmll.methods.optimizer import AdapterOptimizer

MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[[OptionScorer], Adapter]
Draw = Callable[..., list[Encoded]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter.named_tensors()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown 'structured-lra'; Did you mean 'structured-lora'\? known are abmll"
    ):
        find_rule("structured-lra")


@pytest.mark.parametrize("name", REGISTRY)
def test_registry_names_are_the_rules_own(name: str) -> None:
    assert REGISTRY[name].name == name
    assert REGISTRY[name].label


# One of laplace-torch's own dependencies (asdl) still compiles a function by the old way while it is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("method", REGISTRY)
def test_adapting_leaves_theta_alone(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, method: str
) -> None:
    scorer = make_scorer(space=REGISTRY[method].space or "weight")
    theta = make_theta(scorer)
    before = values(theta)
    rule = make_rule(scorer, LearningConfig(method=method), 1)
    support = Support(scorer, draw_examples(4), steps=2, batch_size=2)
    read: list[int] = []
    support.on_batch = lambda: read.append(1)
    members = rule.adapt(theta, support)
    assert len(read) == rule.num_batches(support)
    assert same(values(theta), before)
    for phi in members:
        assert same(values(phi), before) == (not read)
        assert not any(tensor.requires_grad or tensor.grad is not None for _, tensor in phi.named_tensors())
    assert not any(tensor.requires_grad for _, tensor in theta.named_tensors())
    assert [len(indices) for indices, _ in support.answers()] == [2, 2][: len(read)]


@pytest.mark.parametrize("method", [name for name, rule in REGISTRY.items() if rule.is_trained])
def test_a_episode_teaches_theta_and_leaves_no_graph(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, method: str
) -> None:
    scorer = make_scorer(space=REGISTRY[method].space or "weight")
    rule = make_rule(scorer, LearningConfig(method=method), 1)
    start = make_theta(scorer)
    before, state = values(start), rule.init(start)
    rule.begin_episode(state, done=0.0)
    steps = {
        f"step {k}": rule.inner_step(state, scorer.batch(draw_examples(2, seed=k)), generator(k), 1.0) for k in (1, 2)
    }
    outer = rule.outer_step(state, scorer.batch(draw_examples(2, seed=3)), generator(3), 1.0)
    readings = read_steps(steps | ({OUTER: outer} if outer else {}), "theta", state.theta)
    assert all(step.size == 2 and step.tokens > 0 and step.passes == 1 for step in list(readings.values())[:2])
    reads = method == "trained-head"  # before its one step, the outer one
    assert all((step.grad_norm > 0) == (not reads or name == OUTER) for name, step in readings.items())
    assert not same(values(state.theta), before)
    assert same(values(start), before)
    for _, tensor in (*state.theta.named_tensors(), *state.phi.named_tensors()):
        assert tensor.grad_fn is None


@pytest.mark.parametrize("method", REGISTRY)
def test_a_rule_goes_on_from_its_theta_and_moments(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, method: str
) -> None:
    """Between episodes nothing else may be needed: it is all that a checkpoint holds."""
    scorer = make_scorer(space=REGISTRY[method].space or "weight")
    rule = make_rule(scorer, LearningConfig(method=method), 1)

    def episode(state: State, number: int) -> None:
        rule.begin_episode(state, done=number / 3)
        for step in range(3):
            act = rule.outer_step if step == 2 else rule.inner_step
            act(state, scorer.batch(draw_examples(2, seed=3 * number + step)), generator(step), 1.0)

    whole = rule.init(make_theta(scorer))
    episode(whole, 0)
    again = rule.init(whole.theta)
    for name, optimizer in again.optimizers().items():
        optimizer.load_tensors(whole.optimizers()[name].tensors(), "here")
    for state in (whole, again):
        episode(state, 1)
        episode(state, 2)
    assert same(values(whole.theta), values(again.theta))


@pytest.mark.parametrize("space", ["weight", "output"])
def test_inner_steps_move_phi_alone_and_the_outer_step_theta_alone(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, space: str
) -> None:
    scorer = make_scorer(space=space)
    rule = make_rule(scorer, LearningConfig(), 1)
    state = rule.init(make_theta(scorer))
    batch = scorer.batch(draw_examples(2))
    theta, phi = values(state.theta), values(state.phi)
    rule.begin_episode(state, done=0.0)
    rule.inner_step(state, batch, generator(), 1.0)
    assert same(values(state.theta), theta)
    assert not same(values(state.phi), phi)
    phi = values(state.phi)
    rule.outer_step(state, batch, generator(), 1.0)
    assert not same(values(state.theta), theta)
    assert same(values(state.phi), phi)


@pytest.mark.parametrize("space", ["weight", "output"])
def test_the_outer_step_reads_its_batch_in_output_space_alone(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, space: str
) -> None:
    scorer, learned, reads = make_scorer(space=space), [], space == "output"
    for seed in (1, 2):
        rule = make_rule(scorer, LearningConfig(), 1)
        state = rule.init(make_theta(scorer))
        rule.begin_episode(state, done=0.0)
        rule.inner_step(state, scorer.batch(draw_examples(2)), generator(), 1.0)
        loss = rule.outer_step(state, scorer.batch(draw_examples(3, seed=seed)), generator(), 1.0)
        assert loss is not None
        assert (loss.size, loss.tokens > 0) == ((3, True) if reads else (0, False))
        learned.append(values(state.theta))
    assert same(*learned) != reads


@pytest.mark.parametrize("method", ["abmll", "structured-lora", "reptile"])
def test_moments_persist(make_scorer: MakeScorer, draw_examples: Draw, method: str) -> None:
    scorer = make_scorer()
    rule = make_rule(scorer, LearningConfig(method=method), 1)
    state = rule.init(scorer.new_adapter(0))
    for _ in range(2):
        rule.begin_episode(state, done=0.0)
        rule.inner_step(state, scorer.batch(draw_examples(2)), generator(), 1.0)
    moments = state.optimizers()["optimizer_phi"].tensors()
    assert {float(value) for name, value in moments.items() if name.endswith(".step")} == {2.0}


@pytest.mark.parametrize("method", ["abmll", "structured-lora", "reptile"])
def test_the_rate_scales_every_learning_rate(make_scorer: MakeScorer, draw_examples: Draw, method: str) -> None:
    """AdamW's first step is the learning rate itself, wherever the gradient is not tiny."""
    scorer = make_scorer()
    config = LearningConfig(method=method, learning_rate=1e-3, scale_learning_rate=1e-3)
    moved = []
    for rate in (1.0, 0.25):
        rule = make_rule(scorer, config, 1)
        state = rule.init(scorer.new_adapter(0))
        before = values(state.phi)
        rule.inner_step(state, scorer.batch(draw_examples(2)), generator(), rate)
        moved.append(max(float((after - before[name]).abs().max()) for name, after in values(state.phi).items()))
    assert moved[0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] == pytest.approx(2.5e-4, rel=1e-2)


@pytest.mark.parametrize("method", ["fomaml", "maml", "abml"])
def test_the_rate_scales_plain_steps_too(make_scorer: MakeScorer, draw_examples: Draw, method: str) -> None:
    scorer = make_scorer()
    moved = []
    for rate in (1.0, 0.25):
        rule = make_rule(scorer, LearningConfig(method=method), 1)
        state = rule.init(scorer.new_adapter(0))
        before = state.phi.mean_tensors()[1].detach().clone()
        rule.inner_step(state, scorer.batch(draw_examples(2)), generator(), rate)
        moved.append(state.phi.mean_tensors()[1].detach() - before)
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(moved[1], 0.25 * moved[0])


@pytest.mark.parametrize(("poisoned", "term"), [("phi", "nll"), ("theta", "kl")])
def test_a_term_that_is_not_finite_is_named(
    make_scorer: MakeScorer, draw_examples: Draw, poisoned: str, term: str
) -> None:
    scorer = make_scorer()
    rule = make_rule(scorer, LearningConfig(), 1)
    state = rule.init(scorer.new_adapter(0))
    getattr(state, poisoned).mean_tensors()[1].data.fill_(torch.nan)
    steps = {"step 7": rule.inner_step(state, scorer.batch(draw_examples(2)), generator(), 1.0)}
    with pytest.raises(TrainingError, match=f"^step 7: the loss term '{term}' is nan; lower the learning rates$"):
        read_steps(steps, "phi", state.phi)


def test_adapting_names_the_step_that_broke(make_scorer: MakeScorer, draw_examples: Draw) -> None:
    scorer = make_scorer()
    rule = make_rule(scorer, LearningConfig(learning_rate=1e15), 1)
    support = Support(scorer, draw_examples(4), steps=3, batch_size=2)
    with pytest.raises(TrainingError, match=r"^step 3: the loss term '\w+' is (nan|inf)"):
        rule.adapt(scorer.new_adapter(0), support)


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_named(make_scorer: MakeScorer, max_norm: float) -> None:
    adapter = make_scorer().new_adapter(0).requires_grad_()
    optimizer = AdapterOptimizer(adapter, 1e-3, 1e-3, 0.0)
    steps = {}
    for step, value in enumerate((1.0, torch.inf, torch.nan)):
        for _, tensor in adapter.named_tensors():
            tensor.grad = torch.zeros_like(tensor)
        next(iter(adapter.stacks.values())).mean_B.grad.fill_(value)  # pyright: ignore[reportOptionalMemberAccess]
        zero = torch.zeros(())
        steps[f"step {step}"] = Loss(*[zero] * 5, size=1, tokens=1, grad_norms=optimizer.step(1.0, max_norm))
    shape = next(iter(adapter.stacks))
    with pytest.raises(TrainingError, match=f"^step 1: the gradient of {shape}.mean_B is not finite; lower"):
        read_steps(steps, "phi", adapter)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 50.0])
def test_the_gradient_is_clipped_to_its_norm_over_all_tensors(make_scorer: MakeScorer, max_norm: float) -> None:
    """AdamW's first moment after one step is a tenth of the gradient that it was given."""
    adapter = make_scorer().new_adapter(0).requires_grad_()
    optimizer = AdapterOptimizer(adapter, 1e-3, 1e-3, 0.0)
    gradients = {name: torch.randn(tensor.shape, generator=generator(1)) for name, tensor in adapter.named_tensors()}
    for name, tensor in adapter.named_tensors():
        tensor.grad = gradients[name].clone()
    whole = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    assert 0.5 < whole < 50.0
    norms = optimizer.step(1.0, max_norm)
    zero = torch.zeros(())
    assert Loss(*[zero] * 5, size=1, tokens=1, grad_norms=norms).grad_norm.item() == pytest.approx(whole.item())
    factor = 0.5 / whole if max_norm == 0.5 else 1.0
    for name, gradient in gradients.items():
        torch.testing.assert_close(optimizer.tensors()[f"{name}.exp_avg"], 0.1 * factor * gradient)


def test_what_takes_no_part_in_the_loss_is_named(make_scorer: MakeScorer) -> None:
    optimizer = AdapterOptimizer(make_scorer().new_adapter(0).requires_grad_(), 1e-3, 1e-3, 0.0)
    with pytest.raises(TrainingError, match=r"mean_A has no gradient: it takes no part in the loss"):
        optimizer.step(1.0, 0.0)


def stepped(scorer: OptionScorer, examples: list[Encoded]) -> tuple[State, AdapterOptimizer]:
    rule = make_rule(scorer, LearningConfig(), 1)
    state = rule.init(scorer.new_adapter(0))
    rule.inner_step(state, scorer.batch(examples), generator(), 1.0)
    return state, AdapterOptimizer(state.phi, 1e-3, 1e-3, 0.0)


def test_moments_come_back_from_their_tensors(make_scorer: MakeScorer, draw_examples: Draw) -> None:
    state, other = stepped(make_scorer(), draw_examples(2))
    saved = state.optimizers()["optimizer_phi"].tensors()
    assert len(saved) == 3 * len(list(state.phi.named_tensors()))
    other.load_tensors(saved, "here")
    assert same(other.tensors(), saved)
    other.load_tensors({}, "here")
    assert other.tensors() == {}


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_moments_of_another_adapter_are_refused(make_scorer: MakeScorer, draw_examples: Draw, damage: str) -> None:
    state, other = stepped(make_scorer(), draw_examples(2))
    saved = state.optimizers()["optimizer_phi"].tensors()
    name = next(name for name in saved if name.endswith("exp_avg_sq"))
    if damage == "missing":
        del saved[name]
    else:
        saved[name] = saved[name][..., :-1]
    with pytest.raises(CheckpointError, match=f"here: {name} is (missing|damaged)"):
        other.load_tensors(saved, "here")
