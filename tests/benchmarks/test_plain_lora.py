"""B1 computes what it says: cross-entropy of the answers' tokens, all adapters, Trainer's clipping and AdamW."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from abmll.language.base import Base
from abmll.language.encoding import Encoded
from benchmarks.plain_lora import PlainLora

# PEFT asks transformers for a name that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QV = ("q_proj", "v_proj")


def by_hand(base: Base, examples: list[Encoded]) -> torch.Tensor:
    """Mean cross-entropy of the right answers' tokens, each example read alone by the bare model."""
    losses = []
    for example in examples:
        assert example.answer is not None
        answer = example.options[example.answer]
        logits = base.model(input_ids=torch.tensor([[*example.prompt, *answer]])).logits[0]
        predicted = logits[len(example.prompt) - 1 : -1]
        losses.append(F.cross_entropy(predicted, torch.tensor(answer), reduction="none"))
    return torch.cat(losses).mean()


def num_adapted(plain: PlainLora) -> int:
    return sum(name.endswith("lora_A.default") for name, _ in plain.model.named_modules())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_is_the_cross_entropy_of_the_answers(
    make_base: Callable[..., Base], examples: list[Encoded], attention: str
) -> None:
    base = make_base(attention)
    plain = PlainLora(base.model, base.tokenizer, modules=QV, r=2, alpha=4.0)
    assert num_adapted(plain) == 4
    torch.testing.assert_close(plain.step(examples), by_hand(make_base(), examples).detach())


def test_steps_are_clipped_adamw(make_base: Callable[..., Base], examples: list[Encoded]) -> None:
    """AdamW's first step does not tell how long the gradient was; its second, on another batch, does."""
    base = make_base()
    head = base.model.get_parameter("model.embed_tokens.weight")  # and the head's
    with torch.no_grad():
        head.mul_(30.0)  # far from flat logits
    plain = PlainLora(base.model, base.tokenizer, modules=QV, r=2, alpha=4.0)
    generator = torch.Generator().manual_seed(0)
    trained = {name: tensor for name, tensor in plain.model.named_parameters() if tensor.requires_grad}
    with torch.no_grad():
        for tensor in trained.values():
            tensor.copy_(3.0 * torch.randn(tensor.shape, generator=generator))
    copies = {name: tensor.detach().clone().requires_grad_() for name, tensor in trained.items()}
    optimizer = torch.optim.AdamW(list(copies.values()), lr=5e-5, weight_decay=0.0)
    norms = []
    for batch in (examples[:1], examples[1:]):
        loss = torch.func.functional_call(plain.model, copies, kwargs=plain.inputs(batch)).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(copies.values()), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        plain.step(batch)
    assert min(norms) > 1
    assert max(norms) > 1.2 * min(norms)
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, copies[name], rtol=0, atol=2e-6, msg=name)


def test_chosen_layers_alone_are_adapted(make_base: Callable[..., Base]) -> None:
    base = make_base()
    plain = PlainLora(base.model, base.tokenizer, modules=("all-linear",), r=2, alpha=4.0, layers="top-1")
    assert num_adapted(plain) == 7
    assert all("layers.1." in name for name, tensor in plain.model.named_parameters() if tensor.requires_grad)


def test_inputs_are_padded_to_the_longest_and_labelled_on_the_answer(
    make_base: Callable[..., Base], examples: list[Encoded]
) -> None:
    base = make_base()
    inputs = PlainLora(base.model, base.tokenizer, modules=QV, r=2, alpha=4.0).inputs(examples)
    assert inputs["input_ids"].shape == (3, 11)
    assert inputs["attention_mask"].sum(1).tolist() == [11, 7, 7]
    assert (inputs["labels"] != -100).sum(1).tolist() == [2, 3, 1]
