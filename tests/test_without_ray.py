"""Floors 0 to 4 work where Ray is missing, and importing the package imports neither Ray nor scikit-optimize."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ray_deltastn as rd

ROOT = Path(__file__).parents[1]


def run_python(code):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_package_trains_where_ray_is_missing():
    output = run_python("""
import sys
sys.modules["ray"] = None
import ray_deltastn as rd
from ray_deltastn.tasks import build_task
tuner = rd.SelfTuner(build_task({"task": "digits-mlp", "width": 32}), epochs=1, batch_size=64, lr=0.05)
report, = tuner.fit()
assert report["epoch"] == 1 and report["valid_loss"] < 2.25, report  # chance is log 10 = 2.30
assert tuner.space.names[0] in tuner.hyperparameters()
for name in ("DeltaSTNTrainable", "SkOptSearch"):
    try:
        getattr(rd, name)
    except ImportError:
        print("no", name)
try:
    tuner.space.to_tune()
except ImportError:
    print("no domains")
""")
    assert output.split("\n")[:3] == ["no DeltaSTNTrainable", "no SkOptSearch", "no domains"]


@pytest.mark.slow
def test_importing_the_package_does_not_import_ray():
    output = run_python("""
import sys
import ray_deltastn as rd
import ray_deltastn.tasks
assert "ray" not in sys.modules and "skopt" not in sys.modules
for name in rd.__all__:
    if name not in ("DeltaSTNTrainable", "ReadableConfig", "SkOptSearch", "TrialConfig", "WarmStart"):
        getattr(rd, name)
assert "ray" not in sys.modules
assert "lightning" not in sys.modules and "transformers" not in sys.modules
print(rd.DeltaSTNTrainable.__module__)
assert "ray" in sys.modules
assert "skopt" not in sys.modules
print(rd.SkOptSearch.__name__)
""")
    assert output.split() == ["ray_deltastn.tune.trainable", "SkOptSearch"]


def test_names_of_the_package():
    assert len(set(rd.__all__)) == len(rd.__all__)
    with pytest.raises(AttributeError, match="'ray_deltastn' has no attribute 'DeltaSTN'"):
        rd.DeltaSTN  # noqa: B018
    for name in ("HyperSpace", "Task", "SelfTuner", "Dropout", "Cutout", "L2", "Bounded", "Positive", "Integer"):
        assert name in rd.__all__
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", rd.__version__)
