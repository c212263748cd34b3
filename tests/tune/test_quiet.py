"""The package logs nothing unless the user configures logging, and `status` starts no cluster."""

import subprocess
import sys

import pytest
import ray

from ray_deltastn.cli import main
from tests.tune.commands import ENVIRONMENT, ROOT

TRIAL = """
import logging, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from types import SimpleNamespace
from pyarrow import fs
from ray_deltastn import DeltaSTNTrainable
config = {"task": "tests.tune.tiny:build", "epochs": 3, "batch_size": 16, "warmup": 0}
trial, folder = DeltaSTNTrainable(config), Path(sys.argv[1])
for number in range(2):
    trial.train()
    trial.save(str(folder / f"checkpoint_{number:06}"))
(folder / "checkpoint_000001" / "deltastn.pt").write_bytes(b"torn")
logging.getLogger("ray").setLevel(logging.ERROR)
for configured in (False, True):
    if configured:
        logging.basicConfig()
        print("configured", file=sys.stderr)
    again = DeltaSTNTrainable(config)
    again._storage = SimpleNamespace(
        trial_fs_path=str(folder), storage_filesystem=fs.LocalFileSystem(), persist_artifacts=lambda *_, **__: None
    )
    again.restore(str(folder / "checkpoint_000001"))
    again.train()
"""


@pytest.mark.slow
def test_a_warning_is_logged_only_if_logging_is_configured(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    before, _, after = done.stderr.partition("configured\n")
    assert "ray_deltastn" not in before
    assert "continuing from 'checkpoint_" not in before
    assert "ray_deltastn" in after
    assert "continuing from 'checkpoint_000000'" in after


def test_status_needs_no_cluster(tmp_path, monkeypatch, capsys):
    def init(*arguments, **options):
        raise AssertionError("a cluster was begun")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    (tmp_path / "config.json").write_text('{"search": {}, "tune": {"num_samples": 3}}')
    assert main(["status", str(tmp_path)]) == 0
    assert "0 of 3 trials ended" in capsys.readouterr().out
