"""The three estimates of a hypergradient, in cases where the exact value is known."""

import json
from argparse import Namespace

import pytest
import torch

from benchmarks import images_hypergradient as look
from benchmarks.common import hypergradients as measure
from tests.benchmarks.small_problems import ridge_run


def test_long_retraining_is_the_exact_difference():
    problem, config, tuner = ridge_run()
    list(tuner.fit())
    shift, lam = 0.5, tuner.space.lam.detach().double()
    (found,) = measure.retrained(tuner, config, 0, shift, [1500])
    exact = (problem.outer(lam + shift) - problem.outer(lam - shift)).item() / (2 * shift)
    assert found == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("method", ["stn", "delta-stn"])
def test_retraining_starts_from_the_exported_weights(method, monkeypatch):
    _, config, tuner = ridge_run(method=method)
    list(tuner.fit())
    started, make = [], measure.tuner_of

    def making(*arguments, **options):
        plain = make(*arguments, **options)
        step = plain.step
        plain.step = lambda: (started.append(plain.model[0].weight.detach().clone()), step())[1]
        return plain

    monkeypatch.setattr(measure, "tuner_of", making)
    measure.retrained(tuner, config, 0, 0.5, [1])
    exported = tuner.export()["0.weight"]
    assert [torch.equal(weight, exported) for weight in started] == [True, True]
    assert torch.equal(exported, tuner.model[0].weight) == (method != "stn")  # r(λ), not the weights at δ = 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hypergradients_are_on_the_device_of_lambda():
    _, _, tuner = ridge_run(device="cuda")
    tuner.step()
    assert measure.hypergradients(tuner, 4, 3).device.type == "cuda"


def test_measuring_does_not_change_the_run():
    _, config, tuner = ridge_run()
    _, _, other = ridge_run()
    tuner.step()
    other.step()
    options = Namespace(
        batches=[4], draws=3, horizons=[2, 4], shift=0.5, pairs=2, repeats=2, average=3, moments=2, images=10
    )
    look.look(tuner, config, options)
    found, expected = tuner.step(), other.step()
    assert {k: v for k, v in found.items() if "seconds" not in k} == {
        k: v for k, v in expected.items() if "seconds" not in k
    }


def test_noise_decreases_with_the_root_of_the_batch_size():
    _, _, tuner = ridge_run()
    for _ in tuner.fit():
        pass
    spread = [measure.hypergradients(tuner, batch, 400).std().item() for batch in (16, 256)]
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.25)


def test_the_command_writes_rows_and_a_picture(tmp_path, capsys):
    out, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    run = ["--task", "tests.tune.tiny:build", "--set", "batch_size=16", "--set", "warmup=1", "--epochs", "2,3"]
    sizes = [
        "--batches",
        "4,8",
        "--draws",
        "3",
        "--horizons",
        "2,4",
        "--pairs",
        "2",
        "--repeats",
        "2",
        "--seeds",
        "2",
        "--moments",
        "2",
        "--average",
        "5",
    ]
    torch.set_num_threads(2)
    look.main([*run, *sizes, "--json", str(out), "--plot", str(picture)])
    record = json.loads(out.read_text())
    assert [(row["seed"], row["epoch"], row["hyperparameter"]) for row in record["rows"]] == [
        (seed, epoch, name) for seed in (0, 1) for epoch in (2, 3) for name in ("dropout", "decay")
    ]
    for kind in ("retrained", "implicit", "averaged"):
        assert record["rows"][0][kind].keys() == {"2", "4"}
        assert record["rows"][0][kind]["2"]["error"] > 0
    first, second = (next(r for r in record["rows"] if r["seed"] == seed)["learned"]["mean"] for seed in (0, 1))
    assert first != second
    assert picture.stat().st_size > 10_000
    assert "learned and retrained 4 steps: same sign in" in capsys.readouterr().out
    assert torch.get_num_threads() == 1


def test_noise_alone_is_the_same_as_with_all_else(tmp_path, capsys):
    run = [
        "--task",
        "tests.tune.tiny:build",
        "--set",
        "batch_size=16",
        "--set",
        "warmup=1",
        "--epochs",
        "2,3",
        "--batches",
        "4,8",
        "--draws",
        "3",
        "--moments",
        "2",
    ]
    rest = ["--horizons", "2", "--pairs", "1", "--repeats", "2", "--average", "2"]
    records = []
    for name, more in (("all", rest), ("noise", ["--noise-only"])):
        look.main([*run, *more, "--json", str(tmp_path / name)])
        records.append(json.loads((tmp_path / name).read_text()))
    whole, noise = (record["rows"] for record in records)
    for row in whole:
        del row["implicit"], row["averaged"]
        row["retrained"] = {}
    assert noise == whole
    assert "pairs" not in records[1]
    assert "median signal to noise over time" in capsys.readouterr().out.splitlines()[-1]


def test_pairs_of_retraining_differ_in_their_random_numbers_only():
    tuner = measure.tuner_of({"task": "tests.tune.tiny:build", "seed": 0, "epochs": 2, "batch_size": 16, "warmup": 1})
    list(tuner.fit())
    config = {"task": "tests.tune.tiny:build", "seed": 0, "epochs": 2, "batch_size": 16, "warmup": 1}
    one, again, other = (measure.retrained(tuner, config, 0, 0.5, [4], seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_averaged_weights_are_the_mean_over_the_steps():
    _, config, tuner = ridge_run()
    list(tuner.fit())
    lam = tuner.space.lam.detach()
    found = measure.averaged(tuner, config, 3).model[0].weight
    plain = measure.plain_copy(tuner, config, lam, steps_per_report=1)
    after = [plain.model[0].weight.detach().clone() for _ in range(3) if plain.step()]
    torch.testing.assert_close(found, torch.stack(after).mean(0))


def test_later_moments_continue_the_run_with_lambda_fixed(monkeypatch):
    _, config, tuner = ridge_run()
    tuner.step()
    lam, weight = tuner.space.lam.detach().clone(), tuner.model[0].weight.detach().clone()
    seen, draw = [], measure.hypergradients
    monkeypatch.setattr(measure, "hypergradients", lambda later, *sizes: (seen.append(later), draw(later, *sizes))[1])
    found = measure.steady(tuner, config, 8, 3)
    assert len(found) == 3
    assert len({tuple(row) for row in found}) == 3
    assert torch.equal(seen[-1].space.lam, lam)
    assert not torch.equal(seen[-1].model[0].weight, weight)
    assert torch.equal(tuner.model[0].weight, weight)


def test_only_clear_signs_are_compared():
    def known(mean, error=0.1, n=6):
        return {"n": n, "mean": mean, "error": error}

    def row(learned, after):
        still = {"5": known(0.0)}
        return {
            "learned": learned,
            "steady": learned,
            "implicit": {"5": after},
            "averaged": still,
            "retrained": {"5": known(-1.0)},
            "signal_to_noise": {},
        }

    assert [look.sign(known(m)) for m in (0.3, -0.3, 0.1, -0.1)] == [1, -1, 0, 0]
    # By Student's t, six values need 2.57 standard errors, and three values need 4.30.
    assert [look.sign(known(m)) for m in (0.26, 0.25)] == [1, 0]
    assert [look.sign(known(m, n=3)) for m in (0.44, 0.42)] == [1, 0]
    assert look.sign(known(1.0, None)) == look.sign(known(None, None)) == 0
    rows = [row(known(1.0), known(2.0)), row(known(1.0), known(-2.0)), row(known(0.25), known(2.0))]
    lines = look.agreement(rows)
    assert lines[:4] == [
        "learned and steady: same sign in 2 of 2 clear cases",
        "learned and implicit 5 steps: same sign in 1 of 2 clear cases",
        "learned and averaged 5 steps: same sign in 0 of 0 clear cases",
        "learned and retrained 5 steps: same sign in 0 of 2 clear cases",
    ]


def test_estimate_is_the_mean_and_its_standard_error():
    assert look.estimate([1.0, 2.0, 3.0]) == {"n": 3, "mean": 2.0, "error": pytest.approx(3**-0.5, rel=1e-5)}
    assert look.estimate([1.0]) == {"n": 1, "mean": 1.0, "error": None}
    assert look.estimate([1.0, float("nan")]) == {"n": 2, "mean": None, "error": None}
    assert look.estimate([float("inf"), -float("inf")])["mean"] is None


def test_a_row_agrees_with_the_closed_form():
    problem, config, tuner = ridge_run(momentum=0.9)
    with torch.no_grad():
        tuner.space.lam.fill_(1.0)
        tuner.model[0].weight.copy_(problem.best_response(torch.ones(1, dtype=torch.float64)))
    options = Namespace(
        batches=[64], draws=3, horizons=[2000], shift=0.05, pairs=1, repeats=2, average=1, moments=2, images=1000
    )
    (row,) = look.look(tuner, config, options)
    exact = problem.hypergradient(torch.ones(1, dtype=torch.float64)).item()
    assert row["implicit"]["2000"]["mean"] == pytest.approx(exact, rel=2e-3)
    assert row["averaged"]["2000"]["mean"] == pytest.approx(exact, rel=2e-3)
    assert row["retrained"]["2000"]["mean"] == pytest.approx(exact, rel=2e-3)
    assert row["implicit"]["2000"]["n"] == 2


@pytest.mark.slow
def test_a_diverged_training_is_reported(tmp_path, capsys):
    run = [
        "--task",
        "tests.tune.tiny:build",
        "--set",
        "batch_size=16",
        "--set",
        "warmup=1",
        "--set",
        "lr=3",
        "--epochs",
        "2",
        "--batches",
        "4",
        "--draws",
        "3",
        "--horizons",
        "2,400",
        "--pairs",
        "2",
        "--repeats",
        "2",
        "--moments",
        "2",
        "--average",
        "5",
    ]
    look.main([*run, "--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "rows.png")])
    assert "400: diverged" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["implicit"]["400"] == {"n": 2, "mean": None, "error": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "`optimizer` must be 'sgd' for a quadratic model of training, got 'adam'"),
        ({"weight_decay": 0.1}, "`weight_decay` must be 0 for a quadratic model of training, got 0.1"),
        ({"clip_grad": 1.0}, "`clip_grad` must be None for a quadratic model of training, got 1.0"),
    ],
)
def test_training_that_the_local_model_does_not_cover_is_refused(changes, message):
    _, _, tuner = ridge_run(**changes)
    with pytest.raises(ValueError, match=message):
        measure.check(tuner)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task nothing", "`task` must be one of"),
        ("--method fixed", "`--method` must learn a response, got 'fixed'"),
        ("--method ift", "`--method` must learn a response, got 'ift'"),
        ("--method fxed", "`method` must be one of"),
        ("--horizons 0", "argument --horizons: must be a whole number >= 1, got '0'"),
        ("--epochs 0", "argument --epochs: must be a whole number >= 1, got '0'"),
        ("--draws 1", "argument --draws: must be a whole number >= 2, got '1'"),
        ("--set optimizer=adam", "`optimizer` must be 'sgd' for a quadratic model of training, got 'adam'"),
        ("--shift 0", "argument --shift: must be a finite number > 0, got '0'"),
        ("--set lr=-1", "`lr > 0` must hold, got lr=-1"),
        ("--set epochs=3", "must not set epochs, use the flag `--epochs`"),
        ("--json {folder}", "`{folder}` must be a file to write, got a folder"),
    ],
)
def test_wrong_arguments_end_with_one_error_line(arguments, message, refusal, tmp_path):
    given = [word.format(folder=tmp_path) for word in arguments.split()]
    assert message.format(folder=tmp_path) in refusal(look.main, "--task", "tests.tune.tiny:build", *given)
