"""Implicit differentiation and unrolling: exact hypergradients on problems with a known answer, and whole runs."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from benchmarks import toy
from benchmarks.common.toy_problems import Problem
from ray_deltastn.methods.differentiation import conjugate_gradient, implicit_hypergradient, neumann, unroll
from tests.benchmarks.small_problems import EVERY_FORM, lams, small

ALTERNATIVES = pytest.mark.parametrize("method", ["ift", "unrolled"])


def definite(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64), torch.randn(
        size, generator=generator, dtype=torch.float64
    )


def test_conjugate_gradient_solves_in_as_many_products_as_there_are_unknowns():
    matrix, b = definite()
    expected = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(conjugate_gradient(matrix.mv, b, 6), expected, rtol=1e-9, atol=1e-9)
    assert (conjugate_gradient(matrix.mv, b, 2) - expected).norm() > 1e-3


def test_conjugate_gradient_stays_at_a_solution_it_has_reached():
    matrix, b = definite()
    torch.testing.assert_close(
        conjugate_gradient(matrix.mv, b, 50), torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8
    )
    assert not conjugate_gradient(matrix.mv, torch.zeros_like(b), 5).any()


def test_conjugate_gradient_stops_at_negative_curvature():
    matrix = torch.diag(lams(3.0, 1.0, 0.5, -0.3))
    stopped = 0
    for seed in range(50):
        b = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        directions = []

        def product(v, directions=directions):
            directions.append(v)
            return matrix @ v

        found = conjugate_gradient(product, b, 8)
        convex = [bool(d @ matrix @ d > 0) for d in directions]
        first = convex.index(False) if False in convex else 8
        stopped += 0 < first < 4
        expected = conjugate_gradient(matrix.mv, b, first) if first else b
        torch.testing.assert_close(found, expected)
    assert stopped > 10


def test_conjugate_gradient_returns_the_right_hand_side_if_the_first_curvature_is_negative():
    b = lams(1.0, 2.0)
    assert torch.equal(conjugate_gradient(lambda v: -v, b, 5), b)


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_neumann_is_the_truncated_series(iterations):
    matrix, b = definite()
    step = 1 / torch.linalg.matrix_norm(matrix, 2).item()
    shrink = torch.eye(6, dtype=torch.float64) - step * matrix
    expected = step * sum(torch.linalg.matrix_power(shrink, j) for j in range(iterations + 1)) @ b
    torch.testing.assert_close(neumann(matrix.mv, b, iterations, step), expected)


def test_neumann_converges_to_the_solution():
    matrix, b = definite()
    step = 1 / torch.linalg.matrix_norm(matrix, 2).item()
    torch.testing.assert_close(neumann(matrix.mv, b, 5000, step), torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-6)


@EVERY_FORM
@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_hypergradient_at_the_best_response_is_the_closed_form(kind, divide, solver):
    problem = Problem(kind, small(), divide)
    for at in (-1.0, 0.5):
        lam = lams(at).requires_grad_()
        v = problem.best_response(lams(at))[0].requires_grad_()
        step = 1 / torch.linalg.matrix_norm(problem._system(lams(at))[0], 2).item()
        solve = {
            "cg": lambda product, b: conjugate_gradient(product, b, 8),
            "neumann": lambda product, b, step=step: neumann(product, b, 4000, step),
        }[solver]
        train = problem.train_loss(lam, v[None]).sum()
        found = implicit_hypergradient(train, problem.valid_loss(v), [v], lam, solve)
        torch.testing.assert_close(found, problem.hypergradient(lams(at)), rtol=1e-7, atol=1e-10)


def test_direct_dependence_of_the_validation_loss_counts():
    w, lam = lams(2.0).requires_grad_(), lams(0.5).requires_grad_()
    train = 0.5 * (w - 3 * lam).square().sum()  # w*(λ) = 3λ
    valid = (w * lam).sum() + lam.square().sum()
    found = implicit_hypergradient(train, valid, [w], lam, lambda product, b: conjugate_gradient(product, b, 1))
    torch.testing.assert_close(found, 3 * lam.detach() + w.detach() + 2 * lam.detach())


def test_damping_is_added_to_the_diagonal():
    w, lam = lams(2.0).requires_grad_(), lams(0.5).requires_grad_()
    train = 0.5 * (w - 3 * lam).square().sum()
    found = implicit_hypergradient(
        train, w.sum(), [w], lam, lambda product, b: conjugate_gradient(product, b, 1), damping=2.0
    )
    torch.testing.assert_close(found, lams(3.0 / (1.0 + 2.0)))


def run_of(method, seed=0, problem=None, **settings):
    problem = problem or Problem("ridge", small(seed))
    options = {"lr": 0.05, "hyper_lr": 0.03, "batch_size": 10, "epochs": 12, "warmup": 1, "train_interval": 4}
    return rd.SelfTuner(problem.task(seed), method, device="cpu", **{**options, **settings})


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.0}, {"weight_decay": 0.02}, {"clip_grad": 0.3}])
def test_unrolled_steps_end_at_the_weights_that_training_reached(optimizer):
    tuner = run_of("unrolled", steps_per_report=7, **optimizer)
    seen = []
    hypergradient = tuner.algorithm.hypergradient

    def spy(x, y):
        algorithm, lam = tuner.algorithm, tuner.space.lam
        losses = [
            lambda w, x=a, y=b: tuner.objective.train_loss(x, y, lam=lam, weights=w) for a, b, _ in algorithm.window
        ]
        group = algorithm.weights_optimizer.param_groups[0]
        start = {name: w.clone().requires_grad_() for name, w in algorithm.start.items()}
        reached = unroll(
            start,
            algorithm.momenta,
            losses,
            [lr for *_, lr in algorithm.window],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            clip_grad=algorithm.options.clip_grad,
        )
        for name, weight in reached.items():
            torch.testing.assert_close(weight, tuner.model.get_parameter(name))
        seen.append(len(algorithm.window))
        return hypergradient(x, y)

    tuner.algorithm.hypergradient = spy
    for _ in range(3):
        tuner.step()
    assert seen
    assert set(seen) == {4}


def test_unrolled_hypergradient_is_the_derivative_of_repeated_training():
    tuner = run_of("unrolled", problem=Problem("ridge", small(1)), seed=1)
    tuner.model.double()
    tuner.space.double()
    x, y = (t.double() for t in tuner.train.next())
    xv, yv = (t.double() for t in tuner.valid.next())
    algorithm = tuner.algorithm
    before = copy.deepcopy(tuner.model.state_dict())
    for _ in range(4):
        algorithm.train_step(x, y)
    tuner.model.eval()
    _, found = algorithm.hypergradient(xv, yv)

    def retrained(shift):
        other = rd.SelfTuner(Problem("ridge", small(1)).task(1), "fixed", lr=0.05, batch_size=10, device="cpu")
        other.model.double()
        other.model.load_state_dict(before)
        other.objective.constant = tuner.space.values(tuner.space.lam.detach() + shift)
        for _ in range(4):
            other.algorithm.train_step(x, y)
        return tuner.objective.valid_objective(xv, yv, tuner.space.lam, dict(other.model.named_parameters())).item()

    h = 1e-5
    torch.testing.assert_close(found, lams((retrained(h) - retrained(-h)) / (2 * h)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_ift_in_a_run_uses_the_whole_window_and_the_weight_decay_of_the_optimiser(decay):
    problem = Problem("ridge", small())
    data, lam = problem.data, lams(problem.initial)
    tuner = run_of("ift", weight_decay=decay, lr=1e-30, train_interval=3)  # the weights do not move
    tuner.model.double()
    tuner.space.double()
    system = problem._system(lam)[0] + decay * torch.eye(problem.dimension, dtype=torch.float64)
    v = torch.linalg.solve(system, problem.correlation)
    with torch.no_grad():
        tuner.model[0].weight.copy_(v)
    for rows in (slice(0, 5), slice(5, 20), slice(20, None)):
        tuner.algorithm.train_step(data.x[rows], data.t[rows, None])
    tuner.model.eval()
    _, found = tuner.algorithm.hypergradient(data.x_valid, data.t_valid[:, None])
    outer = (v @ data.x_valid.T - data.t_valid) @ data.x_valid / len(data.t_valid)
    exact = -outer @ torch.linalg.solve(system, problem.strength(lam)[1] * v)
    torch.testing.assert_close(found[0], exact, rtol=1e-6, atol=1e-12)


@ALTERNATIVES
def test_a_changed_interval_takes_effect_within_a_cycle(method):
    first = run_of(method, train_interval=10, steps_per_report=7)
    first.step()
    second = run_of(method, train_interval=5, steps_per_report=1)
    second.load_state_dict(first.state_dict())
    seen, hypergradient = [], second.algorithm.hypergradient

    def spy(x, y):
        seen.append((second.steps, len(second.algorithm.window)))
        return hypergradient(x, y)

    second.algorithm.hypergradient = spy
    while second.steps < 25:
        second.step()
    assert seen == [(10, 3), (15, 5), (20, 5), (25, 5)]


@ALTERNATIVES
def test_several_hyper_steps_use_the_same_window(method):
    tuner = run_of(method, valid_interval=3, train_interval=4, steps_per_report=12, warmup_steps=0)
    seen, hypergradient = [], tuner.algorithm.hypergradient

    def spy(x, y):
        seen.append([id(x) for x, *_ in tuner.algorithm.window])
        return hypergradient(x, y)

    tuner.algorithm.hypergradient = spy
    tuner.step()
    assert len(seen) == 9
    for k in (0, 3, 6):
        assert seen[k] == seen[k + 1] == seen[k + 2]
        assert len(seen[k]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings", "most"),
    [("ift", {}, 0.1), ("ift", {"implicit_solver": "neumann"}, 0.8), ("unrolled", {}, 0.8)],
    ids=["cg", "neumann", "unrolled"],
)
def test_a_run_lowers_the_regret_on_ridge(method, settings, most):
    # A truncated series or window contains a part of the response only, so λ does not reach the optimum.
    problem = Problem("ridge", small(), initial=30.0)
    row = toy.measure(problem, method, cycles=400, lr=0.05, hyper_lr=0.05, clip_grad=None, **settings)
    assert row["regret_initial"] > 0.1
    assert row["regret_final"] < most * row["regret_initial"]


@ALTERNATIVES
@pytest.mark.parametrize("steps", [3, 4, 6])
def test_a_run_resumes_bit_for_bit_inside_a_cycle(method, steps):
    whole = run_of(method, steps_per_report=steps, schedule="cosine")
    reports = [whole.step() for _ in range(5)]
    first = run_of(method, steps_per_report=steps, schedule="cosine")
    for _ in range(2):
        first.step()
    second = run_of(method, steps_per_report=steps, schedule="cosine")
    second.load_state_dict(first.state_dict())
    again = [second.step() for _ in range(3)]
    for expected, found in zip(reports[2:], again, strict=True):
        assert {k: v for k, v in expected.items() if "seconds" not in k} == {
            k: v for k, v in found.items() if "seconds" not in k
        }


@ALTERNATIVES
def test_state_is_plain_data(method, tmp_path):
    tuner = run_of(method, steps_per_report=5)
    tuner.step()
    torch.save(tuner.state_dict(), tmp_path / "state.pt")
    other = run_of(method, steps_per_report=5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.steps == 5
    assert len(other.algorithm.window) == 1


class Block(nn.Module):
    """A network with tied weights, batch normalisation and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.second(torch.tanh(self.first(x))))))


def block_task():
    torch.manual_seed(0)
    model = Block().double()
    model.norm.momentum = 0.0  # running statistics stay constant, as the hypergradient assumes
    x = torch.randn(64, 4, dtype=torch.float64)
    return rd.Task(
        space=rd.HyperSpace(decay=rd.Positive(1e-1)),
        model=model,
        loss=F.mse_loss,
        penalty=rd.L2("decay"),
        train=(x[:40], x[:40, :1]),
        valid=(x[40:], x[40:, 1:2]),
    )


def test_unrolled_hypergradient_with_clipping_decay_a_schedule_tied_weights_and_batch_normalisation():
    options = {
        "epochs": 9,
        "batch_size": 10,
        "warmup": 0,
        "train_interval": 3,
        "device": "cpu",
        "weight_decay": 0.02,
        "clip_grad": 0.1,
        "lr": 0.1,
        "schedule": {"name": "step", "step_size": 1, "gamma": 0.5},
        "seed": 4,
    }
    tuner = rd.SelfTuner(block_task(), "unrolled", steps_per_report=5, **options)
    tuner.step()  # one minibatch into the second cycle, after a change of the learning rate
    state = copy.deepcopy(tuner.state_dict())
    found = []
    hypergradient = tuner.algorithm.hypergradient
    tuner.algorithm.hypergradient = lambda x, y: found.append(hypergradient(x, y)) or found[-1]
    tuner._train_step()
    ((loss, gradient),) = found

    def retrained(shift):
        # Start before the first step of the cycle, shift λ, and repeat the three steps of the cycle.
        other = rd.SelfTuner(block_task(), "unrolled", steps_per_report=3, **options)
        other.step()
        other.algorithm.hyper_optimizer.param_groups[0]["lr"] = 0.0
        with torch.no_grad():
            other.space.lam.copy_(state["space"]["lam"] + shift)
        losses = []
        other.algorithm.hypergradient = lambda x, y: (
            losses.append(other.objective.valid_objective(x, y, other.space.lam).item()),
            (torch.zeros(()), torch.zeros_like(other.space.lam)),
        )[1]
        for _ in range(3):
            other._train_step()
            if other.steps % len(other.train) == 0:
                other.optimizers.end_epoch(lambda: 0.0)
        return losses[0]

    h = 1e-4
    assert loss.item() == pytest.approx(retrained(0.0), rel=1e-9)
    assert gradient.item() == pytest.approx((retrained(h) - retrained(-h)) / (2 * h), rel=1e-5)


@ALTERNATIVES
def test_hyper_steps_do_not_change_tied_weights_and_running_statistics(method):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    task = rd.Task(
        space=rd.HyperSpace(decay=rd.Positive(1e-2)),
        model=Block(),
        loss=F.mse_loss,
        penalty=rd.L2("decay"),
        train=(x[:40], x[:40, :1]),
        valid=(x[40:], x[40:, 1:2]),
    )
    # λ stays what it is.
    options = {"epochs": 3, "batch_size": 10, "warmup": 0, "train_interval": 2, "hyper_lr": 1e-30, "device": "cpu"}
    tuner = rd.SelfTuner(task, method, **options)
    plain = rd.SelfTuner(
        rd.Task(
            space=rd.HyperSpace(decay=rd.Positive(1e-2)),
            model=copy.deepcopy(task.model),
            loss=F.mse_loss,
            penalty=rd.L2("decay"),
            train=(x[:40], x[:40, :1]),
            valid=(x[40:], x[40:, 1:2]),
        ),
        "fixed",
        epochs=3,
        batch_size=10,
        device="cpu",
    )
    for _ in range(3):
        tuner.step()
        plain.step()
    # Hyper steps change neither running statistics nor weights, so a run with constant λ equals plain training.
    for (name, a), b in zip(tuner.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@ALTERNATIVES
def test_hyperparameters_without_a_derivative_are_refused(method):
    x = torch.randn(20, 4)
    task = rd.Task(
        space=rd.HyperSpace(rate=rd.Bounded(0.1, low=0.0, high=0.9)),
        model=nn.Sequential(rd.Dropout("rate"), nn.Linear(4, 1)),
        loss=F.mse_loss,
        train=(x, x[:, :1]),
        valid=(x, x[:, :1]),
    )
    with pytest.raises(ValueError, match=rf"must act through penalties for '{method}', .* got 'rate', of Dropout"):
        rd.SelfTuner(task, method)


@ALTERNATIVES
def test_export_is_the_trained_model_and_release_frees_it(method):
    tuner = run_of(method)
    list(tuner.fit())
    exported, model = tuner.export(), tuner.release()
    torch.testing.assert_close(exported, dict(model.state_dict()))
    assert not any(module._forward_hooks for module in model.modules())
    copy.deepcopy(model)(torch.zeros(1, 4))


def test_ift_refuses_a_weight_decay_that_is_not_part_of_the_loss():
    with pytest.raises(ValueError, match=r"`weight_decay` of adamw .* 'ift' differentiates, got 0\.1"):
        run_of("ift", optimizer="adamw", weight_decay=0.1)


def test_unrolled_needs_sgd():
    with pytest.raises(ValueError, match=r"`optimizer` must be sgd for 'unrolled', got 'adam'"):
        run_of("unrolled", optimizer="adam")


def test_the_toy_command_compares_both_methods(tmp_path, capsys):
    toy.main(
        [
            "--rows-per-dim",
            "4",
            "--seeds",
            "1",
            "--cycles",
            "3",
            "--methods",
            "ift,unrolled",
            "--json",
            str(tmp_path / "rows.json"),
        ]
    )
    assert [row["method"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["ift", "unrolled"]
    assert "unrolled" in capsys.readouterr().out
