"""Base.twin: the same weights under modules of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig
from abmll.language.base import Wrapper, load_base
from abmll.language.encoding import Encoded
from abmll.language.fingerprint import fingerprint
from abmll.language.scorer import OptionScorer

SHORT = PromptConfig(instruction=False, list_options=False, length_normalize=False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_twin_of_a_wrapped_model_is_bare_and_shares_its_weights(
    make_scorer: Any, family: str, ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer.fresh(family, layers_to_transform="1")
    phi = randomize(scorer.new_adapter(0))
    before = scorer.scores(scorer.batch(ragged), phi).options
    twin = scorer.base.twin()
    assert not any(isinstance(module, Wrapper) for module in twin.model.modules())
    assert fingerprint(twin.model) == twin.fingerprint == scorer.base.fingerprint
    assert {one.data_ptr() for one in twin.model.parameters()} == {
        one.data_ptr() for one in scorer.base.model.parameters()
    }
    other = OptionScorer(twin, AdapterConfig(r=2, target_modules=scorer.adapter_config.target_modules), scorer.prompt)
    assert len(other.shapes) > len(scorer.shapes)
    bare = scorer.scores(scorer.batch(ragged), None).options
    torch.testing.assert_close(other.scores(other.batch(ragged), None).options, bare, rtol=1e-4, atol=1e-5)
    assert torch.equal(scorer.scores(scorer.batch(ragged), phi).options, before)
    assert not torch.allclose(bare.nan_to_num(neginf=0), before.nan_to_num(neginf=0))


def test_adapters_of_one_do_not_reach_the_other(deep_llama: Path, ragged: list[Encoded], randomize: Any) -> None:
    base = load_base(ModelConfig(str(deep_llama), "fp32", "cpu"), lambda line: None, quiet=True)
    scorers = [
        OptionScorer(base, AdapterConfig(r=2, space="weight"), SHORT),
        OptionScorer(base.twin(), AdapterConfig(r=2, space="output"), SHORT),
    ]
    bare = scorers[0].scores(scorers[0].batch(ragged), None).options
    phi, batch = randomize(scorers[1].new_adapter(0)), scorers[0].batch(ragged)
    with scorers[1].wiring.use(phi, scorers[1].batch(ragged)):
        assert torch.equal(scorers[0].scores(batch, None).options, bare)
