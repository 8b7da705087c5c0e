"""MAML and its kin on a language model: the gradient against a plain transformers loop, its kernels, its memory."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.packing import install_packing, remove_packing
from abmll.language.scorer import OptionScorer
from abmll.methods import State, make_rule

K, RATE = 2, 0.1
MakeScorer = Callable[..., OptionScorer]
MakeTheta = Callable[[OptionScorer], Adapter]
Draw = Callable[..., list[Encoded]]


def one_episode(
    scorer: OptionScorer, theta: Adapter, drawn: Sequence[list[Encoded]], method: str
) -> tuple[State, list[Tensor]]:
    """The state after one episode, before theta's step, and the gradient of theta's means."""
    rule = make_rule(scorer, LearningConfig(method=method, inner_steps=K, inner_sgd_rate=RATE), 1)
    state = rule.init(theta)
    rule.begin_episode(state, done=0.0)
    for k in range(K):
        rule.inner_step(state, scorer.batch(drawn[k]), torch.Generator().manual_seed(k), 1.0)
    _, share = rule.share(state, scorer.batch(drawn[K]), torch.Generator().manual_seed(K))
    means = {id(tensor) for tensor in state.theta.mean_tensors()}
    return state, [share[name] for name, tensor in state.theta.named_tensors() if id(tensor) in means]


class PlainMaml:
    """LoRA by hooks on transformers' own model with eager attention, padded, and the inner loop as anyone writes it."""

    def __init__(self, folder: Path, scaling: float) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).requires_grad_(False)
        self.scaling = scaling

    def nll(self, phi: dict[str, Tensor], examples: Sequence[Encoded]) -> Tensor:
        width = max(len(example.prompt) for example in examples)
        ids = torch.tensor([[*example.prompt, *[0] * (width - len(example.prompt))] for example in examples])
        mask = torch.arange(width) < torch.tensor([[len(example.prompt)] for example in examples])
        handles = []
        for name in {key.rsplit(".", 1)[0] for key in phi}:
            product = self.scaling * phi[f"{name}.mean_B"] @ phi[f"{name}.mean_A"]
            hook = lambda module, inputs, output, product=product: output + inputs[0] @ product.mT  # noqa: E731 (brief)
            handles.append(self.model.get_submodule(name).register_forward_hook(hook))
        logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        for handle in handles:
            handle.remove()
        total = torch.zeros(())
        for row, example in zip(logits, examples, strict=True):
            options = row[len(example.prompt) - 1][[option[0] for option in example.options]]
            assert example.answer is not None
            total = total - options.log_softmax(-1)[example.answer]
        return total

    def gradient(
        self, theta: dict[str, Tensor], drawn: Sequence[list[Encoded]], create_graph: bool
    ) -> dict[str, Tensor]:
        theta = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
        phi = dict(theta)
        for examples in drawn[:-1]:
            steps = torch.autograd.grad(self.nll(phi, examples), list(phi.values()), create_graph=create_graph)
            phi = {name: one - RATE * step for (name, one), step in zip(phi.items(), steps, strict=True)}
        found = torch.autograd.grad(self.nll(phi, drawn[-1]), list(theta.values()))
        return dict(zip(theta, found, strict=True))


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    distance = torch.cat([(one - other).flatten() for one, other in zip(ours, theirs, strict=True)])
    return float(distance.norm() / torch.cat([other.flatten() for other in theirs]).norm())


def by_layer(state: State, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """theta's gradients under the layers' names."""
    holder = state.theta.clone()
    for tensor, gradient in zip(holder.mean_tensors(), gradients, strict=True):
        tensor.copy_(gradient)
    return {name: tensor for name, tensor in holder.state_dict().items() if "mean" in name}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["fomaml", "maml"])
def test_equals_a_plain_loop(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, tiny_llama: Path, method: str, packed: bool
) -> None:
    scorer = make_scorer()
    scorer.packed = packed
    theta = make_theta(scorer)
    drawn = [draw_examples(3, seed=k) for k in range(K + 1)]
    ours = by_layer(*one_episode(scorer, theta, drawn, method))
    start = {name: tensor for name, tensor in theta.state_dict().items() if "mean" in name}
    plain = PlainMaml(tiny_llama, scorer.space.scaling)
    theirs, other = (plain.gradient(start, drawn, create_graph == (method == "maml")) for create_graph in (True, False))
    names = list(theirs)
    assert apart([ours[name] for name in names], [theirs[name] for name in names]) < 1e-4
    assert apart([ours[name] for name in names], [other[name] for name in names]) > 1e-2


def test_fused_attention_is_differentiated_twice(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw
) -> None:
    """On a GPU models attend in one kernel, which has no second derivative; MAML then takes one that has."""
    eager, fused = make_scorer(), make_scorer()
    model = fused.base.model
    remove_packing(model)
    model.set_attn_implementation("sdpa")
    assert install_packing(model)
    theta, drawn = make_theta(eager), [draw_examples(3, seed=k) for k in range(K + 1)]
    expected, found = (one_episode(scorer, theta, drawn, "maml")[1] for scorer in (eager, fused))
    assert apart(found, expected) < 1e-4


@dataclass(eq=False)
class Saved:
    """What a graph keeps for its backward pass, as long as it does."""

    tensor: Tensor


@pytest.mark.parametrize("method", ["maml", "abml"])
def test_the_graph_is_freed_after_the_episode(
    make_scorer: MakeScorer, make_theta: MakeTheta, draw_examples: Draw, method: str
) -> None:
    scorer = make_scorer()
    rule = make_rule(scorer, LearningConfig(method=method), 1)
    state = rule.init(make_theta(scorer))
    batch, saved = scorer.batch(draw_examples(2)), []

    def pack(tensor: Tensor) -> Saved:
        saved.append(weakref.ref(one := Saved(tensor.detach())))
        return one

    rule.begin_episode(state, done=0.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        for k in range(K):
            rule.inner_step(state, batch, torch.Generator().manual_seed(k), 1.0)
    assert sum(one() is not None for one in saved) > 100
    rule.outer_step(state, batch, torch.Generator().manual_seed(K), 1.0)
    assert sum(one() is not None for one in saved) == 0
    assert not any(tensor.grad_fn for _, tensor in (*state.phi.named_tensors(), *state.theta.named_tensors()))


def test_abml_needs_weight_space(make_scorer: MakeScorer) -> None:
    with pytest.raises(ConfigError, match="space is 'output', but abml needs 'weight'; use space 'weight'"):
        make_rule(make_scorer(space="output"), LearningConfig(method="abml"), 1)
