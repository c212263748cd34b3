"""TensorBoard's files hold the numbers of every report."""

import numpy as np

from ray_deltastn.cli import main
from ray_deltastn.tune.folder.results import read_results
from tests.tune.event_files import scalars

YAML = """
task: tests.tune.tiny:build
train: {epochs: 4, batch_size: 16, warmup: 1, hyper_lr: 0.05}
search: {lr: "loguniform(0.01, 0.1)"}
tune: {searcher: random, num_samples: 2, max_concurrent: 2}
"""


def test_losses_and_hyperparameters_of_each_trial_are_written(tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")  # the default outside the tests
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(YAML)
    assert main(["run", str(config), "--out", str(out)]) == 0
    results = read_results(out / "results.csv")
    assert results["trial_id"].nunique() == 2
    for trial_id, trial in results.groupby("trial_id"):
        (path,) = (out / "trials" / str(trial_id)).glob("events.out.tfevents.*")
        shown = scalars(path)
        for name in ("valid_loss", "hyperparameters/dropout", "hyperparameters/decay", "scale/dropout", "lr"):
            steps, values = zip(*shown[f"ray/tune/{name}"], strict=True)
            assert list(steps) == [1, 2, 3, 4]
            assert list(values) == trial[name].astype(np.float32).tolist()
