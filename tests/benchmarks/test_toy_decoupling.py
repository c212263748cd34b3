"""The angle between gradients, and the effect of an uncentred response: it moves λ away from zero early in training."""

import json

import numpy as np
import pytest
import torch

from benchmarks import toy_decoupling as toy
from benchmarks.common.toy_data import Data, load, split
from benchmarks.common.toy_jacobian import learned_hypergradient
from benchmarks.common.toy_problems import Problem


def problem(**options):
    return Problem("ridge", split(*load("diabetes"), seed=0), **options)


def same(initial=None):
    """A problem whose validation rows are its training rows."""
    data = problem().data
    return Problem("ridge", Data("same", data.x, data.t, data.x, data.t), initial=initial)


def test_angle_agrees_with_autograd():
    ridge, lam = problem(), torch.tensor(1.3, dtype=torch.float64)
    v = torch.linspace(-1, 1, ridge.dimension).double().requires_grad_()
    (first,) = torch.autograd.grad(ridge.train_loss(lam, v), v)
    (second,) = torch.autograd.grad(ridge.valid_loss(v), v)
    expected = torch.rad2deg(torch.acos(first @ second / (first.norm() * second.norm()))).item()
    assert toy.angle(ridge, lam, v.detach()) == pytest.approx(expected, rel=1e-9)


def test_angle_is_zero_without_penalty_if_both_sets_are_equal():
    ridge = same()
    v = torch.linspace(-1, 1, ridge.dimension).double()
    assert toy.angle(ridge, torch.tensor(-torch.inf).double(), v) == pytest.approx(0, abs=1e-12)
    assert toy.angle(ridge, torch.tensor(9.0).double(), v) > 1


def test_first_step_of_an_uncentred_response_is_the_training_gradient_times_lambda():
    # (3.6): an uncentred Φ moves by −α ∇L_T (λ+ε)ᵀ, and a centred Φ only by the noise term −α ∇L_T εᵀ.
    ridge = problem(initial=50.0)
    for variant, least, most in (("stn", 0.9, 1.1), ("centered-only", -0.3, 0.3)):
        tuner = toy.rd.SelfTuner(ridge.task(0), toy.VARIANTS[variant], preset="paper", batch_size=4096, device="cpu")
        x, t = ridge.data.x.float(), ridge.data.t.float()[:, None]
        x, t = x.repeat(20, 1), t.repeat(20, 1)  # approximates the mean over ε
        response, lam = tuner.response, tuner.space.lam.detach()
        weight = tuner.model[-1].weight
        torch.nn.init.zeros_(weight)
        loss = tuner.objective.train_loss(x, t, tuner.algorithm._perturbation(len(x)))
        moved = torch.autograd.grad(loss, response.U)[0]
        gradient = -ridge.correlation.float()  # ∇_w L_T at w = 0
        aligned = gradient @ next(iter(response.directions.values()))[0] * lam
        assert least < (moved[0, 0] / aligned[0]).item() < most


def test_early_hypergradient_moves_lambda_away_from_zero_only_if_uncentred():
    # (3.8) with equal gradients: the spike has the sign of λ, wherever the optimum is.
    found = {}
    for variant in ("stn", "centered-only"):
        for initial in (50.0, 0.02):
            ridge = same(initial)
            pushes = []
            for seed in range(4):
                tuner = toy.rd.SelfTuner(
                    ridge.task(seed),
                    toy.VARIANTS[variant],
                    preset="paper",
                    lr=1e-4,
                    momentum=0.9,
                    clip_grad=1.0,
                    tune_scale=False,
                    batch_size=10,
                    epochs=1,
                    warmup_steps=99,
                    seed=seed,
                    device="cpu",
                )
                tuner.step()
                away = torch.sign(tuner.space.lam.detach())
                pushes.append(-(away * learned_hypergradient(tuner, ridge.data)).item())
            found[variant, initial] = np.array(pushes)
    for initial in (50.0, 0.02):
        assert (found["stn", initial] > 0).all()
        assert (np.abs(found["centered-only", initial]) < 0.3 * found["stn", initial]).all()


def test_command_writes_rows_and_a_picture(tmp_path, capsys):
    out, picture = tmp_path / "new" / "rows.json", tmp_path / "toy.png"
    run = ["--seeds", "2", "--cycles", "3", "--settings", "0.001:0,0.03:20", "--variants", "stn,delta-stn"]
    toy.main([*run, "--json", str(out), "--plot", str(picture)])
    record = json.loads(out.read_text())
    assert list(record) == ["command", "summary", "versions", "rows"]
    rows = record["rows"]
    assert [(row["lr"], row["warmup"], row["seed"], row["variant"]) for row in rows] == [
        (lr, warmup, seed, variant)
        for lr, warmup in ((0.001, 0), (0.03, 20))
        for seed in (0, 1)
        for variant in ("stn", "delta-stn")
    ]
    assert [len(row.get("trajectory", [])) for row in rows] == [4] * 4 + [0] * 4
    assert picture.stat().st_size > 10_000
    assert "median (largest) excursion  stn" in capsys.readouterr().out
    assert [(e["lr"], e["variant"], e["n"]) for e in record["summary"]] == [
        (0.001, "stn", 2),
        (0.001, "delta-stn", 2),
        (0.03, "stn", 2),
        (0.03, "delta-stn", 2),
    ]
    mine = [row["excursion"] for row in rows if (row["lr"], row["variant"]) == (0.001, "stn")]
    found = record["summary"][0]["excursion"]
    assert found["largest"] == max(mine)
    assert found["mean"] == pytest.approx(sum(mine) / 2, rel=1e-5)
    bare, again = tmp_path / "bare.json", tmp_path / "again.png"
    bare.write_text(json.dumps(rows))
    toy.main(["--rows", str(bare), "--json", str(bare), "--plot", str(again)])
    assert json.loads(bare.read_text()) == {**record, "command": None}
    assert again.read_bytes() == picture.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--settings 0.001", "must be pairs of a number > 0 and a whole number >= 0, as in"),
        ("--settings 0:0", "must be pairs of a number > 0 and a whole number >= 0, as in"),
        ("--settings 0.1:-1", "must be pairs of a number > 0 and a whole number >= 0, as in"),
        ("--variants fixed", "`--variants` must be names from stn"),
        ("--seeds 0", "argument --seeds: must be a whole number >= 1, got '0'"),
        ("--cycles 0", "argument --cycles: must be a whole number >= 1, got '0'"),
        ("--rows nowhere.json", "`nowhere.json` must contain a record in JSON"),
    ],
)
def test_wrong_arguments_end_with_one_error_line(arguments, message, refusal):
    assert message in refusal(toy.main, *arguments.split())
