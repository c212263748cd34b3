"""Interrupt and resume with searchers and schedulers whose states are stored differently."""

import signal

import pytest
from ray import tune

from ray_deltastn.cli import main
from ray_deltastn.tune.folder.results import read_results
from ray_deltastn.tune.schedulers import make_scheduler
from tests.tune.commands import command, wait_for
from tests.tune.counting import Counting

CONFIG = """
task: tests.tune.tiny:build
options: {slow: 0.02}
train: {epochs: 6, batch_size: 4, warmup: 1, hyper_lr: 0.05, seed: 3}
search: {lr: "uniform(0.01, 0.05)"}
tune: {num_samples: 2, checkpoint_every: 2}
"""


@pytest.mark.parametrize("kind", [("grid", "fifo"), ("random", "pbt")])
def test_an_experiment_interrupted_during_its_last_trials_can_be_resumed(kind, tmp_path, ray_cluster):
    searcher, scheduler = kind
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(CONFIG)
    choice = ["--set", f"tune.searcher={searcher}", "--set", f"tune.scheduler={scheduler}"]
    process = command("run", config, "--out", out, *choice, start_new_session=True)
    wait_for(lambda: len({path.parent for path in out.glob("trials/*/checkpoint_*")}) == 2, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error.splitlines()[-1]) == (130, "ray-deltastn: stopped; continue with --resume")
    assert not (out / "results.csv").exists()
    assert main(["run", str(config), "--out", str(out), *choice, "--resume"]) == 0
    results = read_results(out / "results.csv")
    assert results.groupby("trial_id")["training_iteration"].apply(list).tolist() == [list(range(1, 7))] * 2


# A trial ends or fails before the report at which all trials wait for each other.
@pytest.mark.parametrize(("what", "when"), [("ends", 2), ("fails", 2)])
def test_a_population_does_not_wait_for_a_trial_that_has_ended(what, when, tmp_path, ray_cluster):
    others = {"ends": 6, "fails": 0, "lr": tune.uniform(0.1, 1.0)}
    # The first trial ends or fails early. Three trials share two CPUs.
    odd = tune.sample_from(lambda spec: when if next(numbers) == 0 else others[what])
    numbers = iter(range(10))
    analysis = tune.run(
        Counting,
        metric="loss",
        mode="min",
        config={**others, what: odd},
        num_samples=3,
        storage_path=str(tmp_path),
        scheduler=make_scheduler("pbt", {"lr": tune.uniform(0.1, 1.0)}, reports=16),
        verbose=0,
        raise_on_failed_trial=False,
        reuse_actors=True,
    )
    assert sorted(trial.status for trial in analysis.trials) == sorted(
        ["TERMINATED", "TERMINATED", "ERROR" if what == "fails" else "TERMINATED"]
    )
