"""An experiment on three local nodes, one of which dies; `test_nodes.py` runs it in a separate process.

    python -m tests.tune.nodes OUT

It writes `found.json` into OUT: the node that died, the nodes that are alive at the end, and the reports and the
number of processes of each trial.
"""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.experiment import run_experiment
from ray_deltastn.tune.folder.results import read_results

TRIALS = 3
CONFIG = {
    "task": "tests.tune.tiny:build",
    "options": {"slow": 0.002},
    "train": {"epochs": 60, "batch_size": 4, "warmup": 1, "seed": 3},
    "search": {"lr": "loguniform(0.01, 0.1)"},
    "tune": {"searcher": "random", "num_samples": TRIALS, "checkpoint_every": 2, "max_concurrent": TRIALS},
}


def main(out):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    others = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    cluster.wait_for_nodes()
    died = {}

    def kill():
        # Wait until each trial has a checkpoint. No trial has ended then.
        while len(list((out / "trials").glob("*/checkpoint_*/deltastn.pt"))) < 2 * TRIALS:
            time.sleep(0.1)
        died["node"] = others[0].node_id
        cluster.remove_node(others[0], allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    run_experiment(ExperimentConfig.model_validate(CONFIG), out, address=cluster.address)
    results = read_results(out / "results.csv")
    pids = {str(trial): first for trial, first in results.groupby("trial_id")["pid"].nunique().items()}
    found = {
        "died": died.get("node"),
        "alive": [node["NodeID"] for node in ray.nodes() if node["Alive"]],
        "reports": {str(trial): rows.tolist() for trial, rows in results.groupby("trial_id")["training_iteration"]},
        "processes": pids,
    }
    (out / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
