"""Steps as compiled graphs, against the very same functions as they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._guards import TracingContext
from torch._inductor.utils import get_first_incompatible_cudagraph_node

from abmll import AbmllModel
from abmll.common.config import ContinuedConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.compilation import Compilation
from abmll.language.encoding import Encoded
from abmll.language.meter import counted
from abmll.language.scorer import OptionScorer
from abmll.methods import REGISTRY, Loss, Support, make_rule
from abmll.methods.reptile import Reptile, ReptileState

MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[..., Adapter]
Draw = Callable[..., list[Encoded]]

# torch's own tracing makes one where an autograd.Function is met.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Graphs:
    """A compiler that leaves every graph as it is, the gradient's too, and counts them."""

    def __init__(self) -> None:
        self.forward = self.backward = 0
        self.compile = aot_autograd(fw_compiler=self._forward, bw_compiler=self._backward)

    def __call__(self, graph: Any, inputs: Any, **kwargs: Any) -> Any:
        return self.compile(graph, inputs)

    def _forward(self, graph: Any, inputs: Any) -> Any:
        self.forward += 1
        return make_boxed_func(graph)

    def _backward(self, graph: Any, inputs: Any) -> Any:
        self.backward += 1
        return make_boxed_func(graph)


class Overwriting(Graphs):
    """Like CUDA graphs: when a step's first graph is called, what the step before was given is no longer there."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def _forward(self, graph: Any, inputs: Any) -> Any:
        return make_boxed_func(lambda *args: self._called(graph, args, self.given))

    def _backward(self, graph: Any, inputs: Any) -> Any:
        return make_boxed_func(lambda *args: self._called(graph, args, []))

    def _called(self, graph: Any, args: Sequence[Any], gone: list[Tensor]) -> Any:
        for tensor in gone:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
        gone.clear()
        found = graph(*args)
        own = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}  # are not the graph's
        tensors = [one.detach() for one in found if isinstance(one, Tensor)]
        self.given += [one for one in tensors if one.untyped_storage().data_ptr() not in own]
        return found


class Plain(Compilation):
    """Nothing is compiled."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def learned(
    scorer: OptionScorer, theta: Adapter, examples: list[Encoded], compilation: Compilation | None, **settings: Any
) -> tuple[list[Tensor], Support]:
    """What the rule learns in four steps of two examples."""
    config = ContinuedConfig(learning_rate=0.02, scale_learning_rate=0.01, ensemble_size=2, **settings)
    support = Support(scorer, examples, steps=4, batch_size=2, seed=7)
    scorer.compilation = compilation
    members = make_rule(scorer, config, 1).adapt(theta, support)
    scorer.compilation = None
    return [tensor for member in members for _, tensor in member.named_tensors()], support


def assert_same(found: tuple[list[Tensor], Support], wanted: tuple[list[Tensor], Support]) -> None:
    for one, other in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    for one, other in zip(found[1].losses, wanted[1].losses, strict=True):
        assert (one.size, one.tokens, int(one.correct)) == (other.size, other.tokens, int(other.correct))
        for name in ("total", "nll", "kl", "prior", "options"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"method": "abmll-mixture"}, {"noise": "shared", "loss": "tokens"}])
def test_one_graph_for_all_steps(
    settings: dict[str, Any], make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    """Prompts of unlike length; two more learnings, by rules of their own, need no other graph."""
    scorer = make_scorer(layers_to_transform="1")
    theta, graphs = make_theta(scorer), Graphs()
    examples, compilation = draw_examples(5), Compilation(graphs)
    examples[:3] = [replace(one, prompt=(7, 8, 9, *one.prompt)) for one in examples[:3]]
    wanted = learned(scorer, theta, examples, Plain(), **settings)
    with counted(scorer) as cost:
        assert_same(learned(scorer, theta, examples, compilation, **settings), wanted)
    learned(scorer, theta, examples[::-1], compilation, **settings)
    assert (graphs.forward, graphs.backward) == (1, 1)
    steps = 8 if "method" in settings else 4
    assert (cost.forward_passes, cost.gradient_passes, cost.tokens) == (steps, steps, steps * 2 * 32)


def test_nothing_is_read_that_a_later_graph_overwrites(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    """Losses and options are read after the last step; a step's gradient is of three parts."""
    scorer = make_scorer(layers_to_transform="1")
    theta, examples = make_theta(scorer), draw_examples(6)
    wanted = learned(scorer, theta, examples, Plain())
    assert_same(learned(scorer, theta, examples, Compilation(Overwriting())), wanted)

    def accumulated(compilation: Compilation) -> tuple[list[Tensor], Loss]:
        scorer.compilation = compilation
        rule, generator = make_rule(scorer, ContinuedConfig(learning_rate=0.02), 1), torch.Generator().manual_seed(3)
        state = rule.init(theta)
        first, *rest = (scorer.batch(examples[begin : begin + 2]) for begin in (0, 2, 4))
        batch = replace(first, rest=tuple(rest))
        losses = [rule.inner_step(state, batch, generator, 1.0) for _ in range(3)]
        return [tensor.detach() for _, tensor in state.phi.named_tensors()], losses[0]

    (found, first), (plain, other) = accumulated(Compilation(Overwriting())), accumulated(Plain())
    for one, wanted_tensor in zip(found, plain, strict=True):
        torch.testing.assert_close(one, wanted_tensor, rtol=0, atol=1e-5)
    assert float(first.total) == pytest.approx(float(other.total), rel=1e-5)


def test_a_graph_is_as_cuda_graphs_need_it(make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw) -> None:
    """The frozen weights stay where they are, so they are not copied; no input is written; nothing stops a capture."""
    seen: list[tuple[bool, list[int], Any]] = []

    class Looking(Graphs):
        def _forward(self, graph: Any, inputs: Any) -> Any:
            context = TracingContext.try_get()
            assert context is not None
            assert context.fw_metadata is not None
            known = context.fw_metadata
            written = known.mutated_inp_runtime_indices
            static = sum(inputs[place].numel() for place in known.static_input_indices)
            seen.append((static >= weights, written, get_first_incompatible_cudagraph_node(graph)))
            return super()._forward(graph, inputs)

        def _backward(self, graph: Any, inputs: Any) -> Any:
            seen.append((True, [], get_first_incompatible_cudagraph_node(graph)))
            return super()._backward(graph, inputs)

    scorer = make_scorer()
    weights = sum(tensor.numel() for tensor in scorer.base.model.parameters())
    learned(scorer, make_theta(scorer), draw_examples(4), Compilation(Looking()))
    assert seen == [(True, [], None), (True, [], None)]


def test_each_step_is_marked_where_graphs_may_be_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[bool] = []
    modes: list[str | None] = []

    def left_alone(function: Any, *, mode: str | None, isolate_recompiles: bool, **how: Any) -> Any:
        modes.append(mode)
        return function

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(True))
    monkeypatch.setattr(torch, "compile", left_alone)
    for mode, marks in ((None, 0), ("reduce-overhead", 2)):
        compilation = Compilation("inductor", mode)
        assert [int(compilation.call(torch.square, torch.tensor(one))) for one in (2, 3)] == [4, 9]
        assert len(marked) == marks
    assert modes == [None, "reduce-overhead"]


@pytest.mark.parametrize(
    ("family", "dtype", "targets"),
    [
        ("qwen2", "bf16", ["q_proj", "v_proj"]),
        ("gpt2", "fp32", ["c_attn", "c_proj"]),
        ("gemma", "fp32", ["q_proj", "down_proj"]),
    ],
)
def test_families(
    family: str,
    dtype: Any,
    targets: list[str],
    family_folder: Callable[[str], Path],
    make_theta: MakeTheta,
    draw_examples: Draw,
) -> None:
    how: dict[str, Any] = {"dtype": dtype, "target_modules": targets, "layers_to_transform": "1", "r": 2}
    scorer = AbmllModel.from_base(str(family_folder(family)), **how).scorer
    theta, examples = make_theta(scorer), draw_examples(4)
    assert_same(learned(scorer, theta, examples, Compilation("eager")), learned(scorer, theta, examples, Plain()))


@pytest.mark.parametrize("method", ["regular-lora", "reptile"])
def test_without_noise_it_learns_what_plain_steps_do(
    method: str, make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    scorer = make_scorer()
    theta, examples = make_theta(scorer), draw_examples(5)
    assert_same(
        learned(scorer, theta, examples, Compilation("eager"), method=method),
        learned(scorer, theta, examples, None, method=method),
    )


def test_noise_is_a_function_of_the_seed(make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw) -> None:
    scorer = make_scorer()
    theta, examples = make_theta(scorer), draw_examples(4)
    one, other = (learned(scorer, theta, examples, Plain())[0] for _ in range(2))
    assert all(map(torch.equal, one, other))
    scorer.compilation = Plain()
    support = Support(scorer, examples, steps=4, batch_size=2, seed=8)
    [another] = make_rule(scorer, ContinuedConfig(learning_rate=0.02, scale_learning_rate=0.01), 1).adapt(
        theta, support
    )
    assert not torch.equal(one[0], another.mean_tensors()[0])


@pytest.mark.parametrize(
    ("adapter", "settings", "line"),
    [
        ({"space": "output"}, {}, "noise is compiled in the space 'weight' alone"),
        ({"sigma_rank": 2}, {}, "noise is compiled in the space 'weight' alone"),
        ({}, {"noise_rank": 0}, "noise is compiled in the space 'weight' alone"),
        ({}, {"method": "fomaml"}, "fomaml takes steps of its own"),
        ({}, {"method": "abml"}, "abml takes steps of its own"),
        ({"space": "dropout"}, {"method": "mc-dropout"}, "mc-dropout takes steps of its own"),
        ({"space": "factor-a"}, {"method": "blob"}, "blob takes steps of its own"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    adapter: dict[str, Any], settings: dict[str, Any], line: str, make_scorer: MakeScorer
) -> None:
    scorer = make_scorer(**adapter)
    scorer.compilation = Plain()
    with pytest.raises(ConfigError, match=f"^compile: {line}"):
        make_rule(scorer, ContinuedConfig(**settings), 1)


def test_a_penalty_of_a_rules_own_is_not_left_out(make_scorer: MakeScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Penalized(Reptile):
        name = "penalized"

        def inner_loss(self, state: ReptileState, batch: Batch, generator: torch.Generator) -> Loss:
            loss = super().inner_loss(state, batch, generator)
            return loss._replace(total=loss.nll + 1.0)

    scorer = make_scorer()
    scorer.compilation = Plain()
    monkeypatch.setitem(REGISTRY, Penalized.name, Penalized)
    with pytest.raises(ConfigError, match=r"^compile: penalized takes steps of its own"):
        make_rule(scorer, ContinuedConfig(method=Penalized.name), 1)


def test_it_excludes_what_was_not_tried(make_scorer: MakeScorer) -> None:
    scorer = make_scorer()
    scorer.compilation = Plain()
    scorer.gradient_checkpointing = True
    with pytest.raises(ConfigError, match=r"^compile: excludes gradient_checkpointing; leave one of them out$"):
        make_rule(scorer, ContinuedConfig(), 1)
    scorer.gradient_checkpointing = False
    scorer.base = replace(scorer.base, quantization="load_in_4bit")
    vars(scorer.base.model)["quantization_method"] = "bitsandbytes"
    with pytest.raises(ConfigError, match=r"^compile: excludes load_in_4bit; leave one of them out$"):
        make_rule(scorer, ContinuedConfig(), 1)
    assert make_rule(scorer, ContinuedConfig(method="head"), 1).classifier is not None


def test_written_answers_are_refused(make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw) -> None:
    scorer = make_scorer()
    written = [replace(one, options=one.options[:1], answer=0) for one in draw_examples(2)]
    with pytest.raises(ConfigError, match=r"^compile: only steps on options are compiled, and the answers"):
        learned(scorer, make_theta(scorer), written, Plain())


def test_what_breaks_a_graph_is_said_in_a_line() -> None:
    def broken(x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x

    compilation = Compilation("eager")
    line = r"^compile: torch cannot compile a step of this model \(.*\); leave it out$"
    with pytest.raises(ConfigError, match=line) as said, compilation.refusing():
        compilation.call(broken, torch.ones(2))
    assert "\n" not in str(said.value)


def test_a_gradient_that_cannot_be_compiled_is_refused_too(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    class Half(Graphs):
        def _backward(self, graph: Any, inputs: Any) -> Any:
            raise TorchDynamoException("no such operation")  # as inductor does

    scorer = make_scorer(layers_to_transform="1")
    with pytest.raises(ConfigError, match=r"^compile: torch cannot compile a step of this model \(.*no such operation"):
        learned(scorer, make_theta(scorer), draw_examples(4), Compilation(Half()), method="reptile")


def test_a_torch_that_cannot_do_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def before(model: Any = None, *, fullgraph: bool = False) -> Any: ...

    monkeypatch.setattr(torch, "compile", before)
    with pytest.raises(ConfigError, match=r"^compile: torch .* is too old for it"):
        Compilation()


def test_too_many_shapes_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.language.compilation.SHAPES", 2)
    compilation = Compilation("eager")

    def lengths(sizes: Sequence[int]) -> list[int]:
        with compilation.refusing():
            return [len(compilation.call(torch.square, torch.ones(size))) for size in sizes]

    assert lengths((1, 2, 1)) == [1, 2, 1]
    with pytest.raises(ConfigError, match="compile: batches have more than 2 shapes"):
        lengths((3, 4, 5))
