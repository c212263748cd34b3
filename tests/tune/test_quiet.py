"""The package logs nothing unless the user configures logging, and `status` starts no cluster."""

import subprocess
import sys

import pytest

from tests.tune.commands import ENVIRONMENT, ROOT

TRIAL = """
import logging, sys, warnings
{configure}
warnings.simplefilter("ignore")
from pathlib import Path
from ray_deltastn import DeltaSTNTrainable
config = {{"task": "tests.tune.tiny:build", "epochs": 3, "batch_size": 16, "warmup": 0}}
trial, folder = DeltaSTNTrainable(config), Path(sys.argv[1])
for number in range(2):
    trial.train()
    trial.save(str(folder / f"checkpoint_{{number:06}}"))
(folder / "checkpoint_000001" / "deltastn.pt").write_bytes(b"torn")
logging.getLogger("ray").setLevel(logging.ERROR)
again = DeltaSTNTrainable(config)
again.restore(str(folder / "checkpoint_000001"))
again.train()
"""


@pytest.mark.parametrize(("configure", "heard"), [("", False), ("logging.basicConfig()", True)])
def test_a_warning_is_logged_only_if_logging_is_configured(configure, heard, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRIAL.format(configure=configure), str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert ("continuing from 'checkpoint_000000'" in done.stderr) is heard
    assert ("ray_deltastn" in done.stderr) is heard


def test_status_needs_no_cluster(tmp_path):
    (tmp_path / "config.json").write_text('{"search": {}, "tune": {"num_samples": 3}}')
    code = "import ray, sys; from ray_deltastn.cli import main; main(sys.argv[1:]); print(ray.is_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", code, "status", str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "0 of 3 trials ended" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
