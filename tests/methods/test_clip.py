"""Gradients are clipped as PyTorch clips them."""

import pytest
import torch

from ray_deltastn.methods.steps import _clipped


@pytest.mark.parametrize("most", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("shapes", [[], [(5,)], [(4, 3), (2,), (1, 2, 3)]])
def test_clipping_equals_pytorch(shapes, most):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    given = [p.grad.clone() for p in parameters]
    ours = _clipped(given, most)
    torch.testing.assert_close(given, [p.grad for p in parameters])  # unchanged
    torch.nn.utils.clip_grad_norm_(parameters, most)
    torch.testing.assert_close(ours, [p.grad for p in parameters])
