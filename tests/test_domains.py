"""Domains: s, its inverse and its derivatives on each map, and hyperparameters that are refused."""

import math

import pytest
import torch

from ray_deltastn.domains import Bounded, Integer, LowerBounded, Positive, Unbounded, UpperBounded
from ray_deltastn.space import HyperSpace
from tests.spaces import ALL, BOUNDED, CONTINUOUS, DOMAINS, SETS, SIGMOID_2, mixed, on_line, one, reach, using

# --- s and its inverse ---------------------------------------------------------------------------------------------


def by_hand(domain, lam, domains):
    """s(λ) in Python's own floats (Eqn. F.1)."""
    if isinstance(domain, Bounded):
        share = min(max((lam + 2) / 4, 0.0), 1.0) if on_line(domain, domains) else 1 / (1 + math.exp(-lam))
        value = domain.low + (domain.high - domain.low) * share
        return float(round(value)) if domain.integer else value
    if isinstance(domain, Positive):
        return math.exp(lam)
    if isinstance(domain, LowerBounded):
        return domain.low + math.log1p(math.exp(lam))
    if isinstance(domain, UpperBounded):
        return domain.high - math.log1p(math.exp(-lam))
    return lam


@SETS
@ALL
def test_values_equal_the_formula(name, domains):
    lam = torch.linspace(-20, 20, 83, dtype=torch.float64)
    values = one(name, domains).values(lam[:, None])[:, 0]
    expected = torch.tensor([by_hand(DOMAINS[name], x, domains) for x in lam.tolist()], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)


@SETS
@pytest.mark.parametrize("name", CONTINUOUS)
def test_round_trip_through_values_keeps_float32_lambda(name, domains):
    most = reach(name, domains, 15)
    lam = torch.linspace(-most, most, 301)[:, None]
    space = one(name, domains)
    back = space.inverse(space.values(lam))
    torch.testing.assert_close(back, lam.double(), rtol=1e-4, atol=1e-9)
    if on_line(DOMAINS[name], domains):
        assert torch.equal(back.float(), lam)  # to the bit


@SETS
@ALL
def test_values_are_finite_and_inside_for_any_lambda(name, domains):
    low, high = DOMAINS[name].bounds
    values = one(name, domains).values(torch.linspace(-80, 80, 641)[:, None])
    assert values.isfinite().all()
    # The paper's sigmoid may be one rounding error above its upper bound, where it is saturated.
    tiny = 1e-15 if domains == "open" else 0.0
    assert ((values >= low) & (values <= high + tiny)).all()


@SETS
@ALL
def test_inverse_is_finite_at_the_bounds(name, domains):
    space = one(name, domains)
    for bound, sign in zip(DOMAINS[name].bounds, (-1, 1), strict=True):
        if math.isfinite(bound):
            lam = space.inverse(torch.tensor([bound], dtype=torch.float64))
            assert lam.isfinite().all()
            assert sign * lam.item() == 2.0 if on_line(DOMAINS[name], domains) else sign * lam.item() > 15
            assert space.values(lam).isfinite().all()


@pytest.mark.parametrize("name", BOUNDED)
def test_the_line_reaches_its_bounds_exactly(name):
    domain, space = DOMAINS[name], one(name)
    for lam, bound in ((-2.0, domain.low), (-3.0, domain.low), (2.0, domain.high), (3.0, domain.high)):
        assert space.values(torch.tensor([lam])).item() == bound
    for bound in domain.bounds:
        space.start_from({"p": bound})
        value = space.values().item()
        assert value == bound
        assert space.fixed_values({"p": value}).item() == bound  # a value on a bound is a valid constant


@SETS
@ALL
def test_values_increase_with_lambda(name, domains):
    most = reach(name, domains, 15)
    steps = one(name, domains).values(torch.linspace(-most, most, 301)[:, None])[:, 0].diff()
    assert (steps >= 0).all()
    if name in CONTINUOUS:
        assert (steps > 0).all()


@SETS
@pytest.mark.parametrize("name", CONTINUOUS)
def test_derivatives_pass_gradcheck(name, domains):
    space = one(name, domains)
    most = reach(name, domains, 6) - 0.1  # finite differences need both sides
    lam = torch.linspace(-most, most, 13, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(space.values, lam)
    values = space.values(lam).detach().requires_grad_()
    assert torch.autograd.gradcheck(space.inverse, values, eps=1e-8, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in BOUNDED if name in CONTINUOUS])
def test_the_line_has_one_slope_in_its_box(name):
    lam = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(one(name).values(lam).sum(), lam)
    low, high = DOMAINS[name].bounds
    torch.testing.assert_close(slope, torch.full_like(slope, (high - low) / 4), rtol=1e-12, atol=0)


@SETS
@ALL
def test_derivatives_are_finite_for_large_lambda(name, domains):
    lam = torch.linspace(-80, 80, 161)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(one(name, domains).values(lam).sum(), lam)
    assert slope.isfinite().all()
    assert (slope >= 0).all()


@pytest.mark.parametrize(
    "domain", [LowerBounded(1.0), UpperBounded(-1.0), Bounded(0.5, map="sigmoid"), Positive(1.0)], ids=str
)
def test_tails_towards_zero_keep_their_relative_precision(domain):
    sign = -1.0 if isinstance(domain, UpperBounded) else 1.0  # each tail falls off like exp(−|λ|)
    value = HyperSpace(p=domain).values(torch.tensor([-60.0 * sign], dtype=torch.float64))
    assert value.item() == pytest.approx(sign * math.exp(-60), rel=1e-12)


def test_softplus_domains_are_finite_where_exp_overflows():
    space = HyperSpace(a=LowerBounded(1.0), b=UpperBounded(-1.0))
    assert space.values(torch.tensor([1000.0, -1000.0])).tolist() == [1000.0, -1000.0]


@SETS
def test_integer_is_whole_inside_and_reaches_both_bounds(domains):
    values = one("integer", domains).values(torch.linspace(-15, 15, 4001)[:, None])
    assert torch.equal(values, values.round())
    assert sorted(set(values[:, 0].tolist())) == list(range(25))


@SETS
@ALL
def test_a_space_starts_at_the_initial_values(name, domains):
    assert one(name, domains).values().item() == pytest.approx(DOMAINS[name].initial, rel=1e-5, abs=1e-6)


@SETS
@pytest.mark.parametrize("which", ["line", "sigmoid"])
def test_a_given_map_overrides_both_sets(which, domains):
    space = using(domains, a=Bounded(0.3, map=which), n=Integer(3, low=0, high=8, map=which))
    assert {s.name for s in space._maps} == {which, f"rounded {which}"}
    assert space.values(torch.tensor([2.0, 2.0])).tolist() == ([1.0, 8.0] if which == "line" else [SIGMOID_2, 7.0])
    assert space.scale.tolist() == pytest.approx([0.5 if which == "line" else 1.0] * 2)


@SETS
def test_columns_keep_their_order_among_mixed_kinds(domains):
    space = mixed(domains)
    assert space.names == ("u", "b", "i", "p", "c", "low", "up")
    lam = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
    values = space.values(lam)
    assert values.shape == lam.shape
    for column, domain in enumerate(space.hyperparameters.values()):
        expected = [by_hand(domain, x, domains) for x in lam[..., column].flatten().tolist()]
        assert values[..., column].flatten().tolist() == pytest.approx(expected, rel=1e-13)
    whole = space.names.index("i")
    back = space.inverse(values)
    rest = [c for c in range(7) if c != whole]
    torch.testing.assert_close(back[..., rest], lam[..., rest], rtol=1e-9, atol=1e-9)


def test_named_gives_each_hyperparameter_its_column():
    space = mixed()
    lam = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    values = space.values(lam)
    named = space.named(values)
    assert tuple(named) == space.names
    assert all(torch.equal(named[name], values[:, i]) for i, name in enumerate(space.names))
    assert all(value.shape == () for value in space.named(space.values()).values())


# --- invalid hyperparameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (Bounded(-0.1, high=0.95), r"`low <= initial <= high` .* must hold, got low=0.0, initial=-0.1, high=0.95"),
        (Bounded(0.96, high=0.95), "initial=0.96"),
        (Bounded(0.5, low=0.5, high=0.5), "`low < high`"),
        (Bounded(0.0, high=0.95, map="sigmoid"), r"initial=0.0, .* whose map \(sigmoid\) does not reach 0.0"),
        (Bounded(0.95, high=0.95, map="sigmoid"), r"`low < initial < high` .* does not reach 0.95"),
        (Integer(0, low=0, high=4, map="sigmoid"), "does not reach 0"),
        (Bounded(0.5, map="logit"), "`map` must be one of line, sigmoid, got 'logit'"),
        (Positive(1.0, search=(1e-3, 1e-1)), r"`search\[0\] <= initial <= search\[1\]`"),
        (Bounded(2.0, low=0.0, high=1.0), "initial=2.0"),
        (Bounded(0.5, low=1.0, high=0.0), "low=1.0"),
        (Positive(0.0), "initial=0.0"),
        (LowerBounded(1.0, low=1.0), "low=1.0"),
        (UpperBounded(1.0, high=1.0), "high=1.0"),
        (Unbounded(float("nan")), "initial"),
        (Unbounded(float("inf")), "initial"),
        (Unbounded("0"), "initial"),
        (Unbounded(True), "initial"),
        (Unbounded(0.0, scale=0.0), "scale > 0"),
        (Unbounded(0.0, scale=-1.0), "scale > 0"),
        (Unbounded(0.0, per="epoch"), "epoch"),
        (Integer(1, low=0, high=2.5), "high=2.5"),
        (Bounded(0.5, search=(0.5, 1.5)), "search"),
        (Bounded(0.5, search=(0.7, 0.2)), "search"),
    ],
)
def test_invalid_hyperparameters_are_refused_by_name(domain, message):
    with pytest.raises(ValueError, match=message) as error:
        HyperSpace(culprit=domain)
    assert "'culprit'" in str(error.value)


def test_a_space_needs_hyperparameters():
    with pytest.raises(ValueError, match="at least one"):
        HyperSpace()
    with pytest.raises(TypeError, match="`a`"):
        HyperSpace(a=0.5)
