"""Spaces: sets of maps, perturbations and their entropy, constants, searches and states."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

import ray_deltastn as rd
from ray_deltastn.domains import Bounded, Integer, LowerBounded, Positive, Unbounded
from ray_deltastn.space import MOST_SCALE, HyperSpace
from tests.spaces import DOMAINS, SETS, mixed, using

# --- sets of maps --------------------------------------------------------------------------------------------------


def in_place(space, **values):
    """The space with λ of some hyperparameters moved, and σ of all."""
    space.start_from(values)
    with torch.no_grad():
        space.raw_scale += 0.1
    return space


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_space_that_changes_its_maps_starts_as_one_made_with_them(dtype):
    space = mixed()
    clamped = space.lam.detach().clone(), space.raw_scale.detach().clone()
    space = space.to(dtype)
    space.use("open")
    direct = HyperSpace(
        **{
            name: replace(p, map="sigmoid") if isinstance(p, Bounded) else p
            for name, p in space.hyperparameters.items()
        }
    )
    assert torch.equal(space.lam.float(), direct.lam)
    assert torch.equal(space.raw_scale.float(), direct.raw_scale)
    space.use("clamped")
    assert torch.equal(space.lam.float(), clamped[0])
    assert torch.equal(space.raw_scale.float(), clamped[1])


@pytest.mark.parametrize(("first", "second"), [("clamped", "open"), ("open", "clamped")])
def test_a_change_of_maps_keeps_values_and_scales_that_have_changed(first, second):
    space = in_place(mixed(first), u=0.7, b=0.1, i=3, p=0.02, c=9.0, low=1.2, up=-0.4)
    values, scale = space.values().tolist(), space.scale.clone()
    space.use(second)
    assert space.values().tolist() == pytest.approx(values, rel=1e-5)
    assert torch.equal(space.scale, scale)
    assert space.domains == second


def test_a_change_of_maps_replaces_only_scales_that_are_untouched():
    space = HyperSpace(a=Bounded(0.3), b=Bounded(0.3), c=Bounded(0.3, scale=0.7))
    space.start_from({}, scale={"b": 0.6})
    space.use("open")
    assert space.scale.tolist() == pytest.approx([1.0, 0.6, 0.7])
    space.use("clamped")
    assert space.scale.tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_a_value_on_a_bound_moves_to_where_the_sigmoid_is_not_flat():
    space = HyperSpace(a=Bounded(0.3, high=0.9), b=Bounded(0.3, high=0.9), n=Integer(1, low=0, high=4))
    space.start_from({"a": 0.0, "b": 0.9, "n": 4})
    assert space.lam.tolist() == [-2.0, 2.0, 2.0]
    space.use("open")
    assert space.lam.tolist() == [-4.0, 4.0, 4.0]


def test_a_positive_value_outside_its_search_range_moves_into_it():
    space = using("open", p=Positive(1e-3, search=(1e-5, 1e-1)))
    space.start_from({"p": 1e-9})
    assert space.values().item() == pytest.approx(1e-9, rel=1e-5)
    space.use("clamped")
    assert space.values().item() == pytest.approx(1e-5, rel=1e-5)


def test_a_change_of_maps_names_the_initial_value_that_the_new_map_cannot_have():
    space = HyperSpace(a=Bounded(0.3), culprit=Bounded(0.9, high=0.9))
    before = space.state_dict()
    with pytest.raises(ValueError, match=r"initial=0.9, high=0.9 for 'culprit', .*sigmoid.* does not reach 0.9"):
        space.use("open")
    assert space.domains == "clamped"
    space.load_state_dict(before)


@pytest.mark.parametrize("initial", [0.0, 0.95])
def test_a_bound_may_be_the_initial_value_on_the_line(initial):
    assert HyperSpace(a=Bounded(initial, high=0.95)).values().item() == initial


def test_lambda_is_put_back_into_its_box():
    space = mixed()
    for far, expected in ((-50.0, [-50.0, 0.0, 0.0, 1e-5, 5.0]), (50.0, [50.0, 0.95, 4.0, 10.0, 10.0])):
        with torch.no_grad():
            space.lam.fill_(far)
        space.keep_inside(scale=True)
        assert space.values()[:5].tolist() == pytest.approx(expected, rel=1e-5)
        assert space.lam[5:].tolist() == [far, far]  # hyperparameters without a box


def test_open_maps_limit_neither_lambda_nor_sigma():
    space = mixed("open")
    with torch.no_grad():
        space.lam.fill_(50.0)
        space.raw_scale.fill_(5.0)
    space.keep_inside(scale=True)
    assert (space.lam == 50).all()
    assert (space.raw_scale == 5).all()


def test_sigma_of_hyperparameters_with_a_box_is_limited():
    space = mixed()
    with torch.no_grad():
        space.raw_scale.fill_(5.0)
    space.keep_inside(scale=False)
    assert (space.raw_scale == 5).all()  # σ is not tuned
    space.keep_inside(scale=True)
    boxed = [name in ("b", "i", "p", "c") for name in space.names]
    assert space.scale[boxed].tolist() == pytest.approx([MOST_SCALE] * 4)
    assert (space.raw_scale[[not one for one in boxed]] == 5).all()


def test_a_moment_that_pushes_out_of_the_box_is_removed():
    space = HyperSpace(**{name: Bounded(0.5) for name in "abcdef"}, u=Unbounded(0.0))
    with torch.no_grad():
        space.lam.copy_(torch.tensor([-2.0, -2.0, 2.0, 2.0, 0.0, -1.999, -9.0]))
    moment = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0])  # λ moves against it
    space.keep_inward(moment)
    assert moment.tolist() == [0.0, -1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def test_spaces_can_be_copied_and_pickled():
    space = mixed("open")
    for again in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert torch.equal(again.values(), space.values())
        assert again.fingerprint() == space.fingerprint()


# --- perturbations -------------------------------------------------------------------------------------------------


def test_perturbations_are_independent_normals_of_the_given_scales():
    space = mixed()
    rows = 20_000
    eps = space.sample(rows, torch.Generator().manual_seed(0)).detach()
    own = [i for i, p in enumerate(space.hyperparameters.values()) if p.per == "example"]
    z = (eps / space.scale.detach())[:, own]
    assert z.mean(0).abs().max() < 4 / rows**0.5
    assert (z.std(0) - 1).abs().max() < 4 / (2 * rows) ** 0.5
    correlation = torch.corrcoef(z.T) - torch.eye(len(own))
    assert correlation.abs().max() < 4 / rows**0.5
    neighbours = (z[1:] * z[:-1]).mean(0)  # rows are independent too
    assert neighbours.abs().max() < 4 / rows**0.5
    tails = (z.abs() > 1.96).float().mean(0)
    assert (tails - 0.05).abs().max() < 4 * (0.05 * 0.95 / rows) ** 0.5


@pytest.mark.parametrize(
    ("domains", "scales"),
    [("clamped", [1.0, 0.5, 0.5, 2.0, 0.5, 1.0, 1.0]), ("open", [1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 1.0])],
)
def test_scale_starts_at_the_given_scale_or_at_that_of_the_map(domains, scales):
    assert mixed(domains).scale.tolist() == pytest.approx(scales, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 30.0, 1e3])
def test_extreme_scales_are_kept(scale):
    assert HyperSpace(a=Unbounded(0.0, scale=scale)).scale.item() == pytest.approx(scale, rel=1e-5)


def test_perturbations_repeat_with_the_generator():
    space = mixed()
    one, same, other = (space.sample(5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (5, 7)


def test_per_batch_hyperparameters_have_one_perturbation_per_batch():
    space = mixed()
    generator = torch.Generator().manual_seed(0)
    eps = space.sample(6, generator)
    for column, domain in enumerate(space.hyperparameters.values()):
        distinct = len(set(eps[:, column].tolist()))
        assert distinct == (1 if domain.per == "batch" else 6)
    shared = [i for i, p in enumerate(space.hyperparameters.values()) if p.per == "batch"]
    assert len(set(eps[0, shared].tolist())) == len(shared)
    draws = torch.stack([space.sample(3, generator)[0, shared] for _ in range(2000)]).detach()
    z = draws / space.scale.detach()[shared]
    assert (z.std(0) - 1).abs().max() < 4 / 4000**0.5


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_antithetic_perturbations_are_pairs_except_for_per_batch_hyperparameters(rows):
    space = mixed()
    plain = space.sample(rows - rows // 2, torch.Generator().manual_seed(3))
    pairs = space.sample(rows, torch.Generator().manual_seed(3), antithetic=True)
    assert pairs.shape == (rows, 7)
    shared = [p.per == "batch" for p in space.hyperparameters.values()]
    own = [not one for one in shared]
    assert torch.equal(pairs[:, own], torch.cat([plain, -plain])[:rows, own])
    assert torch.equal(pairs[:, shared], plain[:1, shared].expand(rows, -1))


def test_perturbation_is_differentiable_in_the_scale():
    space = mixed().double()
    probe = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def sampled(raw):  # gradcheck changes the parameter in place
        return (space.sample(5, torch.Generator().manual_seed(0)) * probe).sum()

    assert torch.autograd.gradcheck(sampled, space.raw_scale)
    eps = space.sample(5, torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad((eps * probe).sum(), space.raw_scale)
    z = eps / space.scale
    torch.testing.assert_close(slope, (z * probe).sum(0) * torch.sigmoid(space.raw_scale))  # softplus' = sigmoid


def test_entropy_equals_the_entropy_of_independent_normals():
    space = mixed().double()
    oracle = torch.distributions.Normal(0.0, space.scale).entropy().sum()
    torch.testing.assert_close(space.entropy(), oracle, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(value, space.raw_scale)[0] for value in (space.entropy(), oracle)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)


# --- fixed values and searches -------------------------------------------------------------------------------------


def test_constants_and_schedules_make_a_table():
    space = mixed()
    table = space.fixed_values({"b": 0.5, "u": [1.0, 2.0, 3.0], "i": 4})
    assert table.shape == (3, 7)
    assert table.dtype == torch.float64
    assert table[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert table[:, 1].tolist() == [0.5] * 3
    assert table[:, 2].tolist() == [4.0] * 3
    assert table[0, 3:].tolist() == [0.01, 7.0, 1.5, -1.0]  # hyperparameters that are not named


def test_schedules_are_extended_by_their_last_value():
    space = mixed()
    assert space.fixed_values({"u": [1.0, 2.0]}, epochs=4)[:, 0].tolist() == [1.0, 2.0, 2.0, 2.0]
    assert space.fixed_values({}, epochs=2).shape == (2, 7)
    assert space.fixed_values({}).shape == (1, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nobody": 1.0}, "unknown hyperparameter 'nobody'"),
        ({"b": 0.96}, "high=0.95 for 'b'"),
        ({"b": [0.1, -0.1]}, "low=0.0, value=-0.1"),
        ({"b": []}, "'b'"),
        ({"b": float("nan")}, "'b'"),
        ({"b": "0.1"}, "'b'"),
    ],
)
def test_invalid_constants_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        mixed().fixed_values(given)


def test_bounds_are_allowed_as_constants():
    assert mixed().fixed_values({"b": 0.0, "i": 4})[0, 1:3].tolist() == [0.0, 4.0]


def test_tune_domains():
    tune = pytest.importorskip("ray.tune")
    space = HyperSpace(
        a=Bounded(0.1, low=0.0, high=0.95),
        n=Integer(1, low=0, high=4),
        d=Positive(1e-4),
        e=Positive(1e-4, search=(1e-6, 1e-1)),
        u=Unbounded(0.0, search=(-2.0, 2.0)),
    )
    domains = space.to_tune()
    expected = {
        "a": tune.uniform(0.0, 0.95),
        "n": tune.randint(0, 5),  # `randint` excludes the upper bound
        "d": tune.loguniform(1e-7, 1e-1),
        "e": tune.loguniform(1e-6, 1e-1),
        "u": tune.uniform(-2.0, 2.0),
    }
    assert list(domains) == list(space.names)
    for name, domain in domains.items():
        assert type(domain) is type(expected[name])
        assert type(domain.sampler) is type(expected[name].sampler)
        assert (domain.lower, domain.upper) == pytest.approx((expected[name].lower, expected[name].upper))
        for _ in range(50):
            space.fixed_values({name: domain.sample()})  # every draw is a valid constant


def test_an_open_domain_without_range_cannot_be_searched():
    with pytest.raises(ValueError, match=r"search=\(low, high\).*'u'"):
        HyperSpace(u=Unbounded(0.0)).to_tune()
    with pytest.raises(ValueError, match="'low'"):
        HyperSpace(low=LowerBounded(1.0)).to_tune()


# --- state ---------------------------------------------------------------------------------------------------------


def test_state_round_trip(tmp_path):
    space, other = mixed(), mixed()
    with torch.no_grad():
        space.lam += 1.0
        space.raw_scale -= 0.5
    torch.save(space.state_dict(), tmp_path / "space.pt")
    other.load_state_dict(torch.load(tmp_path / "space.pt", weights_only=True))
    assert torch.equal(other.lam, space.lam)
    assert torch.equal(other.raw_scale, space.raw_scale)
    assert torch.equal(other.values(), space.values())


@pytest.mark.parametrize(
    "other",
    [
        HyperSpace(b=Bounded(0.1)),  # another name
        HyperSpace(a=Bounded(0.1, high=0.5)),  # other bounds
        HyperSpace(a=LowerBounded(0.1)),  # another kind
        HyperSpace(a=Bounded(0.1, per="batch")),  # another `per`
    ],
    ids=["name", "bounds", "kind", "sharing"],
)
def test_state_of_another_space_is_refused(other):
    with pytest.raises((ValueError, RuntimeError), match="same space"):
        HyperSpace(a=Bounded(0.1)).load_state_dict(other.state_dict())


@pytest.mark.parametrize(("first", "second"), [("clamped", "open"), ("open", "clamped")])
@pytest.mark.parametrize(
    ("domain", "texts"),
    [
        (Bounded(0.3, high=0.95), {"clamped": r"map line in \(-2, 2\)", "open": "map sigmoid, "}),
        (Integer(2, low=0, high=4), {"clamped": r"map rounded line in \(-2, 2\)", "open": "map rounded sigmoid, "}),
        (Positive(1.0, search=(0.1, 10.0)), {"clamped": r"map exp in \(-2.30259, 2.30259\)", "open": "map exp, "}),
    ],
    ids=lambda one: type(one).__name__,
)
def test_state_of_a_space_with_other_maps_is_refused_with_both_maps(domain, texts, first, second):
    state = using(first, u=Unbounded(0.0), culprit=domain).state_dict()
    own = using(second, u=Unbounded(0.0), culprit=domain)
    with pytest.raises(ValueError, match=f"same maps, got .*{texts[first]}.* for 'culprit', here .*{texts[second]}"):
        own.load_state_dict(state)


@SETS
def test_state_of_an_older_version_which_does_not_name_its_map_is_refused(domains):
    space = using(domains, rate=Bounded(0.3, high=0.95))
    state = {**space.state_dict(), "_extra_state": {"rate": "0: Bounded(0.0, 0.95) per example"}}
    with pytest.raises(ValueError, match=r"got '0: Bounded\(0.0, 0.95\) per example' for 'rate', here .*map "):
        space.load_state_dict(state)


def test_state_with_the_same_hyperparameters_in_another_order_is_refused():
    one, other = HyperSpace(a=Bounded(0.1), b=Bounded(0.7)), HyperSpace(b=Bounded(0.7), a=Bounded(0.1))
    with pytest.raises((ValueError, RuntimeError), match="same space"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_computed_in_float64_whatever_the_dtype_of_lambda(dtype):
    space = mixed().to(dtype)
    assert space.lam.dtype == space.raw_scale.dtype == dtype
    lam = torch.full((7,), 15.0, dtype=dtype)
    values = space.values(lam)
    assert values.dtype == torch.float64
    assert torch.equal(values, mixed().values(lam.double()))
    assert space.sample(2).dtype == dtype


def test_double_then_float_is_the_same_space():
    space, plain = mixed().double().float(), mixed()
    assert torch.equal(space.values(), plain.values())
    assert torch.equal(space.inverse(space.values()), plain.inverse(plain.values()))
    assert space.double().fingerprint() == plain.fingerprint()


def test_public_names_are_the_domains():
    assert {rd.Unbounded, rd.Positive, rd.LowerBounded, rd.UpperBounded, rd.Bounded, rd.Integer} == {
        type(domain) for domain in DOMAINS.values()
    }
