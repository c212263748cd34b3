"""`ray-deltastn compare` on a tiny task spends an equal budget and does not repeat finished experiments."""

import shutil

import pandas as pd

from ray_deltastn.cli import main
from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.compare.run import Asked
from ray_deltastn.tune.schedulers import EpochBudget

YAML = """
task: tests.tune.tiny:build
train: {epochs: 2, batch_size: 16, warmup: 1}
search: {lr: "loguniform(0.01, 0.3)"}
single: {lr: 0.1}
trials: 2
"""


def test_the_budget_counts_an_epoch_once():
    budget = EpochBudget(4, {"before": 1})
    for trial, epoch in (("a", 1), ("a", 2), ("b", 1), ("a", 2)):
        assert not budget.stop_all() or (trial, epoch) == ("a", 2)
        assert budget(trial, {"epoch": epoch}) is False
    assert budget.stop_all()


def test_methods_are_compared_and_the_comparison_is_resumed(tmp_path, ray_cluster, capsys):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(YAML)
    command = ["compare", str(config), "--out", str(out)]
    # A command that was refused before any trial does not block the next one.
    assert main([*command, "--methods", "asha", "--set", "tune.gpu=4"]) == 1
    assert "tune.gpu" in capsys.readouterr().err
    assert main([*command, "--methods", "delta-stn,asha", "--seeds", "1"]) == 0
    results = pd.read_csv(out / "results.csv")
    spent = results.groupby("method").size()
    assert spent["delta-stn"] == 4
    # When the budget is spent, each trial that runs at that time may still finish one more epoch.
    assert 4 <= spent["asha"] <= 4 + 2
    assert "The comparison has one seed" in capsys.readouterr().out
    assert main([*command, "--seeds", "1"]) == 1
    assert "continue it with --resume" in capsys.readouterr().err
    assert (out / "report.html").exists()
    assert main([*command, "--methods", "asha,delta-stn,random", "--seeds", "1", "--resume"]) == 0
    after = pd.read_csv(out / "results.csv")
    assert after.groupby("method").size().to_dict() == {"asha": spent["asha"], "delta-stn": 4, "random": 4}
    before = results[results["method"] == "asha"]["timestamp"].tolist()
    assert after[after["method"] == "asha"]["timestamp"].tolist() == before
    assert pd.read_csv(out / "summary.csv")["method"].tolist() == ["random", "asha", "delta-stn"]
    capsys.readouterr()
    # An experiment that was killed before Tune wrote a state starts again. Methods and seeds are the same as before.
    for name in ("trials", "states"):
        shutil.rmtree(out / "runs" / "random-s0" / name)
    (out / "runs" / "random-s0" / "results.csv").unlink()
    (out / "results.csv").unlink()
    assert main(["status", str(out)]) == 0
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "-s0" in line]
    states = {line[1].strip(): (line[2].strip(), int(line[4])) for line in lines}
    assert states == {"delta-stn-s0": ("ended", 4), "random-s0": ("stopped", 4), "asha-s0": ("ended", spent["asha"])}
    assert main(["report", str(out)]) == 0
    assert "random, seed 0: 0 of 4 epochs (no finished experiment)" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 0
    again = pd.read_csv(out / "results.csv")
    assert sorted(again["valid_loss"]) == sorted(after["valid_loss"])  # the order of trials may differ
    assert again["wall_seconds"].min() > 0


def test_a_folder_with_an_experiment_or_another_comparison_is_refused(tmp_path, capsys):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(YAML)
    out.mkdir()
    command = ["compare", str(config), "--out", str(out)]
    assert main([*command, "--resume"]) == 1
    assert "must hold a comparison to resume" in capsys.readouterr().err
    assert main([*command, "--set", "task=tests.tune.tiny:biuld"]) == 1
    assert not (out / "comparison.json").exists()  # a refused command writes nothing
    Asked(CompareConfig.read(config), ("random",), 1).write(out)
    assert main([*command, "--set", "train.epochs=3", "--resume"]) == 1
    assert "`train.epochs` must be the same as in the comparison to resume, got 3" in capsys.readouterr().err
    (out / "config.json").write_text("{}")
    assert main(command) == 1
    assert "must not hold an experiment of `ray-deltastn run`" in capsys.readouterr().err
