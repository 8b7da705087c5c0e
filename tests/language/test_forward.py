"""The last MLP is computed where something reads it, and the scores do not notice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abmll.language.encoding import Encoded
from abmll.language.forward import LastMLP
from abmll.language.scorer import OptionScorer, Pass
from abmll.language.wiring import Trace


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_and_gradients_are_those_of_the_whole_row(
    family: str, make_scorer: Any, ragged: list[Encoded], randomize: Any
) -> None:
    targets = ("c_attn", "c_fc") if family == "gpt2" else ("q_proj", "down_proj")
    scorer = make_scorer.fresh(family, target_modules=targets)
    adapter, batch = randomize(scorer.new_adapter(0)).requires_grad_(), scorer.batch(ragged)
    seen: list[int] = []
    last = [module for name, module in scorer.base.model.named_modules() if name.endswith(".mlp")][-1]
    last.register_forward_pre_hook(lambda mlp, args: seen.append(args[0].shape[1]))

    def read(how: Pass) -> list[Tensor]:
        options = scorer.scores(batch, adapter, how).options
        return [options, *torch.autograd.grad(options[torch.isfinite(options)].sum(), adapter.mean_tensors())]

    narrow, whole = read(Pass()), read(Pass(trace=Trace()))  # a trace wants every position
    assert seen == [len(batch.rows), batch.input_ids.shape[1]]
    for one, other in zip(narrow, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_output_space_counts_every_position(
    make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer("llama", space="output", target_modules=("down_proj",))
    theta, phi = scorer.new_adapter(0), randomize(scorer.new_adapter(0))
    terms = scorer.scores(scorer.batch(ragged), phi, Pass(None, theta)).terms
    assert terms is not None
    lengths = {coefficients.shape[1] for coefficients in terms.coefficients.values()}
    assert lengths == {scorer.batch(ragged).input_ids.shape[1]}


class Routed(nn.Module):
    """An MLP that answers with more than its output, as mixtures of experts do."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return 2 * hidden, "routes"


def test_what_an_mlp_says_beside_its_output_is_kept() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module()])
    model.layers[0].mlp = Routed()
    last_mlp = LastMLP(model)
    hidden = torch.arange(6.0).view(1, 3, 2)
    with last_mlp.only(torch.tensor([2, 0])):
        output, routes = model.layers[0].mlp(hidden)
    assert output.tolist() == [[[0, 2], [0, 0], [8, 10]]]
    assert routes == "routes"
    assert model.layers[0].mlp(hidden)[0].tolist() == (2 * hidden).tolist()
