"""If the disk is full, the command ends with a one-line error, and the experiment can be resumed later."""

import json
import shutil
import subprocess
import sys

import pytest

from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.cli import main, trials
from tests.tune.commands import ENVIRONMENT, ROOT
from tests.tune.tiny import finish

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
CONFIG = {
    "task": "tests.tune.tiny:build",
    "epochs": 30,
    "batch_size": 4,
    "warmup": 1,
    "hyper_lr": 0.05,
    "seed": 3,
}


def test_the_error_says_how_to_continue(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text("task: tests.tune.tiny:build\n")

    def full(*arguments):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(trials, "run_with_control", full)
    assert main(["run", str(config), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ray-deltastn: [Errno 28] No space left on device")
    assert said.endswith("; free disk space, then continue with --resume\n")


def can_mount(folder):
    """Whether this user may mount a disk in memory that only its own processes see."""
    if shutil.which("unshare") is None:
        return False
    line = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


@pytest.mark.ray
def test_an_experiment_stopped_by_a_full_disk_resumes_bit_identically(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a disk in a separate namespace")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.tune.small_disk", str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    status, said = found["full"]
    assert status == 1
    assert said.startswith("ray-deltastn: [Errno 28] No space left on device")
    assert said.endswith("; free disk space, then continue with --resume")
    assert len(found["before"]) == 1
    for trial, iteration in found["before"].items():
        assert found["left"][trial] >= iteration > 0
    assert found["roomy"] == [0, ""]
    for trial, last in found["last"].items():
        assert found["iterations"][trial] == list(range(1, 31))
        alone = finish(DeltaSTNTrainable({**CONFIG, "lr": last.pop("config/lr")}))[-1]
        assert last == {key: alone[key] for key in last}
