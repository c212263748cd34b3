"""The size of the response is reported, and neither it nor Θ grows without limit."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

import ray_deltastn as rd
from ray_deltastn.training.health import LARGE_RESPONSE, ResponseSize
from tests.training.runs import examples, make_task, make_tuner


def randomised(method, task=None):
    tuner = make_tuner(task, method)
    if tuner.response is not None:
        with torch.no_grad():
            tuner.response.U.normal_(generator=torch.Generator().manual_seed(3))
    return tuner


@pytest.mark.parametrize("method", ["stn", "centered-stn", "delta-stn"])
def test_size_of_the_response_equals_its_definition(method):
    tuner = randomised(method)
    x, _ = next(iter(tuner.valid.in_order()))
    z = torch.randn(len(x), len(tuner.space), generator=torch.Generator().manual_seed(8))
    lam, model = tuner.space.lam.detach(), tuner.model.eval()
    base = {name: p.detach() for name, p in model.named_parameters()}
    if method == "stn":
        base |= {name: w.detach() for name, w in tuner.response.fold(lam).items()}
    changes = []
    for row, one in zip(tuner.space.scale.detach() * z, x, strict=True):
        delta = lam + row if method == "stn" else row
        moved = base | {name: w.detach() for name, w in tuner.response.fold(delta).items()}

        def output(weights, one=one):
            return functional_call(model, weights, (one[None],))

        if method == "delta-stn":
            change = jvp(output, (base,), ({name: moved[name] - base[name] for name in base},))[1]
        else:
            change = output(moved) - output(base)
        changes.append(change)
    expected = torch.cat(changes).square().mean().sqrt() / functional_call(model, base, (x,)).square().mean().sqrt()
    assert ResponseSize(tuner.objective, tuner.valid, 8)() == pytest.approx(expected.item(), rel=1e-4)


def test_looking_at_the_size_changes_nothing():
    tuner = randomised("delta-stn")
    tuner.model.train()
    before = tuner.generator.get_state(), torch.get_rng_state()
    first = tuner.response_size()
    assert tuner.response_size() == first > 0
    assert tuner.model.training
    assert torch.equal(tuner.generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_large_response_is_counted_and_warned_of_once():
    tuner = randomised("delta-stn")
    with torch.no_grad():
        tuner.response.U.mul_(1e3)
    with pytest.warns(rd.RunWarning, match=r"`response_size <= 1` should hold, got .*`response_lr`"):
        report = tuner.step()
    assert report["response_size"] > LARGE_RESPONSE
    assert report["warning/large_response"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", rd.RunWarning)
        assert tuner.step()["warning/large_response"] == 1.0


def test_a_method_without_response_has_none():
    report = make_tuner(method="fixed").step()
    assert report["response_size"] == report["warning/large_response"] == 0.0


def random_labels(scale=1.0):
    """A network that learns random labels by heart; dropout is too weak to prevent it."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(96, 20, generator=generator), torch.randint(0, 5, (96,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(
        rd.Dropout("first"),
        nn.Linear(20, 64),
        nn.ReLU(),
        rd.Dropout("second"),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 5),
    )
    rates = {name: rd.Bounded(0.1, high=0.95, scale=scale) for name in ("first", "second")}
    return rd.Task(space=rd.HyperSpace(**rates), model=model, loss=F.cross_entropy, train=data, valid=data)


@pytest.mark.parametrize("antithetic", [False, True])
def test_theta_blows_up_with_the_old_settings_and_not_with_the_recommended_ones(antithetic):
    run = {"epochs": 50, "batch_size": 16, "lr": 0.1, "warmup": 50, "graph": "on", "response_fraction": 0.25}
    old = {"preset": "paper", "response_lr": 0.1}
    found = {}
    for name, options in (("old", old), ("recommended", {})):
        reports = list(rd.SelfTuner(random_labels(), antithetic=antithetic, **run, **options).fit())
        assert all(torch.isfinite(torch.tensor(report["train_loss"])) for report in reports)
        found[name] = max(report["response_size"] for report in reports)
    assert found["old"] > 1e3
    assert found["recommended"] < 0.5


def test_theta_is_clipped_by_itself():
    def steep(output, target):
        return 1e4 * F.cross_entropy(output, target)

    given = {"momentum": 0.0, "lr": 0.01, "response_clip": 0.5, "per_scale": False, "steps_per_report": 1}
    tuner = make_tuner(make_task(loss=steep), response_optimizer="sgd", **given)
    for _ in range(3):
        before = [p.detach().clone() for p in tuner.response.parameters()]
        weights = [p.detach().clone() for p in tuner.model.parameters()]
        tuner.step()
        step = torch.stack([(p - b).norm() for p, b in zip(tuner.response.parameters(), before, strict=True)]).norm()
        assert step.item() <= 0.5 * 0.01 * 1.001
        moved = [(p - w).norm() for p, w in zip(tuner.model.parameters(), weights, strict=True)]
        assert torch.stack(moved).norm() > 0.5 * 0.01  # w₀ is not


@pytest.mark.parametrize(
    ("given", "rate"), [({}, 0.05), ({"response_fraction": 0.25}, 0.0125), ({"response_lr": 0.2}, 0.2)]
)
def test_learning_rate_of_theta_is_in_proportion_to_its_share(given, rate):
    schedule = {"name": "step", "step_size": 1, "gamma": 0.5}
    tuner = make_tuner(schedule=schedule, epochs=2, response_optimizer="sgd", **given)
    assert tuner.optimizers.response.param_groups[0]["lr"] == pytest.approx(rate)
    tuner.step()
    assert tuner.optimizers.response.param_groups[0]["lr"] == pytest.approx(rate / 2)


# --- batch normalisation ---------------------------------------------------------------------------------------------


def normalised(per="example", rows=96):
    x, y = examples(rows, 1)
    space = rd.HyperSpace(rate=rd.Bounded(0.2, high=0.9, per=per))
    torch.manual_seed(0)
    model = nn.Sequential(rd.Dropout("rate"), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=examples(40, 2))


@pytest.mark.parametrize(
    ("per", "options", "warned"),
    [
        ("example", {"preset": "paper"}, True),
        ("example", {"sub_batches": 1}, True),
        ("example", {}, False),  # `auto` makes sub-batches
        ("example", {"preset": "paper", "sub_batches": 2}, False),
        ("example", {"preset": "paper", "method": "fixed"}, False),
        ("batch", {"preset": "paper"}, False),
    ],
)
def test_perturbations_that_differ_under_batch_normalisation_are_warned_of(per, options, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_tuner(normalised(per), **options)
    assert any("batch normalisation, got `sub_batches` 1 and 'rate'" in str(w.message) for w in caught) is warned


def test_sub_batches_are_not_advised_to_a_method_that_has_none():
    with pytest.warns(rd.RunWarning, match='must be `per="batch"` in a network with batch normalisation'):
        make_tuner(normalised(), "stn")


@pytest.mark.parametrize(
    ("batch_size", "fraction", "parts"), [(8, 1.0, 2), (32, 1.0, 2), (128, 1.0, 8), (1024, 1.0, 8), (128, 0.25, 2)]
)
def test_automatic_sub_batches_have_about_sixteen_examples(batch_size, fraction, parts):
    settings = rd.Settings(batch_size=batch_size, response_fraction=fraction)
    assert settings.parts(statistics=True) == parts
    assert settings.parts(statistics=False) == 1
    assert rd.Settings(batch_size=batch_size, sub_batches=3).parts(statistics=True) == 3
