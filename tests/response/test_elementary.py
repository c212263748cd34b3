"""Functions in elementary operations: their values, and tangents that are the transpose of PyTorch's backward pass.

Oracle: float64; for random u and v, ⟨u, J v⟩ by forward mode, and Jᵀu by the backward pass of the tangent, against Jᵀu
by the backward pass of the function, at points where a row is zero.
"""

import math

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ray_deltastn.response.elementary import ELEMENTARY, Elementary
from ray_deltastn.response.linearise import rules
from ray_deltastn.response.response import Response


def rows():
    """Three rows of four numbers: zeros, random ones, and a single one."""
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[1] = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[2, 1] = 0.7
    return x


OTHER = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

WORDS = torch.arange(10.0, dtype=torch.float64).view(5, 2).sin()


def bags(x, **options):
    """Weighted sums of words."""
    return F.embedding_bag(torch.arange(x.numel()) % 5, WORDS, per_sample_weights=x.flatten(), **options)


FUNCTIONS = {
    "bags": lambda x: bags(x, mode="sum", padding_idx=2, offsets=torch.tensor([0, 3, 3])),
    "bags-2-d": lambda x: F.embedding_bag(
        torch.arange(x.numel()).view_as(x) % 5, WORDS, mode="sum", per_sample_weights=x
    ),
    "bags-with-end": lambda x: bags(x, mode="sum", offsets=torch.tensor([0, 2, x.numel()]), include_last_offset=True),
    "packed": lambda x: pack_padded_sequence(x[..., None], [1] + [x.shape[1]] * (len(x) - 1), True, False).data,
    "packed-steps-first": lambda x: pack_padded_sequence(x.T[..., None], [x.shape[1]] * len(x)).data,
    "norm": lambda x: x.norm(),
    "norm-of-nothing": lambda x: (0 * x).norm() + x.sum(),
    "norm-axis": lambda x: x.norm(dim=-1),
    "norm-axes": lambda x: x.norm(dim=(0, 1), keepdim=True),
    "norm-1": lambda x: x.norm(1, -1),
    "norm-1.5": lambda x: x[:2].norm(1.5, -1),
    "norm-3": lambda x: torch.norm(x, 3, 1, True),
    "norm-inf": lambda x: x.norm(math.inf, -1),
    "norm-frobenius": lambda x: torch.norm(x, "fro", dim=(0, 1)),
    "norm-type": lambda x: torch.norm(x, dim=0, dtype=torch.float64),
    "vector-norm": lambda x: torch.linalg.vector_norm(x, dim=(-1,), keepdim=True),
    "linalg-norm": lambda x: torch.linalg.norm(x),
    "linalg-norm-axis": lambda x: torch.linalg.norm(x, 3, dim=-1),
    "linalg-norm-frobenius": lambda x: torch.linalg.norm(x, "fro"),
    "matrix-norm": lambda x: torch.linalg.matrix_norm(torch.stack([x, 0 * x])),
    "normalize": lambda x: F.normalize(x, dim=-1, eps=1e-3),
    "normalize-3": lambda x: F.normalize(x, 3.0, 0, eps=1e-3),
    "cosine": lambda x: F.cosine_similarity(x, OTHER, eps=1e-3),
    "cosine-with-itself": lambda x: F.cosine_similarity(x, x, dim=-1),
    "cosine-pairs": lambda x: F.cosine_similarity(x[:, None], x[None], dim=-1, eps=1e-3),
    "pairwise": lambda x: F.pairwise_distance(x, torch.zeros_like(x), eps=0.0),
    "dist": lambda x: torch.dist(x, x) + x.dist(OTHER, 3),
    "cdist": lambda x: torch.cdist(x, OTHER),
    "cdist-to-itself": lambda x: torch.cdist(x[None], x[None], p=1.0),
    "pdist": lambda x: F.pdist(torch.cat([x, x[:1]])),
    "std": lambda x: x.std(-1),
    "std-all": lambda x: torch.std(x),
    "std-options": lambda x: torch.std(x, (0, 1), correction=0, keepdim=True),
    "std-mean": lambda x: torch.cat(torch.std_mean(x, -1)),
    "root": lambda x: F.relu(x - 0.1).sqrt(),
    "power": lambda x: F.relu(x - 0.1) ** 0.5 + torch.pow(F.relu(x - 0.1), 0.3),
    "arc": lambda x: (10 * x).clamp(-1, 1).acos() + torch.arcsin((10 * x).clamp(-1, 1)),
    "atan2": lambda x: torch.atan2(x, x.square()),
    "sinc": torch.sinc,
    "cumprod": lambda x: x.cumprod(-1),
    "prelu": lambda x: F.prelu(x[:, :, None], torch.full((4,), 0.3, dtype=torch.float64)),
    "prelu-one-weight": lambda x: F.prelu(x, torch.tensor([0.3], dtype=torch.float64)),
    "pool-1": lambda x: F.lp_pool1d(x, 2.0, 2),
    "pool-2": lambda x: F.lp_pool2d(x[None], 2, (3, 2), stride=1),
    "glu": F.glu,
    "hardsigmoid": F.hardsigmoid,
    "weight-norm": lambda x: torch._weight_norm(x[1:], torch.ones(2, 1, dtype=torch.float64), 0),
}


def tangent_and_transpose(function, x, v, u):
    v = v.clone().requires_grad_()
    with fwAD.dual_level(), Elementary() as elementary:
        output = function(fwAD.make_dual(x.clone(), v))
        primal, tangent = fwAD.unpack_dual(output)
    assert elementary.seen
    (gradient,) = torch.autograd.grad((tangent * u).sum(), v)
    return primal, tangent.detach(), gradient


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_tangents_are_those_of_the_backward_pass(name):
    function = FUNCTIONS[name]
    x = rows().requires_grad_()
    expected = function(x)
    u, v = (
        torch.randn(t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for t in (expected, x)
    )
    (gradient,) = torch.autograd.grad((expected * u).sum(), x)
    assert gradient.isfinite().all()
    value, tangent, found = tangent_and_transpose(function, x.detach(), v, u)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(found, gradient)
    torch.testing.assert_close((tangent * u).sum(), (gradient * v).sum())


def test_a_root_of_zero_has_the_derivative_zero():
    x = torch.zeros(2, dtype=torch.float64)
    _, tangent, gradient = tangent_and_transpose(torch.sqrt, x, torch.ones(2), torch.ones(2))
    assert not tangent.any()
    assert not gradient.any()


@pytest.mark.parametrize(
    "function",
    [
        torch.square,
        lambda x: x.pow(2),
        lambda x: x**-0.5,
        lambda x: 2**x,
        lambda x: x**x,
        lambda x: torch.linalg.norm(x, 2),
        lambda x: torch.linalg.matrix_norm(x, "nuc"),
        lambda x: torch.norm(x, "nuc"),
        lambda x: x.norm(-math.inf),
    ],
)
def test_other_functions_and_arguments_are_left_alone(function):
    x = OTHER.abs()
    with Elementary() as elementary:
        found = function(x)
    assert not elementary.seen
    assert torch.equal(found, function(x))


def test_the_mode_is_entered_only_if_it_was_asked_for():
    response = Response(nn.Linear(4, 3), 1)
    asked = []

    class Asked(Elementary):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            asked.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_deltastn.response.linearise.Elementary", Asked)
        for elementary in (False, True):
            response.elementary = elementary
            with rules(response):
                torch.ones(2).norm()
            assert bool(asked) == elementary


def test_every_replacement_is_tested():
    seen = set()

    def rule(function):
        replacement = ELEMENTARY.get(function)
        return getattr(replacement, "func", replacement)

    class Recording(Elementary):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.add(rule(func))
            return super().__torch_function__(func, types, args, kwargs)

    with Recording():
        for function in FUNCTIONS.values():
            function(rows())
    assert {rule(function) for function in ELEMENTARY} - {rule(F.scaled_dot_product_attention)} <= seen  # see attention
