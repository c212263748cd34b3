"""The cluster files follow Ray's schema and run a configuration that exists."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml

from ray_deltastn.cli.parser import parse
from ray_deltastn.tune.config import ExperimentConfig

FOLDER = Path(__file__).parents[2] / "configs"
LAUNCHER, JOB, DOCKERFILE = (FOLDER / "cluster" / name for name in ("launcher.yaml", "kuberay_job.yaml", "Dockerfile"))


def check_command(text):
    """Check that a command line can be parsed and that its configuration file exists."""
    words = text.replace("\\\n#", " ").split()
    options = parse(words[1:])
    assert words[0] == "ray-deltastn"
    assert options.address == "auto"
    assert options.out.is_relative_to("/shared")
    assert "options.data_root=/shared/data" in options.set
    assert Path(options.config).name in {path.name for path in FOLDER.glob("*.yaml")}
    ExperimentConfig.read(FOLDER / Path(options.config).name, options.set)


def test_launcher_file_follows_rays_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load(LAUNCHER.read_text()), schema)


def test_every_machine_of_the_launcher_installs_its_own_copy_and_has_the_token():
    launcher, text = yaml.safe_load(LAUNCHER.read_text()), LAUNCHER.read_text()
    command = re.search(r"'RAY_AUTH_MODE=token (ray-deltastn run .*?)'", text, re.DOTALL)[1]
    check_command(command)
    mounted = launcher["file_mounts"]
    (clone,) = (there for there, here in mounted.items() if here == ".")
    assert command.split()[2].startswith(f"{clone}/configs/")
    (install,) = launcher["setup_commands"]
    assert clone.replace("~", "$HOME") in install
    assert "/shared" not in install
    assert mounted["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (launcher["head_start_ray_commands"], launcher["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token ray start" in commands[-1]


def test_the_extra_of_the_launcher_file_exists():
    assert re.search(r'^cluster = \["ray\[default\]', (FOLDER.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert "[cluster]" in LAUNCHER.read_text()


def test_dockerfile_builds_the_image_of_the_job_with_what_the_install_and_the_command_need():
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    (tag,) = {line.split("--tag ")[1].split()[0] for line in lines if line.startswith("#") and "--tag " in line}
    job = yaml.safe_load(JOB.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert {container["image"] for pod in pods for container in pod["containers"]} == {tag}
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert all((FOLDER.parent / name).exists() for name in copied)
    assert {"pyproject.toml", "README.md", "LICENSE", "ray_deltastn", "configs"} <= set(copied)
    (home,) = (line.split()[1] for line in lines if line.startswith("WORKDIR"))
    assert job["spec"]["entrypoint"].split()[2].startswith(f"{home}/configs/")
    assert any("--constraint" in line and line.endswith(" .") for line in lines if line.startswith("RUN"))


def test_kuberay_job_runs_the_command_on_a_volume_that_all_pods_mount():
    job = yaml.safe_load(JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_command(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]] == ["deltastn-shared"]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
