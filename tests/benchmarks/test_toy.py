"""Exact solutions of the toy problems, and runs that approach them."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import toy
from benchmarks.common.toy_data import Data, load, split
from benchmarks.common.toy_problems import MOST_DROPOUT, SEARCH, Problem
from tests.benchmarks.small_problems import EVERY_FORM, lams, small

KEYS = {
    "problem",
    "data",
    "method",
    "seed",
    "lambda_initial",
    "lambda_final",
    "lambda_optimal",
    "regret_initial",
    "regret_final",
    "max_early_excursion",
    "seconds",
    "trajectory",
}


@EVERY_FORM
def test_gradient_of_the_training_loss_is_zero_at_the_best_response(kind, divide):
    problem = Problem(kind, small(), divide)
    lam = lams(-3.0, 0.0, 2.0)
    v = problem.best_response(lam).requires_grad_()
    (gradient,) = torch.autograd.grad(problem.train_loss(lam, v).sum(), v)
    assert gradient.abs().max() < 1e-12


@EVERY_FORM
def test_jacobian_and_hypergradient_agree_with_finite_differences(kind, divide):
    problem, h = Problem(kind, small(), divide), 1e-5
    lam = lams(-2.0, 0.3, 1.7)
    central = (problem.best_response(lam + h) - problem.best_response(lam - h)) / (2 * h)
    torch.testing.assert_close(problem.response_jacobian(lam), central, rtol=1e-7, atol=1e-9)
    slope = (problem.outer(lam + h) - problem.outer(lam - h)) / (2 * h)
    torch.testing.assert_close(problem.hypergradient(lam), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("divide", [True, False])
def test_ridge_solution_is_least_squares_with_added_rows(divide):
    data = small()
    n, d = data.x.shape
    penalty = math.exp(0.7) * (1 if divide else n)
    rows = np.vstack([data.x.numpy(), math.sqrt(penalty) * np.eye(d)])
    expected = np.linalg.lstsq(rows, np.concatenate([data.t.numpy(), np.zeros(d)]), rcond=None)[0]
    found = Problem("ridge", data, divide).best_response(lams(0.7))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


DROPOUT = pytest.mark.parametrize("kind", ["dropout", "inverted-dropout"])


def every_mask(kind, data, rate):
    """Rows of `data` under each mask of its features, and the probability of the mask, (2^d, n, d) and (2^d, 1)."""
    masks = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * data.x.shape[1])
    # One mask per row has the same marginals as one mask for all rows, and the loss is a sum over rows.
    chance = torch.where(masks > 0, 1 - rate, rate).prod(1, keepdim=True)
    return data.x * masks[:, None] / (1 - rate if kind == "inverted-dropout" else 1.0), chance


@DROPOUT
def test_expected_dropout_loss_is_the_mean_over_all_masks(kind):
    data = small(d=3)
    problem, lam, v = Problem(kind, data), lams(0.4), lams(0.5, -1.0, 2.0)
    rows, chance = every_mask(kind, data, MOST_DROPOUT * torch.sigmoid(lam))
    mean = (chance * 0.5 * (rows @ v - data.t).square()).mean(1).sum(0, keepdim=True)
    torch.testing.assert_close(problem.train_loss(lam, v[None]), mean)


@DROPOUT
def test_dropout_solution_and_its_jacobian_are_least_squares_over_all_masked_rows(kind):
    data = small()

    def solved(lam):
        rows, chance = every_mask(kind, data, MOST_DROPOUT * torch.sigmoid(lam))
        root = chance[:, :, None].sqrt()
        targets = data.t[:, None].expand(len(rows), -1, 1)
        return torch.linalg.lstsq((root * rows).flatten(0, 1), (root * targets).flatten(0, 1)).solution[:, 0]

    problem, h = Problem(kind, data), 1e-5
    for value in (-2.0, 0.3, 3.0):
        lam = lams(value)
        torch.testing.assert_close(problem.best_response(lam)[0], solved(lam), rtol=1e-9, atol=1e-12)
        central = (solved(lam + h) - solved(lam - h)) / (2 * h)
        torch.testing.assert_close(problem.response_jacobian(lam)[0], central, rtol=1e-6, atol=1e-8)


def test_layer_of_the_printed_dropout_keeps_elements_unchanged_and_drops_the_share_of_the_rate():
    tuner = toy.rd.SelfTuner(Problem("dropout", small()).task(seed=0), "delta-stn", preset="paper", device="cpu")
    layer, x = tuner.model[0], torch.full((2000, 50), 3.0)
    tuner.model.train()
    layer.pass_values.values = {"hyperparameter": torch.tensor([0.1, 0.8], dtype=torch.float64).repeat_interleave(1000)}
    y = layer(x)
    assert y.unique().tolist() == [0.0, 3.0]
    assert (y[:1000] == 0).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (y[1000:] == 0).double().mean().item() == pytest.approx(0.8, abs=0.01)
    tuner.model.eval()
    assert torch.equal(layer(x), x)


@EVERY_FORM
def test_task_has_the_objective_of_the_exact_solution(kind, divide):
    problem = Problem(kind, small(), divide)
    task = problem.task(seed=0)
    tuner = toy.rd.SelfTuner(task, "delta-stn", preset="paper", device="cpu")
    task.model.double()
    lam = task.space.lam.detach().double()
    weights = [p.detach() for p in task.model.parameters()]
    v = torch.linalg.multi_dot([*reversed(weights)])[0] if len(weights) > 1 else weights[0][0]
    assert len(weights) == (6 if kind == "jacobian" else 1)
    draws = 4000 if "dropout" in kind else 1
    x, t = problem.data.x.repeat(draws, 1), problem.data.t.repeat(draws)[:, None]
    tuner.model.train()
    found = tuner.objective.train_loss(x, t).item()
    expected = problem.train_loss(lam, v[None]).item()
    assert found == pytest.approx(expected, rel=0.02 if "dropout" in kind else 1e-6)
    tuner.model.eval()
    valid = tuner.objective.predict(problem.data.x_valid, None)
    loss = task.loss(valid, problem.data.t_valid[:, None]).mean().item()
    assert loss == pytest.approx(problem.valid_loss(v).item(), rel=1e-6)


def test_jacobian_penalty_uses_the_perturbed_weights_of_each_row():
    problem = Problem("jacobian", small())
    tuner = toy.rd.SelfTuner(problem.task(seed=0), "centered-stn", preset="paper", device="cpu")
    tuner.model.double()
    tuner.response.double()
    torch.nn.init.normal_(tuner.response.U)
    eps = lams(-0.5, 0.0, 0.8)[:, None]
    x, t = problem.data.x[:3], problem.data.t[:3, None]
    expected = []
    for row in range(3):
        folded = tuner.response.fold(eps[row])
        v = torch.linalg.multi_dot([*reversed(list(folded.values()))])[0]
        strength = (tuner.space.lam.detach().double() + eps[row]).exp()
        expected.append(0.5 * (x[row] @ v - t[row, 0]).square() + 0.5 * strength * v.square().sum())
    found = tuner.objective.train_loss(x, t, eps)
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-6, atol=0)


@EVERY_FORM
def test_optimum_agrees_with_a_grid_search_and_regret_is_zero_only_there(kind, divide):
    problem = Problem(kind, small(seed=6), divide)
    best, loss = problem.optimum()
    grid = torch.linspace(*SEARCH, 20001, dtype=torch.float64)
    outer = problem.outer(grid)
    assert loss <= outer.min() * (1 + 1e-12)
    assert best == pytest.approx(grid[outer.argmin()].item(), abs=2e-3)
    assert not problem.at_edge()
    assert problem.hypergradient(lams(best)).abs() < 1e-7
    regret = problem.regret(grid)
    assert (regret >= 0).all()
    assert problem.regret(lams(best)).item() < 1e-15  # the solution of one system, and of two at once, round apart
    assert (regret[(grid - best).abs() > 0.1] > 0).all()
    assert problem.regret(lams(math.nan)).item() == math.inf


def test_all_forms_start_from_the_same_objective():
    data = small()
    for kind, divide in (("ridge", False), ("jacobian", True)):
        form, plain = Problem(kind, data, divide), Problem("ridge", data)
        first, second = (p.best_response(lams(p.initial)) for p in (form, plain))
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("points", "batch", "penalty"), [(999, 10, 1.0), (1000, 100, 50.0)])
def test_batch_size_and_initial_penalty_depend_on_the_number_of_points(points, batch, penalty):
    x, t = torch.randn(points, 2, dtype=torch.float64), torch.randn(points, dtype=torch.float64)
    problem = Problem("ridge", Data("some", x[100:], t[100:], x[:100], t[:100]))
    assert problem.batch_size == batch
    assert math.exp(problem.initial) == pytest.approx(penalty)


def test_split_standardises_on_the_training_part_and_removes_constants():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(3.0, 5.0, 100), np.full(100, 7.0), rng.normal(size=100)])
    data = split("some", x, rng.normal(size=100), seed=1)
    assert data.x.shape == (80, 2)
    assert data.x_valid.shape == (20, 2)
    for part in (data.x, data.t):
        torch.testing.assert_close(part.mean(0), torch.zeros_like(part[0]), atol=1e-12, rtol=0)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones_like(part[0]))
    few = split("some", x, rng.normal(size=100), seed=1, rows_per_dim=4)
    assert (len(few.x), len(few.x_valid)) == (8, 92)
    assert not torch.equal(split("some", x, x[:, 0], seed=2).x, split("some", x, x[:, 0], seed=3).x)


def test_split_refuses_too_few_rows_and_a_constant_target():
    x = np.random.default_rng(0).normal(size=(20, 5))
    with pytest.raises(ValueError, match=r"must have more than 20 rows for this split, got 20"):
        split("some", x, x[:, 0], 0, rows_per_dim=4)
    with pytest.raises(ValueError, match="must vary over the training part"):
        split("some", x, np.ones(20), 0)


def test_data_is_read_from_a_file_from_the_data_root_and_from_sklearn(tmp_path):
    (tmp_path / "uci").mkdir()
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    np.savez(tmp_path / "uci" / "tiny.npz", X=x, y=y)
    for name in ("tiny", str(tmp_path / "uci" / "tiny.npz")):
        short, found, target = load(name, tmp_path)
        assert short == "tiny"
        np.testing.assert_array_equal(found, x)
        np.testing.assert_array_equal(target, y)
    assert load("diabetes")[1].shape == (442, 10)


def test_error_for_unknown_data_names_the_path(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_DELTASTN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="RAY_DELTASTN_DATA is set"):
        load("yacht")
    with pytest.raises(FileNotFoundError, match=r"got 'yacht'; tried .*uci/yacht\.npz"):
        load("yacht", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tried .*nowhere\.npz"):
        load("nowhere.npz", tmp_path)
    with pytest.raises(SystemExit):
        toy.main(["--data", "yacht", "--data-root", str(tmp_path)])
    assert "yacht" in capsys.readouterr().err


def test_excursion_is_the_distance_from_the_interval_to_the_optimum():
    assert toy.excursion([0.0, 0.5, 0.9], 1.0) == 0.0
    assert toy.excursion([0.0, -0.25, 0.9], 1.0) == 0.25
    assert toy.excursion([0.0, 1.5, 0.9], 1.0) == 0.5
    assert toy.excursion([0.0, -1.5, 0.25], -1.0) == 0.5
    assert math.isnan(toy.excursion([0.0, math.nan], 1.0))


def test_delta_stn_moves_towards_the_optimum_on_diabetes():
    problem = Problem("ridge", split(*load("diabetes"), seed=1, rows_per_dim=4))
    row = toy.measure(problem, "delta-stn", seed=1, cycles=120, hyper_lr=0.1)
    optimum, initial = row["lambda_optimal"], row["lambda_initial"]
    assert len(row["trajectory"]) == toy.POINTS
    assert row["trajectory"][0] == initial
    assert abs(row["lambda_final"] - optimum) < 0.5 * abs(initial - optimum)
    assert row["regret_final"] < 0.5 * row["regret_initial"]


def test_command_writes_rows_and_a_picture(tmp_path):
    out, picture = tmp_path / "new" / "rows.json", tmp_path / "toy.png"
    run = ["--problem", "dropout", "--methods", "stn,delta-stn", "--rows-per-dim", "4", "--seeds", "2", "--cycles", "3"]
    toy.main([*run, "--json", str(out), "--plot", str(picture)])
    record = json.loads(out.read_text())
    assert list(record) == ["command", "summary", "versions", "rows"]
    assert record["command"] == f"python -m benchmarks.toy {' '.join(run)} --json {out} --plot {picture}"
    assert record["versions"]["torch"] == torch.__version__
    rows = record["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("stn", 0),
        ("delta-stn", 0),
        ("stn", 1),
        ("delta-stn", 1),
    ]
    for row in rows:
        assert row.keys() >= KEYS
        assert len(row["trajectory"]) == 4
        assert row["lambda_final"] == pytest.approx(sum(row["trajectory"][1:]) / 3, rel=1e-5)
        assert row["regret_initial"] >= 0
        assert row["regret_final"] >= 0
    assert picture.stat().st_size > 10_000
    assert [(entry["method"], entry["n"]) for entry in record["summary"]] == [("stn", 2), ("delta-stn", 2)]
    for entry in record["summary"]:
        mine = [row for row in rows if row["method"] == entry["method"]]
        for key in ("regret_final", "max_early_excursion"):
            mean = sum(row[key] for row in mine) / 2
            assert entry[key]["mean"] == entry[key]["median"] == pytest.approx(mean, rel=1e-5)
        errors = [row["lambda_final"] - row["lambda_optimal"] for row in mine if not row["optimum_at_edge"]]
        assert entry["optimum_at_edge"] == 2 - len(errors)
        assert entry["lambda_error"]["mean"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_older_records_are_drawn_thinned_and_summarised(tmp_path, capsys):
    row = toy.measure(Problem("ridge", small()), "delta-stn", cycles=1)
    path = [float(i) for i in range(300)]
    old = [
        {**row, "seed": seed, "regret_final": 0.1 * seed, "cycles": 3000, "trajectory": path, "regret_trajectory": path}
        for seed in range(3)
    ]
    file, picture = tmp_path / "rows.json", tmp_path / "toy.png"
    file.write_text(json.dumps(old))
    toy.main(["--rows", str(file), "--json", str(file), "--plot", str(picture)])
    new = json.loads(file.read_text())
    assert (new["command"], new["summary"][0]["n"], new["summary"][0]["regret_final"]["median"]) == (None, 3, 0.1)
    for found in new["rows"]:
        assert len(found["trajectory"]) == len(found["regret_trajectory"]) == toy.POINTS
        assert (found["trajectory"][0], found["trajectory"][-1]) == (0.0, 299.0)
    assert picture.stat().st_size > 10_000
    once = file.read_text()
    toy.main(["--rows", str(file), "--json", str(file)])
    assert file.read_text() == once
    assert "median regret" in capsys.readouterr().out


def test_record_has_the_rows_that_finished_before_a_failure(tmp_path, monkeypatch):
    measure, done = toy.measure, []

    def failing(*arguments, **options):
        if len(done) == 2:
            raise RuntimeError("a failure for the test")
        done.append(arguments)
        return measure(*arguments, **options)

    monkeypatch.setattr(toy, "measure", failing)
    with pytest.raises(RuntimeError, match="for the test"):
        toy.main(["--seeds", "3", "--cycles", "1", "--methods", "stn", "--json", str(tmp_path / "rows.json")])
    record = json.loads((tmp_path / "rows.json").read_text())
    assert ([row["seed"] for row in record["rows"]], record["missing"], record["summary"][0]["n"]) == ([0, 1], 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods fixed", "`--methods` must tune hyperparameters, got 'fixed'"),
        ("--methods fxed", "`method` must be one of"),
        (
            "--methods ift --problem dropout",
            "must act through penalties for 'ift'",
        ),
        ("--methods delta-stn,unrolled --problem dropout", "must act through penalties"),
        ("--lr -1", "argument --lr: must be a finite number > 0, got '-1'"),
        ("--hyper-lr nan", "argument --hyper-lr: must be a finite number > 0, got 'nan'"),
        ("--momentum 1.5", "argument --momentum: must be a finite number >= 0 and < 1, got '1.5'"),
        ("--clip-grad inf", "argument --clip-grad: must be a finite number >= 0, got 'inf'"),
        ("--threads 0", "argument --threads: must be a whole number >= 1, got '0'"),
        ("--seeds 0", "argument --seeds: must be a whole number >= 1, got '0'"),
        ("--cycles -3", "argument --cycles: must be a whole number >= 1, got '-3'"),
        ("--initial -2", "hyperparameter"),
        ("--initial 0.96 --problem dropout", "hyperparameter"),
        ("--initial nan", "argument --initial: must be a finite number, got 'nan'"),
        (
            "--data {folder}/damaged.npz",
            "`{folder}/damaged.npz` must contain `X (n, d)` and `y (n,)` of finite numbers",
        ),
        ("--json {folder}", "`{folder}` must be a file to write, got a folder"),
        ("--plot {folder}/damaged.npz/toy.png", "`{folder}/damaged.npz/toy.png` must be a file to write, got "),
        ("--rows {folder}/none.json", "`{folder}/none.json` must contain a record in JSON, got: "),
    ],
)
def test_wrong_arguments_end_with_one_error_line_before_the_first_run(
    arguments, message, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr(toy, "measure", lambda *_, **__: pytest.fail("a measurement ran"))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no zip file")
    given = [word.format(folder=tmp_path) for word in arguments.split()]
    assert message.format(folder=tmp_path) in refusal(toy.main, *given)


def damaged(path):
    np.savez(path, X=np.zeros((50, 2)), y=np.zeros(50))
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)


X = np.ones((3, 2))


@pytest.mark.parametrize(
    ("write", "got"),
    [
        (lambda path: path.write_text("x,y\n1,2\n"), "a file that NumPy cannot read"),
        (lambda path: path.write_bytes(b""), "a file that NumPy cannot read"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip file"), "a file that NumPy cannot read"),
        (damaged, "a file that NumPy cannot read: Bad CRC-32"),
        (lambda path: np.save(path.open("wb"), X), "a file that NumPy cannot read"),
        (lambda path: np.savez(path, X=X, y=np.array([1, "a", None], object)), "a file that NumPy cannot read"),
        (lambda path: np.savez(path, X=X), r"\['X'\]"),
        (lambda path: np.savez(path, X=X, y=np.array(["a", "b", "c"])), "X of float64 and y of <U1"),
        (lambda path: np.savez(path, X=X, y=np.array(1.0)), r"shapes \(3, 2\) and \(\)"),
        (lambda path: np.savez(path, X=X, y=np.array([1, 2, np.nan])), "NaN or infinity"),
    ],
    ids=["text", "empty", "cut", "damaged", "array", "objects", "no y", "strings", "scalar", "nan"],
)
def test_error_for_a_wrong_data_file_names_the_rule(write, got, tmp_path):
    path = tmp_path / "wrong.npz"
    write(path)
    with pytest.raises(ValueError, match=rf"must contain `X \(n, d\)` and `y \(n,\)` of finite numbers, got {got}"):
        load(str(path))


@pytest.mark.parametrize(
    ("method", "linearized"),
    [("stn", False), ("centered-stn", False), ("delta-stn", True), ("ift", False), ("unrolled", False)],
)
def test_penalty_belongs_to_the_network_that_predicts(method, linearized):
    tuner = toy.tuner_of(Problem("jacobian", small()), method)
    assert tuner.task.penalties[0].linearized == linearized
