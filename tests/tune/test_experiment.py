"""The command `run`: run, kill and resume an experiment, and refuse mistakes."""

import os
import shutil
import signal
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from filelock import FileLock

import ray_deltastn as rd
from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.cli import main
from ray_deltastn.training import random_state
from ray_deltastn.tune.folder.log import read_log
from ray_deltastn.tune.folder.report_log import ReportLog
from ray_deltastn.tune.folder.results import collect, read_results
from ray_deltastn.tune.guards import make_free
from tests.tune.commands import command, wait_for
from tests.tune.tiny import build, finish

#: All tests here use an experiment that ran in processes with clusters.
pytestmark = pytest.mark.ray

CONFIG = """
task: tests.tune.tiny:build
train:
  {epochs: 24, batch_size: 4, warmup: 1, hyper_lr: 0.05, seed: 3, schedule: {name: plateau, factor: 0.5, patience: 1}}
search: {lr: "loguniform(0.01, 0.3)", momentum: "uniform(0.0, 0.9)"}
tune: {searcher: bo, num_samples: 4, checkpoint_every: 2, max_concurrent: 2}
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """An experiment whose driver was stopped, killed and resumed: temporary folder, YAML file, results, output."""
    folder = tmp_path_factory.mktemp("experiment")
    config, out = folder / "tiny.yaml", folder / "out"
    config.write_text(CONFIG)
    trials = out / "trials"
    process = command("run", config, "--out", out, start_new_session=True)
    wait_for(lambda: list(trials.glob("*/checkpoint_*")), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error.splitlines()[-1]) == (130, "ray-deltastn: stopped; continue with --resume")
    assert not (out / "results.csv").exists()
    process = command("run", config, "--out", out, "--resume", start_new_session=True)
    # Kill the driver after one trial has ended and while another one with a checkpoint is running.
    wait_for(
        lambda: len(list(trials.glob("*/checkpoint_*"))) > 3 and len(list(trials.glob("*/progress.csv"))) > 2, process
    )
    time.sleep(0.7)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "results.csv").exists()
    shutil.copytree(out, folder / "killed")
    process = command("run", config, "--out", out, "--resume")
    printed, error = process.communicate()
    assert process.returncode == 0, error
    return folder, config, out, printed


def test_every_trial_of_a_resumed_experiment_ends_like_an_uninterrupted_one(resumed):
    _, _, out, _ = resumed
    results = read_results(out / "results.csv")
    assert results["trial_id"].nunique() == 4
    for name, trial in results.groupby("trial_id"):
        assert len(list((out / "trials" / str(name)).glob("checkpoint_*"))) == 2
        assert trial["training_iteration"].tolist() == list(range(1, 25))
        alone = DeltaSTNTrainable(read_log(out)[str(name)][-1].config)
        last = finish(alone)[-1]
        for key, value in last.items():
            found = trial[key].iloc[-1]
            assert found == value or pd.isna(found), (key, found, value)


def test_the_pictures_read_the_folder(resumed):
    _, _, out, _ = resumed
    best = read_results(out / "results.csv").sort_values("valid_loss").iloc[0]
    rate, _ = rd.plot.schedules(str(out)).axes
    assert rate.get_lines()[0].get_xdata().tolist() == list(range(1, 25))
    (axis,) = rd.plot.loss_over_time(out).axes
    assert axis.get_lines()[-1].get_ydata()[-1] == best["valid_loss"]
    assert [axis.get_title() for axis in rd.plot.sensitivity(out).axes] == ["dropout", "decay"]


def test_the_report_holds_all_pictures_and_tables(resumed):
    _, _, out, printed = resumed
    page = (out / "report.html").read_text()
    assert "of the trainable weights respond to the hyperparameters." in page
    assert page.count("data:image/png;base64,") == 4  # schedules, losses, response, signal
    assert 'src="http' not in page
    for text in ("valid loss", "test loss", "accuracy", "seconds", "learned", "momentum", "dropout", "decay"):
        assert text in page
    assert all((out / name).stat().st_size > 5000 for name in ("schedules.png", "loss_over_time.png"))
    assert not (out / "augmentation.png").exists()  # the task has no images
    assert "Best trial" in printed
    assert "valid loss" in printed


def test_an_unfinished_experiment_is_not_overwritten(resumed, capsys):
    folder, config, _, _ = resumed
    assert main(["run", str(config), "--out", str(folder / "killed")]) == 1
    assert "must not hold an unfinished experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "overrides", "reason"),
    [
        (lambda out: shutil.rmtree(out), [], "must hold an experiment to resume, got none"),
        (lambda out: [p.unlink() for p in out.glob("*/experiment_state-*")], [], "Tune's experiment state"),
        (lambda out: [p.unlink() for p in out.glob("*/search*state*")], [], "the searcher's state"),
        (
            lambda out: [p.write_text("{") for p in out.glob("*/experiment_state-*")],
            [],
            "must hold readable states",
        ),
        (lambda out: [p.write_text("{") for p in out.glob("*/searcher-state-*")], [], "must hold readable states"),
        (
            lambda out: None,
            ["train.epochs=9"],
            "`train.epochs` must be the same as in the experiment to resume, got 9 instead of 24",
        ),
    ],
    ids=["nothing", "no-state", "no-searcher", "broken-state", "broken-searcher", "other-config"],
)
def test_resume_refuses_instead_of_restarting(resumed, tmp_path, capsys, damage, overrides, reason):
    folder, config, _, _ = resumed
    out = tmp_path / "out"
    shutil.copytree(folder / "killed", out)
    damage(out)
    sets = [part for override in overrides for part in ("--set", override)]
    assert main(["run", str(config), "--out", str(out), "--resume", *sets]) == 1
    error = capsys.readouterr().err.strip()
    assert reason in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("tune.metric=valid_los", "did you mean `best_valid_loss`"),
        ("options.widht=12", "did you mean `options.width`"),
        ("search.lr=uniform(-1, 1)", "`lr > 0` must hold, got lr=-1"),
        ("train.method=ift", "must act through penalties for 'ift', which differentiates the training loss"),
        ("search.method=choice(['delta-stn', 'unrolled'])", "got 'dropout', of Dropout"),
        ("search.optimizer=choice(['sgd', 'adam'])", None),
    ],
)
def test_mistakes_are_refused_before_any_trial_starts(resumed, tmp_path, capsys, override, reason):
    _, config, _, _ = resumed
    more = [] if reason else ["--set", "train.method=unrolled"]
    assert main(["run", str(config), "--out", str(tmp_path / "out"), "--set", override, *more]) == 1
    error = capsys.readouterr().err.strip()
    assert (reason or "`optimizer` must be sgd for 'unrolled', got 'adam'") in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_more_cpus_than_the_machine_has_are_refused(resumed, tmp_path, capsys, ray_cluster):
    _, config, _, _ = resumed
    assert main(["run", str(config), "--out", str(tmp_path / "out"), "--set", "tune.cpu=64"]) == 1
    assert "`tune.cpu <= CPUs of the largest machine` must hold, got 64 and 2" in capsys.readouterr().err


def test_a_folder_of_another_user_is_resumed_only_with_trust(resumed, capsys, monkeypatch, ray_cluster):
    _, config, out, _ = resumed
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert main(["run", str(config), "--out", str(out), "--resume"]) == 1
    assert f"`{out}` must belong to you" in capsys.readouterr().err
    with FileLock(out / ".lock"):  # with --trust, the command passes this check and stops at the lock
        assert main(["run", str(config), "--out", str(out), "--resume", "--trust"]) == 1
    assert "must not be in use by another command" in capsys.readouterr().err


def test_a_second_command_on_the_same_folder_is_refused(resumed, capsys, ray_cluster):
    _, config, out, _ = resumed
    (out / "results.csv").rename(out / "kept.csv")
    with FileLock(out / ".lock"):
        assert main(["run", str(config), "--out", str(out), "--resume"]) == 1
    (out / "kept.csv").rename(out / "results.csv")
    assert f"`{out}` must not be in use by another command" in capsys.readouterr().err


def test_a_finished_experiment_is_kept_when_run_again(resumed, tmp_path):
    _, _, out, _ = resumed
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    make_free(copy)
    assert not copy.exists()
    assert (tmp_path / "out.1" / "results.csv").exists()


def test_report_can_be_written_again_and_an_empty_folder_is_refused(resumed, tmp_path, capsys):
    _, _, out, _ = resumed
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").exists()
    assert main(["report", str(tmp_path)]) == 1
    assert "must hold a finished experiment" in capsys.readouterr().err


@pytest.mark.parametrize("trial_id", ["4371810e6", "00123456", "12345678", "0000000e"])
def test_a_trial_id_that_looks_like_a_number_stays_text(trial_id, tmp_path):
    log = ReportLog(tmp_path)
    trial = SimpleNamespace(trial_id=trial_id, config={"lr": 0.5, "inner": {"rate": 7}})
    for moment, loss in enumerate((0.5, 0.25)):
        report = {"training_iteration": 1, "valid_loss": loss, "timestamp": float(moment), "config": trial.config}
        log.on_trial_result(0, [], trial, report)
    results = collect(tmp_path)
    assert results["trial_id"].tolist() == [trial_id]
    assert results["valid_loss"].tolist() == [0.25]  # the later report of a restored trial counts
    assert results[["config/lr", "config/inner/rate"]].to_numpy().tolist() == [[0.5, 7.0]]
    results.to_csv(tmp_path / "results.csv", index=False)
    assert read_results(tmp_path / "results.csv")["trial_id"].tolist() == [trial_id]


def test_the_results_folder_has_the_best_network_and_its_schedule(resumed):
    _, _, out, _ = resumed
    results = read_results(out / "results.csv")
    best = results.loc[results["valid_loss"].idxmin()]
    alone = DeltaSTNTrainable(read_log(out)[str(best["trial_id"])][-1].config)
    finish(alone)
    assert alone.tuner.best.report["valid_loss"] == best["valid_loss"]
    weights = rd.load_weights(out)
    assert all(torch.equal(weights[name], value) for name, value in alone.tuner.export(best=True).items())
    assert rd.load_schedule(out).equals(alone.tuner.schedule())


def test_refit_trains_again_with_the_schedule_of_a_trial(resumed, capsys):
    _, _, out, _ = resumed
    results = read_results(out / "results.csv")
    trial = str(results.loc[results["valid_loss"].idxmin(), "trial_id"])
    config = read_log(out)[trial][-1].config
    assert main(["refit", str(out)]) == 0
    assert "test loss" in capsys.readouterr().out
    alone = DeltaSTNTrainable(config)
    rates = {0: config["lr"], **{report["epoch"]: report["lr"] for report in finish(alone)}}
    falls = [epoch for epoch in range(1, 25) if rates[epoch] < rates[epoch - 1]]
    assert falls
    with random_state.isolated(3):
        task = build(config)
    options = {name: config[name] for name in ("batch_size", "lr", "momentum", "seed")}
    # There is no validation loss for a plateau any more, so the learning rate falls where it fell in the trial.
    options["schedule"] = {"name": "multistep", "milestones": falls, "gamma": 0.5}
    expected = rd.refit(task, alone.tuner.schedule(best=True), **options)
    found = torch.load(out / "refit" / f"{trial}-schedule" / "model.pt", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert main(["refit", str(out), "--of", "nothing"]) == 1
    assert "`trial` must be one of" in capsys.readouterr().err
