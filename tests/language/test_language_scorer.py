"""Scores of options side by side against transformers' own forward pass on each option alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer, Pass, nll
from abmll.posterior import Noise, Prior
from abmll.tasks import Example

FAMILIES = ["llama", "qwen2", "gpt2", "gemma"]
QUESTIONS = [
    Example("a", "what colour is the sky?", ("blue", "green as grass", "red"), 0),
    Example("b", "two?", ("no", "yes"), 1),
]


def assert_equal(got: torch.Tensor, expected: list[list[float]], tolerance: float = 2e-5) -> None:
    """Each row against its expectation, relatively; -inf behind an example's own options."""
    for row, wanted in zip(got, expected, strict=True):
        assert row[: len(wanted)].tolist() == pytest.approx(wanted, rel=tolerance, abs=tolerance)
        assert torch.isneginf(row[len(wanted) :]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_scores_equal_each_option_read_alone(
    family: str, make_scorer: Callable[..., OptionScorer], sharp_folder: Any, oracle: Any, ragged: list[Encoded]
) -> None:
    scorer = make_scorer(family)
    scores = scorer.scores(scorer.batch(ragged), None)
    expected = oracle(sharp_folder(family), ragged)
    assert_equal(scores.options, expected)
    answers = [0.0 if one.answer is None else row[one.answer] for one, row in zip(ragged, expected, strict=True)]
    assert scores.answer_tokens.tolist() == pytest.approx(answers, rel=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoded_questions_equal_each_option_read_alone(
    family: str, make_scorer: Callable[..., OptionScorer], sharp_folder: Any, oracle: Any
) -> None:
    scorer = make_scorer(family, prompt=PromptConfig(answer="letter", list_options=True, length_normalize=False))
    encoded = scorer.encode(QUESTIONS, "facts")
    assert_equal(scorer.scores(scorer.batch(encoded), None).options, oracle(sharp_folder(family), encoded))


def test_length_normalised_scores_are_means_over_the_option_s_tokens(
    make_scorer: Callable[..., OptionScorer], sharp_folder: Any, oracle: Any, ragged: list[Encoded]
) -> None:
    prompt = PromptConfig(instruction=False, length_normalize=True)
    scorer = make_scorer("llama", prompt=prompt)
    sums = oracle(sharp_folder("llama"), ragged)
    means = [
        [score / len(option) for score, option in zip(row, one.options, strict=True)]
        for row, one in zip(sums, ragged, strict=True)
    ]
    scores = scorer.scores(scorer.batch(ragged), None)
    assert_equal(scores.options, means)
    # The likelihood of tokens stays a sum: it is that of the whole answer.
    assert float(scores.answer_tokens[1]) == pytest.approx(sums[1][0], rel=2e-5)


def test_an_example_scores_the_same_in_any_company(
    make_scorer: Callable[..., OptionScorer], ragged: list[Encoded]
) -> None:
    scorer = make_scorer("llama")
    together = scorer.scores(scorer.batch(ragged), None).options
    for row, example in zip(together, ragged, strict=True):
        alone = scorer.scores(scorer.batch([example]), None).options[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing_and_a_filled_one_does(
    family: str, make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer(family)
    batch = scorer.batch(ragged)
    bare = scorer.scores(batch, None).options
    adapter = scorer.new_adapter(0)
    torch.testing.assert_close(scorer.scores(batch, adapter).options, bare)
    changed = scorer.scores(batch, randomize(adapter)).options
    finite = torch.isfinite(bare)
    assert ((changed - bare)[finite].abs() > 1e-4).all()
    torch.testing.assert_close(scorer.scores(batch, None).options, bare, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "num_key_value_heads": 2}),
        ("cohere", {"logit_scale": 0.25, "num_key_value_heads": 2}),
        ("gemma2", {"final_logit_softcapping": 2.0, "num_key_value_heads": 2, "head_dim": 8}),
    ],
)
def test_logits_that_a_family_scales_or_caps(
    family: str, config: Any, make_folder: Any, make_scorer: Any, oracle: Any, ragged: list[Encoded]
) -> None:
    folder = make_folder(family, **config)
    scorer = make_scorer(folder, layers_to_transform="2,3")
    scores = scorer.scores(scorer.lower_blocks.fill(scorer.batch(ragged)), None)
    assert_equal(scores.options, oracle(folder, ragged))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_base_with_fp32_adapters_stays_close_to_fp32(
    family: str, make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    results = {}
    for dtype in ("fp32", "bf16"):
        scorer = make_scorer(family, dtype=dtype)
        adapter = randomize(scorer.new_adapter(0), size=0.1).requires_grad_()
        scores = scorer.scores(scorer.batch(ragged[:3]), adapter)
        loss = nll(scores, torch.tensor([1, 0, 4]), "options")
        loss.backward()
        gradients = [tensor.grad for tensor in adapter.mean_tensors()]
        assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
        assert all(tensor.dtype == torch.float32 for _, tensor in adapter.named_tensors())
        results[dtype] = scores.options.detach(), torch.cat([g.flatten() for g in gradients if g is not None])
    assert results["bf16"][0].dtype == torch.float32
    finite = torch.isfinite(results["fp32"][0])
    torch.testing.assert_close(results["bf16"][0][finite], results["fp32"][0][finite], rtol=1e-2, atol=0.05)
    similarity = torch.nn.functional.cosine_similarity(results["bf16"][1], results["fp32"][1], dim=0)
    assert similarity > 0.99


def test_the_likelihood_of_options_is_a_softmax_over_scores_and_that_of_tokens_a_sum(
    make_scorer: Callable[..., OptionScorer], ragged: list[Encoded]
) -> None:
    scorer = make_scorer("llama")
    batch = scorer.batch(ragged[:3])
    scores = scorer.scores(batch, None)
    by_hand = -sum(torch.log_softmax(row, -1)[answer] for row, answer in zip(scores.options, (1, 0, 4), strict=True))
    assert float(nll(scores, batch.answers, "options")) == pytest.approx(float(by_hand))
    chosen = -(scores.options[0, 1] + scores.options[1, 0] + scores.options[2, 4])
    assert float(nll(scores, batch.answers, "tokens")) == pytest.approx(float(chosen))


def test_output_space_collects_terms_of_every_layer_only_when_asked(
    make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer("llama", space="output")
    theta, phi = scorer.new_adapter(0), randomize(scorer.new_adapter(0))
    batch = scorer.batch(ragged)
    assert scorer.scores(batch, phi).terms is None
    terms = scorer.scores(batch, phi, Pass(None, theta)).terms
    assert terms is not None
    assert terms.coefficients.keys() == scorer.shapes.keys()
    assert len(scorer.shapes) == 4
    assert float(terms.kl()) > 0
    equal = scorer.scores(batch, theta, Pass(None, theta)).terms
    assert equal is not None
    assert float(equal.kl()) == 0.0


def test_output_space_terms_leave_padding_out(
    make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer("llama", space="output")
    theta, phi, prior = scorer.new_adapter(0), randomize(scorer.new_adapter(0)), Prior(1.0, 1.0, 0.01)

    def terms(examples: list[Encoded]) -> torch.Tensor:
        collected = scorer.scores(scorer.batch(examples), phi, Pass(None, theta)).terms
        assert collected is not None
        return torch.stack([collected.kl(), collected.negative_log_prior(prior)])

    torch.testing.assert_close(terms(ragged), sum(terms([one]) for one in ragged), rtol=1e-4, atol=1e-4)


def test_the_bare_model_is_bare_within_another_pass_and_after_an_error(
    make_scorer: Callable[..., OptionScorer], ragged: list[Encoded], randomize: Any
) -> None:
    scorer = make_scorer("llama")
    batch, adapter = scorer.batch(ragged), randomize(scorer.new_adapter(0))
    bare = scorer.scores(batch, None).options
    with scorer.wiring.use(adapter, batch):
        torch.testing.assert_close(scorer.scores(batch, None).options, bare, rtol=0, atol=0)
        assert scorer.wiring.bound is not None
    broken = randomize(make_scorer("llama", r=2, target_modules=("o_proj",)).new_adapter(0))
    with pytest.raises(KeyError):
        scorer.scores(batch, broken)
    assert scorer.wiring.bound is None
    torch.testing.assert_close(scorer.scores(batch, None).options, bare, rtol=0, atol=0)


def test_shared_noise_gives_equal_options_equal_scores_and_local_noise_does_not(
    make_scorer: Callable[..., OptionScorer], deep_llama: Path, ragged: list[Encoded]
) -> None:
    scorer = make_scorer(deep_llama, init_log_sigma=-1.0)
    twins = Encoded(ragged[1].prompt, (ragged[1].options[1],) * 3, None)
    batch = scorer.batch([twins, twins])
    adapter = scorer.new_adapter(0)

    def sample(kind: Any) -> torch.Tensor:
        noise = Noise(kind, torch.Generator().manual_seed(3), batch.mask)
        return scorer.scores(batch, adapter, Pass(noise)).options

    shared = sample("shared")
    # One weight sample per row: the same for all options of all its examples.
    torch.testing.assert_close(shared, shared[:1, :1].expand(2, 3), rtol=1e-4, atol=1e-4)
    local = sample("local")
    assert (local[:, 0] - local[:, 1]).abs().min() > 1e-2


def test_a_second_scorer_on_one_base_is_refused(make_scorer: Callable[..., OptionScorer]) -> None:
    scorer = make_scorer("llama")
    with pytest.raises(ConfigError, match=r"^this model carries adapters already: .*load the model once more$"):
        OptionScorer(scorer.base, scorer.adapter_config, scorer.prompt)


def test_settings_name_what_an_adapter_depends_on(make_scorer: Callable[..., OptionScorer]) -> None:
    settings = make_scorer("llama", dtype="bf16", r=3).settings()
    assert settings["dtype"] == "bf16"
    assert settings["r"] == 3
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert settings["list_options"] is False
