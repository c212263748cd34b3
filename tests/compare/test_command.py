"""`ray-deltastn compare` on a tiny task: an equal budget, spent; what has ended is not run again."""

import pandas as pd

from ray_deltastn.cli import main
from ray_deltastn.tune.budget import EpochBudget

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


def test_methods_are_compared_and_the_comparison_goes_on(tmp_path, ray_cluster, capsys):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(YAML)
    command = ["compare", str(config), "--seeds", "1", "--out", str(out)]
    assert main([*command, "--methods", "asha,delta-stn"]) == 0
    results = pd.read_csv(out / "results.csv")
    spent = results.groupby("method").size()
    assert spent["delta-stn"] == 4
    # Trials that run side by side may each be at work on a report when the last epoch of the budget comes in.
    assert 4 <= spent["asha"] <= 4 + 2
    assert main([*command, "--methods", "asha,delta-stn"]) == 1
    assert "continue it with --resume" in capsys.readouterr().err
    assert (out / "report.html").exists()
    assert main(["status", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "ended" in line]
    assert [(line[1], int(line[7])) for line in lines] == [("asha-s0", spent["asha"]), ("single-delta-stn-x1", 4)]
    assert main(["report", str(out)]) == 0
    assert "4 epochs for every method and seed" in capsys.readouterr().out
    assert main([*command, "--methods", "asha,delta-stn,random", "--resume"]) == 0
    after = pd.read_csv(out / "results.csv")
    assert after.groupby("method").size().to_dict() == {"asha": spent["asha"], "delta-stn": 4, "random": 4}
    before = results[results["method"] == "asha"]["arrived"].tolist()
    assert after[after["method"] == "asha"]["arrived"].tolist() == before
    table = pd.read_csv(out / "summary.csv")
    assert table["method"].tolist() == ["asha", "delta-stn", "random"]
    assert "one seed: no statement" in capsys.readouterr().out
