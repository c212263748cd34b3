"""The cluster files follow Ray's schema and run a configuration that exists."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml

from ray_deltastn.cli import _parser
from ray_deltastn.tune.config import ExperimentConfig

FOLDER = Path(__file__).parents[2] / "configs"
LAUNCHER, JOB = FOLDER / "cluster" / "launcher.yaml", FOLDER / "cluster" / "kuberay_job.yaml"


def check_command(text):
    """Check that a command line can be parsed and that its configuration file exists."""
    words = text.replace("\\\n#", " ").split()
    options = _parser().parse_args(words[1:])
    assert words[0] == "ray-deltastn"
    assert options.address == "auto"
    assert Path(options.config).name in {path.name for path in FOLDER.glob("*.yaml")}
    ExperimentConfig.read(FOLDER / Path(options.config).name, options.set)


def test_launcher_file_follows_rays_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load(LAUNCHER.read_text()), schema)
    check_command(re.search(r"'(ray-deltastn run .*?)'", LAUNCHER.read_text(), re.DOTALL)[1])


def test_kuberay_job_runs_the_command_on_a_volume_that_all_pods_mount():
    job = yaml.safe_load(JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_command(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]] == ["deltastn-shared"]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
