import torch

from abmll.posterior import Factors


def test_unbind_gives_single_layers_whose_gradients_reach_the_stack(make_factors):
    stack = make_factors(num_layers=3, d_out=5, d_in=7, r=2, k=4).requires_grad_()
    layers = stack.unbind()
    assert [tuple(tensor.shape) for tensor in layers[1]] == [(2, 7), (5, 2), (4, 7), (5, 4)]
    assert len(layers) == 3
    layers[1].mean_A.sum().backward()
    expected = torch.zeros_like(stack.mean_A)
    expected[1] = 1.0
    assert stack.mean_A.grad is not None
    torch.testing.assert_close(stack.mean_A.grad, expected)


def test_clone_detached_shares_neither_memory_nor_graph(make_factors):
    stack = make_factors().requires_grad_()
    clone = Factors(*(2 * tensor for tensor in stack)).clone_detached()
    assert not any(tensor.requires_grad for tensor in clone)
    before = stack.mean_A.detach().clone()
    clone.mean_A.zero_()
    torch.testing.assert_close(stack.mean_A.detach(), before)


def test_copy_overwrites_learnable_tensors_in_place(make_factors):
    phi, theta = make_factors().requires_grad_(), make_factors()
    addresses = [tensor.data_ptr() for tensor in phi]
    assert phi.copy_(theta) is phi
    assert [tensor.data_ptr() for tensor in phi] == addresses
    for mine, theirs in zip(phi, theta, strict=True):
        assert mine.requires_grad
        assert torch.equal(mine, theirs)


def test_requires_grad_switches_all_four(make_factors):
    stack = make_factors()
    assert all(tensor.requires_grad for tensor in stack.requires_grad_(True))
    assert not any(tensor.requires_grad for tensor in stack.requires_grad_(False))
