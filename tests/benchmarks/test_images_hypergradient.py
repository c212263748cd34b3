"""The three looks at a hypergradient, where the answers are known."""

import json
from argparse import Namespace

import pytest
import torch

from benchmarks import images_hypergradient as look
from benchmarks.toy_problems import Problem
from tests.benchmarks.test_toy import small


def ridge_run(seed=0, **changes):
    problem = Problem("ridge", small(seed))
    config = {
        "task": lambda config: problem.task(seed), "method": "delta-stn", "seed": seed, "lr": 0.1, "epochs": 3,
        "batch_size": 1000, "warmup": 1, "train_interval": 1, "device": "cpu", **changes,
    }  # fmt: skip
    return problem, config, look.tuner_of(config)


def test_long_retraining_is_the_exact_difference():
    problem, config, tuner = ridge_run()
    list(tuner.fit())
    shift, lam = 0.5, tuner.space.lam.detach().double()
    (found,) = look.retrained(tuner, config, 0, shift, [1500])
    exact = (problem.outer(lam + shift) - problem.outer(lam - shift)).item() / (2 * shift)
    assert found == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("method", ["stn", "delta-stn"])
def test_retraining_starts_from_the_exported_weights(method, monkeypatch):
    _, config, tuner = ridge_run(method=method)
    list(tuner.fit())
    started, make = [], look.tuner_of

    def making(*arguments, **options):
        plain = make(*arguments, **options)
        step = plain.step
        plain.step = lambda: (started.append(plain.model[0].weight.detach().clone()), step())[1]
        return plain

    monkeypatch.setattr(look, "tuner_of", making)
    look.retrained(tuner, config, 0, 0.5, [1])
    exported = tuner.export()["0.weight"]
    assert [torch.equal(weight, exported) for weight in started] == [True, True]
    assert torch.equal(exported, tuner.model[0].weight) == (method != "stn")  # r(λ), not the weights at δ = 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hypergradients_are_drawn_where_lambda_is():
    _, _, tuner = ridge_run(device="cuda")
    tuner.step()
    assert look.hypergradients(tuner, 4, 3).device.type == "cuda"


def test_looking_leaves_the_run_as_it_was():
    _, config, tuner = ridge_run()
    _, _, other = ridge_run()
    tuner.step()
    other.step()
    options = Namespace(batches=[4], draws=3, horizons=[2, 4], shift=0.5, pairs=2, repeats=2, images=10)
    look.look(tuner, config, options)
    found, expected = tuner.step(), other.step()
    assert {k: v for k, v in found.items() if "seconds" not in k} == {
        k: v for k, v in expected.items() if "seconds" not in k
    }


def test_noise_falls_with_the_root_of_the_batch():
    _, _, tuner = ridge_run()
    for _ in tuner.fit():
        pass
    spread = [look.hypergradients(tuner, batch, 400).std().item() for batch in (16, 256)]
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.25)


def test_the_command_writes_rows_and_a_picture(tmp_path, capsys):
    out, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    run = ["--task", "tests.tune.tiny:build", "--set", "batch_size=16", "--set", "warmup=1", "--epochs", "2,3"]
    sizes = ["--batches", "4,8", "--draws", "3", "--horizons", "2,4", "--pairs", "2", "--repeats", "2", "--seeds", "2"]
    look.main([*run, *sizes, "--json", str(out), "--plot", str(picture)])
    record = json.loads(out.read_text())
    assert [(row["seed"], row["epoch"], row["hyperparameter"]) for row in record["rows"]] == [
        (seed, epoch, name) for seed in (0, 1) for epoch in (2, 3) for name in ("dropout", "decay")
    ]
    for kind in ("retrained", "implicit"):
        assert record["rows"][0][kind].keys() == {"2", "4"}
        assert record["rows"][0][kind]["2"]["error"] > 0
    first, second = (next(r for r in record["rows"] if r["seed"] == seed)["learned"]["mean"] for seed in (0, 1))
    assert first != second
    assert picture.stat().st_size > 10_000
    assert "learned and retrained 4 steps: same sign in" in capsys.readouterr().out
    assert torch.get_num_threads() == 1


def test_pairs_of_retraining_differ_in_their_random_numbers_only():
    tuner = look.tuner_of({"task": "tests.tune.tiny:build", "seed": 0, "epochs": 2, "batch_size": 16, "warmup": 1})
    list(tuner.fit())
    config = {"task": "tests.tune.tiny:build", "seed": 0, "epochs": 2, "batch_size": 16, "warmup": 1}
    one, again, other = (look.retrained(tuner, config, 0, 0.5, [4], seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_only_signs_beyond_their_error_are_compared():
    def known(mean, error=0.1):
        return {"mean": mean, "error": error}

    def row(learned, after):
        return {"learned": learned, "implicit": {"5": after}, "retrained": {"5": known(-1.0)}, "signal_to_noise": {}}

    assert [look.sign(known(m)) for m in (0.3, -0.3, 0.1, -0.1)] == [1, -1, 0, 0]
    assert look.sign(known(1.0, None)) == look.sign(known(None, None)) == 0
    rows = [row(known(1.0), known(2.0)), row(known(1.0), known(-2.0)), row(known(0.15), known(2.0))]
    lines = look.agreement(rows)
    assert lines[0] == "learned and implicit 5 steps: same sign in 1 of 2 clear cases"
    assert lines[1] == "learned and retrained 5 steps: same sign in 0 of 2 clear cases"


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
        ("--shift 0", "argument --shift: must be a finite number > 0, got '0'"),
        ("--set lr=-1", "`lr > 0` must hold, got lr=-1"),
        ("--set epochs=3", "which has a flag of its own, `--epochs`"),
        ("--json {folder}", "`{folder}` must be a file to write, got a folder"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(arguments, message, refusal, tmp_path):
    given = [word.format(folder=tmp_path) for word in arguments.split()]
    assert message.format(folder=tmp_path) in refusal(look.main, "--task", "tests.tune.tiny:build", *given)
