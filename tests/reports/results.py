"""Results of a comparison, made up."""

import math

import numpy as np
import pandas as pd

from ray_deltastn.compare.contenders import CONTENDERS

CONFIG = {
    "task": "digits-mlp",
    "train": {"epochs": 2},
    "search": {"lr": "loguniform(0.01, 0.3)"},
    "single": {"lr": 0.1},
}
SPACE = {
    "dropout": {"kind": "Bounded", "initial": 0.1, "low": 0.0, "high": 0.9},
    "weight_decay": {"kind": "Positive", "initial": 1e-4, "low": 1e-6, "high": 0.1},
}


def made_up(seeds=2, epochs=3):
    """Reports of every method, two trials each; one trial of `bo` diverges."""
    random, rows = np.random.default_rng(0), []
    for method in CONTENDERS:
        for seed in range(seeds):
            for trial in range(2 if CONTENDERS[method].searcher else 1):
                lr, level = 0.01 * 10 ** random.random(), random.random()
                for epoch in range(1, epochs + 1):
                    loss = math.inf if (method, trial) == ("bo", 1) else 0.1 + level / epoch
                    row = {
                        "method": method,
                        "seed": seed,
                        "trial_id": f"{method}{seed}{trial}",
                        "wall_seconds": 5.0,
                        "training_iteration": epoch,
                        "epoch": epoch,
                        "valid_loss": loss,
                        "test_loss": loss + 0.01,
                        "valid_accuracy": 0.9,
                        "test_accuracy": 0.9,
                        "timestamp": float(len(rows)),
                        "time_this_iter_s": 0.5,
                        "config/lr": lr,
                        "config/epochs": epochs,
                        "hyperparameters/dropout": 0.1 * epoch,
                        "hyperparameters/weight_decay": 1e-4 * epoch,
                    }
                    rows.append(row)
    return pd.DataFrame(rows)
