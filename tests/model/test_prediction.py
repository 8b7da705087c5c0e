"""Predictions at the mean and over samples, against dense sampling of the weights and by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from abmll import AbmllModel
from abmll.common.config import PredictConfig, PromptConfig
from abmll.common.errors import DataError
from abmll.language.activation_cache import ActivationCache
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import Pass
from abmll.model.prediction import entropy, predict
from abmll.posterior import Noise
from abmll.tasks.order import sample_seed

PROMPT = PromptConfig(instruction=False, list_options=False, length_normalize=False)
MODULES = ["q_proj", "v_proj", "up_proj"]


def sharpen(model: nn.Module) -> None:
    """Make a random model's weights large enough for its probabilities to differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> AbmllModel:
    """A sharpened Llama; theta on its second layer has a mean and uneven standard deviations, all far from zero."""
    model = AbmllModel.from_base(
        str(tiny_llama), prompt=PROMPT, r=2, target_modules=MODULES, layers_to_transform="1", dtype="fp32", device="cpu"
    )
    sharpen(model.scorer.base.model)
    generator = torch.Generator().manual_seed(2)
    for tensor in model.theta.mean_tensors():
        tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    for tensor in model.theta.scale_tensors():
        tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator) - 1.3)
    return model


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.fixture(scope="module")
def examples() -> list[Encoded]:
    """Two to four options; lengths such that batches do not keep the order."""
    return [
        Encoded(tokens(40, 0), (tokens(2, 1), tokens(3, 2)), 1),
        Encoded(tokens(6, 3), (tokens(1, 4), tokens(4, 5), tokens(2, 6), tokens(2, 7)), 0),
        Encoded(tokens(20, 8), (tokens(3, 9), tokens(1, 10), tokens(1, 11)), None, truncated=5),
    ]


def test_at_the_mean_probabilities_are_the_softmax_of_the_scores(model: AbmllModel, examples: list[Encoded]) -> None:
    prediction = predict(model.scorer, [model.theta], examples)
    assert prediction.probs.dtype == torch.float64
    assert prediction.num_options.tolist() == [2, 4, 3]
    for row, example in zip(prediction.lists(), examples, strict=True):
        scores = model.scorer.scores(model.scorer.batch([example]), model.theta).options[0]
        assert row == pytest.approx(torch.softmax(scores.double(), -1).tolist(), abs=1e-5)
    assert prediction.answers.tolist() == [max(range(len(row)), key=row.__getitem__) for row in prediction.lists()]
    by_hand = [-sum(p * torch.tensor(p).double().log().item() for p in row) for row in prediction.lists()]
    assert prediction.entropy.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert torch.equal(prediction.entropy, prediction.expected_entropy)
    assert prediction.mutual_information.tolist() == [0.0, 0.0, 0.0]
    assert prediction.truncated == 1


@pytest.mark.parametrize("samples", [0, 5])
@pytest.mark.parametrize("noise", ["shared", "local"])
def test_probabilities_sum_to_one_over_an_example_s_own_options(
    samples: int, noise: str, model: AbmllModel, examples: list[Encoded]
) -> None:
    prediction = predict(model.scorer, [model.theta], examples, sampled(samples, noise))
    assert prediction.probs.shape == (3, 4)
    assert prediction.probs.sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    assert prediction.probs[0, 2:].tolist() == [0.0, 0.0]
    assert prediction.probs[2, 3].item() == 0.0
    assert [len(row) for row in prediction.lists()] == [2, 4, 3]
    assert (prediction.mutual_information >= 0).all()
    assert (prediction.entropy <= prediction.num_options.double().log() + 1e-12).all()


def sampled(samples: int, noise: Any = "shared", rank: int = 0) -> PredictConfig:
    return PredictConfig(num_samples=samples, prediction_noise=noise, prediction_noise_rank=rank)


@torch.no_grad()
def draw(
    model: AbmllModel, example: Encoded, samples: int, noise: Any, seed: int, phi: Adapter | None = None, rank: int = 0
) -> Tensor:
    """(S, C): the samples over which ``predict`` averages for a single example."""
    scorer = model.scorer
    batch = scorer.lower_blocks.fill(scorer.batch([example]))
    rows = []
    for number in range(samples):
        generator = torch.Generator().manual_seed(sample_seed(seed, "prediction", number))
        how = Pass(Noise(noise, generator, batch.mask, rank))
        rows.append(scorer.scores(batch, phi or model.theta, how).options[0])
    return torch.stack(rows).double().softmax(-1)


@pytest.mark.parametrize("how", [sampled(0), sampled(3), PredictConfig(predictive="linearized")])
def test_several_adapters_answer_as_the_mixture_of_each_alone_over_lower_blocks_read_once(
    how: PredictConfig, model: AbmllModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = model.theta.clone()
    for tensor in other.mean_tensors():
        tensor.mul_(1.5)
    seeds = {3: model.theta, sample_seed(3, "member", 1): other, sample_seed(3, "member", 2): None}
    alone = [predict(model.scorer, [phi], examples, how, seed=seed) for seed, phi in seeds.items()]
    computed: list[int] = []
    lower = model.scorer.lower_blocks
    output = lower.output
    monkeypatch.setattr(lower, "output", lambda batch: computed.append(len(batch.answers)) or output(batch))
    together = predict(model.scorer, list(seeds.values()), examples, how, seed=3)
    assert sum(computed) == len(examples)
    probs, doubt = (torch.stack([getattr(one, name) for one in alone]) for name in ("probs", "expected_entropy"))
    torch.testing.assert_close(together.probs, probs.mean(0), rtol=0, atol=3e-7)
    torch.testing.assert_close(together.expected_entropy, doubt.mean(0), rtol=0, atol=3e-7)
    torch.testing.assert_close(together.entropy, entropy(together.probs))
    assert not torch.allclose(probs[0], probs[1], atol=1e-3)


@pytest.mark.parametrize("noise", ["shared", "local"])
@pytest.mark.parametrize("rank", [0, 4])
def test_entropies_are_those_of_the_single_samples(
    noise: Any, rank: int, model: AbmllModel, examples: list[Encoded]
) -> None:
    """One example, its samples drawn again by hand from the same seed."""
    prediction = predict(model.scorer, [model.theta], examples[1:2], sampled(7, noise, rank), seed=3)
    probs_S_C = draw(model, examples[1], 7, noise, seed=3, rank=rank)
    mean = probs_S_C.mean(0)
    total = -(mean * mean.log()).sum()
    expected = -(probs_S_C * probs_S_C.log()).sum(-1).mean()
    assert prediction.probs[0].tolist() == pytest.approx(mean.tolist(), abs=1e-5)
    assert prediction.entropy.item() == pytest.approx(total.item(), abs=1e-5)
    assert prediction.expected_entropy.item() == pytest.approx(expected.item(), abs=1e-5)
    assert prediction.mutual_information.item() == pytest.approx((total - expected).item(), abs=1e-5)
    assert prediction.mutual_information.item() > 1e-3


def test_one_sample_has_an_opinion_of_its_own_but_none_on_its_uncertainty(
    model: AbmllModel, examples: list[Encoded]
) -> None:
    once = predict(model.scorer, [model.theta], examples, sampled(1))
    mean = predict(model.scorer, [model.theta], examples)
    assert once.mutual_information.tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert (once.probs - mean.probs).abs().max() > 1e-2


def test_the_seed_decides_and_nothing_else_does(model: AbmllModel, examples: list[Encoded]) -> None:
    def probs(seed: int, **how: Any) -> Tensor:
        return predict(model.scorer, [model.theta], examples, sampled(3), seed=seed, **how).probs

    first = probs(1)
    state = torch.get_rng_state()
    assert torch.equal(probs(1), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(probs(1), first)
    assert (probs(2) - first).abs().max() > 1e-3
    cache = ActivationCache(10**8)
    torch.testing.assert_close(probs(1, cache=cache), first, rtol=0, atol=1e-5)
    torch.testing.assert_close(probs(1, cache=cache), first, rtol=0, atol=1e-5)


def test_results_come_in_the_order_of_the_examples_however_they_are_batched(
    model: AbmllModel, examples: list[Encoded]
) -> None:
    whole = predict(model.scorer, [model.theta], examples)
    for max_tokens in (1, 60, 10_000):
        batched = predict(model.scorer, [model.theta], examples, max_tokens=max_tokens)
        torch.testing.assert_close(batched.probs, whole.probs, rtol=0, atol=1e-5)
    turned = predict(model.scorer, [model.theta], examples[::-1])
    torch.testing.assert_close(turned.probs.flip(0), whole.probs, rtol=0, atol=1e-5)


def test_without_an_adapter_the_bare_model_predicts(model: AbmllModel, examples: list[Encoded]) -> None:
    bare = predict(model.scorer, [None], examples)
    fresh = predict(model.scorer, [model.scorer.new_adapter(0)], examples)
    torch.testing.assert_close(bare.probs, fresh.probs, rtol=0, atol=1e-6)
    assert torch.equal(predict(model.scorer, [None], examples, sampled(4)).probs, bare.probs)


def test_no_gradient_graph_is_kept(model: AbmllModel, examples: list[Encoded]) -> None:
    phi = model.theta.clone().requires_grad_()
    assert not predict(model.scorer, [phi], examples, sampled(2)).probs.requires_grad


def test_a_weight_sample_of_some_rank_meets_every_batch_alike(model: AbmllModel, examples: list[Encoded]) -> None:
    together = predict(model.scorer, [model.theta], examples, sampled(3, rank=4))
    for row, example in zip(together.lists(), examples, strict=True):
        alone = predict(model.scorer, [model.theta], [example], sampled(3, rank=4)).lists()[0]
        assert row == pytest.approx(alone, abs=1e-5)


def test_nothing_to_predict_is_refused(model: AbmllModel) -> None:
    with pytest.raises(DataError, match=r"^there are no examples to predict$"):
        predict(model.scorer, [model.theta], [])


def test_entropy_of_known_distributions() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    assert entropy(probs).tolist() == pytest.approx([0.0, 0.6931471805599453, 1.0986122886681098], abs=1e-12)


def test_questions_behind_one_prefix_are_answered_as_each_by_itself(model: AbmllModel) -> None:
    prompts = [(*range(40, 90), place) for place in range(3, 43)]
    examples = [Encoded(prompt, ((5, 6), (7,)), 0) for prompt in prompts]
    together = predict(model.scorer, [model.theta], examples, max_tokens=100)
    alone = torch.cat([predict(model.scorer, [model.theta], [one]).probs for one in examples])
    torch.testing.assert_close(together.probs, alone, rtol=1e-5, atol=1e-6)


class DenseOracle:
    """The plain model of transformers, with weights drawn entry by entry."""

    def __init__(self, folder: Path, model: AbmllModel) -> None:
        self.plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        sharpen(self.plain)
        scaling = model.scorer.adapter_config.lora_alpha / model.scorer.adapter_config.r
        self.layers: dict[str, tuple[nn.Linear, Tensor, Tensor]] = {}
        for name, layer in model.theta.by_layer().items():
            linear = self.plain.get_submodule(name)
            mean = linear.weight.detach() + scaling * layer.mean_B @ layer.mean_A
            sigma = (layer.scale_B + layer.scale_A).exp()  # (d_out, 1) + (1, d_in)
            self.layers[name] = linear, mean, sigma

    @torch.no_grad()
    def shared(self, example: Encoded, samples: int) -> Tensor:
        """(S, C): new weights for every sample, each option read alone with them."""
        generator = torch.Generator().manual_seed(11)
        width = len(example.prompt) + max(map(len, example.options))
        ids = torch.zeros(len(example.options), width, dtype=torch.long)  # what follows cannot be seen from before
        for row, option in zip(ids, example.options, strict=True):
            row[: len(example.prompt) + len(option)] = torch.tensor(example.prompt + option)
        rows = []
        for _ in range(samples):
            for linear, mean, sigma in self.layers.values():
                linear.weight.copy_(mean + sigma * torch.randn(mean.shape, generator=generator))
            predicted = self.plain(ids).logits.double().log_softmax(-1)[:, len(example.prompt) - 1 :]
            scores = [
                sum(predicted[c, place, token] for place, token in enumerate(option))
                for c, option in enumerate(example.options)
            ]
            rows.append(torch.stack([torch.as_tensor(score) for score in scores]))
        return torch.stack(rows).softmax(-1)

    @torch.no_grad()
    def local(self, example: Encoded, samples: int) -> Tensor:
        """(S, C) for options of one token: every token of the prompt meets weights of its own."""
        generator = torch.Generator().manual_seed(12)
        handles = []

        def per_token(sigma: Tensor) -> Callable[..., Tensor]:
            def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
                (x,) = inputs
                weights = sigma * torch.randn(*x.shape[:2], *sigma.shape, generator=generator)
                return output + torch.einsum("ntoi,nti->nto", weights, x)

            return hook

        for linear, mean, sigma in self.layers.values():
            linear.weight.copy_(mean)
            handles.append(linear.register_forward_hook(per_token(sigma)))
        ids = torch.tensor([example.prompt]).expand(samples, -1)
        logits = self.plain(ids).logits[:, -1].double()
        for handle in handles:
            handle.remove()
        return logits[:, [option[0] for option in example.options]].softmax(-1)


def assert_same_distribution(ours_S_C: Tensor, dense_S_C: Tensor) -> None:
    """Means of probabilities, of their squared deviations and of entropies within four standard errors."""
    center = dense_S_C.mean(0)
    for statistic in (lambda p: p, lambda p: (p - center).square(), lambda p: entropy(p)[:, None]):
        ours, dense = statistic(ours_S_C), statistic(dense_S_C)
        error = (ours.var(0) / len(ours) + dense.var(0) / len(dense)).sqrt()
        assert ((ours.mean(0) - dense.mean(0)).abs() < 4 * error).all()


def assert_told_apart(model: AbmllModel, example: Encoded, noise: str, dense_S_C: Tensor) -> None:
    """The comparison would notice a standard deviation that is 1.4 times too large, or none."""
    wider = model.theta.clone()
    for factors in wider.stacks.values():
        factors.scale_B.add_(math.log(1.4))
    with pytest.raises(AssertionError):
        assert_same_distribution(draw(model, example, 500, noise, 5, wider), dense_S_C)
    mean = predict(model.scorer, [model.theta], [example]).probs
    with pytest.raises(AssertionError):
        assert_same_distribution(mean.expand(500, -1), dense_S_C)


@pytest.mark.parametrize("length", [8, 45])  # fewer and more tokens than the layer has inputs: two ways of drawing
def test_shared_samples_agree_with_weights_drawn_entry_by_entry(
    length: int, model: AbmllModel, tiny_llama: Path
) -> None:
    example = Encoded(tokens(length, 30), (tokens(2, 31), tokens(2, 32), tokens(2, 33)), None)
    dense = DenseOracle(tiny_llama, model).shared(example, 500)
    assert_same_distribution(draw(model, example, 500, "shared", 5), dense)
    assert_same_distribution(draw(model, example, 500, "shared", 5, rank=16), dense)
    assert_told_apart(model, example, "shared", dense)


def test_local_samples_agree_with_weights_drawn_for_every_token(model: AbmllModel, tiny_llama: Path) -> None:
    example = Encoded(tokens(9, 30), (tokens(1, 31), tokens(1, 32), tokens(1, 33)), None)
    dense = DenseOracle(tiny_llama, model).local(example, 1000)
    assert_same_distribution(draw(model, example, 500, "local", 6), dense)
    assert_told_apart(model, example, "local", dense)


def with_scale(model: AbmllModel, log_factor: float) -> Adapter:
    """Theta with every standard deviation multiplied by exp(log_factor)."""
    phi = model.theta.clone()
    for factors in phi.stacks.values():
        factors.scale_B.add_(log_factor)
    return phi


LINEARIZED = PredictConfig(predictive="linearized")


def test_linearized_probabilities_near_those_of_many_weight_samples(model: AbmllModel) -> None:
    """The first order holds where standard deviations are small: it finds the disagreement, and moves towards the mean
    of the samples; how the scores' own means bend is of second order and stays out."""
    example = Encoded(tokens(8, 30), (tokens(2, 31), tokens(2, 32), tokens(2, 33)), None)
    phi = with_scale(model, math.log(0.25))
    drawn = draw(model, example, 1000, "shared", 5, phi)
    linearized = predict(model.scorer, [phi], [example], LINEARIZED)
    mean = predict(model.scorer, [phi], [example])
    far = (mean.probs - drawn.mean(0)).abs().max()
    assert (linearized.probs - drawn.mean(0)).abs().max() < 0.8 * far
    disagreement = entropy(drawn.mean(0)) - entropy(drawn).mean()
    assert linearized.mutual_information.item() == pytest.approx(disagreement.item(), rel=0.2)


def test_linearized_predictions_are_deterministic_and_independent_of_the_batch(
    model: AbmllModel, examples: list[Encoded]
) -> None:
    together = predict(model.scorer, [model.theta], examples, LINEARIZED)
    again = predict(model.scorer, [model.theta], examples, LINEARIZED, seed=5)
    torch.testing.assert_close(together.probs, again.probs, rtol=0, atol=0)
    assert together.probs.sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    assert together.probs[0, 2:].tolist() == [0.0, 0.0]
    for row, example in zip(together.lists(), examples, strict=True):
        # Another number of options makes another set of points: equal to the accuracy of either.
        alone = predict(model.scorer, [model.theta], [example], LINEARIZED).lists()[0]
        assert row == pytest.approx(alone, abs=5e-3)


def test_without_spread_the_linearized_prediction_is_that_at_the_mean(
    model: AbmllModel, examples: list[Encoded]
) -> None:
    phi = with_scale(model, -30.0)
    linearized, mean = predict(model.scorer, [phi], examples, LINEARIZED), predict(model.scorer, [phi], examples)
    torch.testing.assert_close(linearized.probs, mean.probs, rtol=0, atol=1e-6)
