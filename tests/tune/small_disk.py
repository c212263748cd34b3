"""An experiment on a disk that becomes full and later gets free space; `test_disk_full.py` runs it.

    unshare --map-root-user --mount python -m tests.tune.small_disk FOLDER

The last line of output is JSON with the exit statuses, the error texts and the checkpoints.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from ray_deltastn.cli import main
from ray_deltastn.tune.folder.results import read_results

TRIALS = 1
CONFIG = f"""
task: tests.tune.tiny:build
options: {{slow: 0.01}}
train: {{epochs: 30, batch_size: 4, warmup: 1, hyper_lr: 0.05, seed: 3}}
search: {{lr: "loguniform(0.01, 0.1)"}}
tune: {{num_samples: {TRIALS}, checkpoint_every: 2, max_concurrent: {TRIALS}, max_failures: 0}}
"""


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def command(*arguments):
    """Exit status and last line on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(list(map(str, arguments)))
    return status, (said.getvalue().strip().splitlines() or [""])[-1]


def run(folder):
    disk, config = folder / "disk", folder / "tiny.yaml"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    config.write_text(CONFIG)
    out = disk / "out"
    before = {}
    ended = threading.Event()

    def fill():
        # Wait until each trial has two checkpoints and Tune has written a state. The trials are too slow to have ended.
        while not ended.is_set() and not (
            sum(len(list(trial.glob("checkpoint_*/deltastn.pt"))) > 1 for trial in out.glob("trials/*/")) == TRIALS
            and list(out.glob("states/experiment_state-*.json"))
        ):
            time.sleep(0.02)
        room = os.statvfs(disk)
        resize(disk, (room.f_blocks - room.f_bfree) * room.f_frsize)
        for path in sorted(out.glob("trials/*/checkpoint_*/deltastn.pt")):
            with contextlib.suppress(Exception):  # a checkpoint that is being written
                before[path.parts[-3]] = torch.load(path, weights_only=True)["iteration"]

    filling = threading.Thread(target=fill, daemon=True)
    filling.start()
    full = command("run", config, "--out", out)
    ended.set()
    filling.join()
    left = {path.name: 0 for path in out.glob("trials/*/") if path.name in before}
    for path in out.glob("trials/*/checkpoint_*/deltastn.pt"):
        with contextlib.suppress(Exception):  # the last checkpoint may be incomplete
            left[path.parts[-3]] = max(left[path.parts[-3]], torch.load(path, weights_only=True)["iteration"])
    resize(disk, "64m")
    roomy = command("run", config, "--out", out, "--resume")
    rows = read_results(out / "results.csv").sort_values("training_iteration")
    found = {
        "full": full,
        "roomy": roomy,
        "before": before,
        "left": left,
        "iterations": {name: trial["training_iteration"].tolist() for name, trial in rows.groupby("trial_id")},
        "last": {
            name: trial[["config/lr", "valid_loss", "hyperparameters/dropout", "scale/decay"]].iloc[-1].to_dict()
            for name, trial in rows.groupby("trial_id")
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
