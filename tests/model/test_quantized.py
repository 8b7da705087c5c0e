"""Language models that are quantised while they are loaded: everything that works on a plain one works on them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from abmll import AbmllModel, MetaTrainer, TaskPosterior, TrainConfig
from abmll.common.config import QUANTIZATIONS, LearningConfig, ModelConfig, PlaceConfig, PromptConfig
from abmll.common.errors import CheckpointError, ConfigError
from abmll.language import quantized
from abmll.language.base import Base, is_plain, load_base
from abmll.language.fingerprint import fingerprint
from abmll.tasks import Task
from tests.language.folders import alter

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
TARGETS = ["q_proj", "v_proj", "up_proj"]
TEXT = torch.tensor([[5, 80, 90, 30, 7, 9, 120]])
# PEFT asks a deprecated property of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
kinds = pytest.mark.parametrize("kind", QUANTIZATIONS)


@pytest.fixture(scope="module")
def tiny_llama(wide_llama: Path) -> Path:
    """Here the tiny Llama has rows of a whole block of 4-bit codes."""
    return wide_llama


def load(folder: Path, kind: str | None, dtype: str = "fp32") -> Base:
    chosen: dict[str, Any] = {"dtype": dtype, **({} if kind is None else {kind: True})}
    return load_base(ModelConfig(str(folder), device="cpu", **chosen), print, quiet=True)


def learner(base: Base) -> AbmllModel:
    model = AbmllModel.from_base(base, prompt=SHORT, r=2, layers_to_transform="0-1", target_modules=TARGETS)
    model.learning = LearningConfig()
    return model


def trained(base: Base, tasks: list[Task], folder: Path) -> AbmllModel:
    model = learner(base)
    config = TrainConfig(
        output_dir=str(folder), max_steps=3, inner_steps=2, per_device_train_batch_size=2, calibration_tasks=0
    )
    MetaTrainer(model, tasks, config).train()
    return model


@kinds
def test_a_quantised_base_trains_adapts_predicts_and_is_loaded_in_the_same_form(
    kind: str, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path
) -> None:
    base = load(tiny_llama, kind)
    model = trained(base, toy_tasks, tmp_path / "run")  # which refuses a theta that does not move
    again = AbmllModel.from_pretrained(tmp_path / "run")
    assert again.scorer.base.quantization == kind
    assert again.scorer.base.fingerprint == base.fingerprint == fingerprint(base.model)
    examples, asked = toy_tasks[0].train[:6], toy_tasks[0].train[6:10]
    for how in ("head", "full"):
        posterior = model.adapt(examples, how=how, steps=3)
        posterior.save_pretrained(tmp_path / how)
        loaded = TaskPosterior.from_pretrained(tmp_path / how)
        probs = posterior.predict(asked).probs
        assert torch.equal(torch.as_tensor(loaded.predict(asked).probs), torch.as_tensor(probs))
    with pytest.raises(CheckpointError, match="other weights"):
        AbmllModel.from_pretrained(tmp_path / "run", model=load(tiny_llama, None))


def input_gradient(base: Base) -> tuple[Tensor, Tensor]:
    """Logits of the text and the gradient of their sum of squares with respect to its embeddings."""
    inputs = base.model.get_input_embeddings()(TEXT).detach().requires_grad_()
    logits = base.model(inputs_embeds=inputs).logits
    logits.square().sum().backward()
    assert inputs.grad is not None
    return logits.detach(), inputs.grad


@kinds
def test_logits_and_gradients_are_those_of_the_weights_that_the_codes_stand_for(kind: str, tiny_llama: Path) -> None:
    base, plain = load(tiny_llama, kind), load(tiny_llama, None)
    changed = 0
    for name, module in plain.model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            codes = base.model.get_submodule(name)
            weight = codes(torch.eye(module.in_features)[None])[0].T.detach()  # a layer's answers to the unit vectors
            assert not is_plain(codes.weight)
            assert 0 < (weight - module.weight).abs().mean() < 0.12 * module.weight.abs().mean()
            module.weight.data, changed = weight.contiguous(), changed + 1
    assert changed == 14
    with torch.no_grad():
        before = base.model(TEXT).logits  # a pass without gradients must leave the layers as they are
    expected, gradient = input_gradient(plain)
    for found, wanted in zip((before, *input_gradient(base)), (expected, expected, gradient), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@kinds
def test_twins_share_codes_and_scales_and_answer_alike_in_any_order(kind: str, tiny_llama: Path) -> None:
    base = load(tiny_llama, kind)
    twins = [base.twin(), base.twin(), base.twin().twin()]
    assert {twin.quantization for twin in twins} == {kind}
    assert {twin.fingerprint for twin in twins} == {fingerprint(twin.model) for twin in twins}
    own = {tensor.data_ptr() for tensor in quantized.side_tensors(base.model)}
    assert bool(own) == (kind != "load_in_int8_torchao")
    for twin in twins:
        assert {tensor.data_ptr() for tensor in quantized.side_tensors(twin.model)} == own
    with torch.no_grad():
        one, *others = [twin.model(TEXT).logits for twin in (*twins, base)]
    assert all(torch.equal(one, other) for other in others)


@kinds
def test_peft_gives_the_same_logits_on_the_same_quantised_base(
    kind: str, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path
) -> None:
    base = load(tiny_llama, kind)
    model = trained(base, toy_tasks, tmp_path / "run")
    posterior = model.theta_as_posterior("toy")
    posterior.export_peft(tmp_path / "peft")
    other = load(tiny_llama, kind)
    with torch.no_grad():
        bare = other.model(TEXT).logits
        theirs: Any = PeftModel.from_pretrained(other.model, str(tmp_path / "peft"))
        expected = theirs.train()(TEXT).logits  # in evaluation mode LLM.int8 rounds its inputs; there is no dropout
        scorer = model.scorer
        with scorer.wiring.use(model.theta, scorer.batch(scorer.encode(toy_tasks[0].train[:1], "toy"))):
            found = base.model(TEXT).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, bare, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="cannot merge into a quantised layer; export with --format peft"):
        posterior.export_merged(tmp_path / "merged")


def test_the_forms_of_a_model_have_fingerprints_of_their_own(tiny_llama: Path) -> None:
    assert len({load(tiny_llama, kind).fingerprint for kind in (None, *QUANTIZATIONS)}) == 4


@pytest.mark.parametrize("kind", ["load_in_4bit", "load_in_8bit"])
def test_scales_that_lie_beside_the_weights_count_in_the_fingerprint(kind: str, tiny_llama: Path) -> None:
    base = load(tiny_llama, kind)
    layer: Any = base.model.get_submodule("model.layers.1.mlp.up_proj")
    scales = layer.state.SCB if kind == "load_in_8bit" else layer.weight.quant_state.state2.absmax
    scales.mul_(1.5)
    assert fingerprint(base.model) != base.fingerprint


@kinds
def test_a_single_bit_counts_although_it_is_quantised(
    kind: str, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    trained(load(folder, kind), toy_tasks, tmp_path / "run")

    def change(weights: dict[str, Tensor]) -> None:
        row = weights["model.layers.1.mlp.down_proj.weight"][5]
        row[row.abs().argmax()] *= -1  # the bit of its sign; of a weight near zero it may change no code

    alter(folder, change)
    with pytest.raises(CheckpointError, match="other weights"):
        AbmllModel.from_pretrained(tmp_path / "run")


@kinds
def test_gradient_checkpointing(kind: str, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> None:
    model = trained(load(tiny_llama, kind), toy_tasks, tmp_path / "run")
    plain = model.adapt(toy_tasks[0].train[:4], how="full", steps=2)
    model.gradient_checkpointing_enable()
    found = model.adapt(toy_tasks[0].train[:4], how="full", steps=2)
    pairs = zip(plain.phi.named_tensors(), found.phi.named_tensors(), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)


@kinds
def test_half_precision(kind: str, tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> None:
    base = load(tiny_llama, kind, "bf16")
    assert base.model.dtype == torch.bfloat16
    posterior = trained(base, toy_tasks, tmp_path / "run").adapt(toy_tasks[0].train[:6], how="full", steps=2)
    assert torch.isfinite(torch.as_tensor(posterior.predict(toy_tasks[0].train[6:8]).probs)).all()


def test_from_base_takes_the_setting(tiny_llama: Path) -> None:
    model = AbmllModel.from_base(str(tiny_llama), device="cpu", dtype="fp32", load_in_4bit=True)
    assert model.scorer.settings()["load_in_4bit"] is True
    plain = AbmllModel.from_base(str(tiny_llama), device="cpu", dtype="fp32")
    assert not set(QUANTIZATIONS) & plain.scorer.settings().keys()  # as in runs of older versions


@pytest.mark.parametrize("config", [ModelConfig, PlaceConfig])
def test_one_form_at_a_time(config: Any) -> None:
    with pytest.raises(ConfigError, match="load_in_4bit: excludes load_in_8bit; choose one of them"):
        config(load_in_4bit=True, load_in_8bit=True)


@kinds
def test_a_library_that_is_not_installed(kind: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf'{kind}: needs .* and accelerate; run: pip install "abmll\[quantized\]"$'):
        load(tiny_llama, kind)


def test_a_model_that_was_saved_quantised_is_loaded_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    base = load(tiny_llama, "load_in_8bit")
    base.model.save_pretrained(tmp_path / "saved")
    base.tokenizer.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved", None)
    assert (saved.quantization, saved.fingerprint) == (None, base.fingerprint)
    assert torch.equal(saved.model(TEXT).logits, base.model(TEXT).logits)
    with pytest.raises(ConfigError, match=r"load_in_4bit: .*saved is quantised already and is loaded as it is"):
        load(tmp_path / "saved", "load_in_4bit")


def test_layers_that_a_processor_would_read_wrongly_in_4_bits(family_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"rows of 32 .*no multiple of 64.*; use load_in_8bit"):
        load(family_folder("llama"), "load_in_4bit")
