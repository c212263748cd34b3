"""Joining a cluster: addresses where nobody answers, tokens, and the code of the task."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from ray_deltastn.tune import cluster
from ray_deltastn.tune.folder.results import read_results
from tests.tune.commands import ENVIRONMENT
from tests.tune.loose import YAML, installed_command, write_task

#: Starts a head and waits until it is stopped.
HEAD = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
HEAD += ["--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={80 * 2**20}"]


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """The address of a cluster that asks for a token, as `ray start` does after a local run, and the token's home."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tempfile.mkdtemp(prefix="head-")  # a short path: Ray's sockets have at most 107 characters
    token = os.path.join(home, ".ray", "auth_token")
    os.mkdir(os.path.dirname(token))
    with open(token, "w") as file:
        file.write("a" * 64)
    environment = {**ENVIRONMENT, "HOME": home, "RAY_AUTH_MODE": "token"}
    process = subprocess.Popen(
        [*HEAD, f"--port={port}", f"--temp-dir={home}/ray"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while cluster._status(f"127.0.0.1:{port}", environment) is not None:
        assert process.poll() is None
        assert time.monotonic() < end, "the head did not start"
        time.sleep(0.5)
    yield f"127.0.0.1:{port}", home
    process.terminate()
    process.wait()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_an_address_where_nobody_listens_is_refused_at_once(scheme, host, port):
    with pytest.raises(ConnectionError, match="where nobody answers") as raised:
        cluster.check_answers(f"{scheme}{host}:{port}")
    assert f"{scheme}{host}:{port}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("address", ["here", "127.0.0.1", ":6379", "host:", "host:port", "host:99999", "ray://", ""])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(ValueError, match="`--address` must be HOST:PORT") as raised:
        cluster.check_answers(address)
    assert repr(address) in str(raised.value)


def test_a_listener_that_is_no_cluster_is_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = "127.0.0.1:{1}".format(*listener.getsockname())
        with pytest.raises(ConnectionError, match=f"must be a running Ray cluster, got {address}: no answer within"):
            cluster.check_answers(address)


def test_the_waits_end_within_half_a_minute():
    assert cluster.CONNECT_SECONDS + cluster.ANSWER_SECONDS <= 25


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_cluster_with_a_token_says_which_variable_to_set(mode, head, monkeypatch):
    address, home = head
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConnectionError, match="`RAY_AUTH_MODE=token` must be set") as raised:
        cluster.check_answers(address)
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value).endswith(f"got RAY_AUTH_MODE={mode}" if mode else "got RAY_AUTH_MODE unset")


@pytest.mark.ray
@pytest.mark.slow
def test_another_token_is_refused_in_one_line(head, monkeypatch):
    address, _ = head
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    with pytest.raises(ConnectionError, match="and no token that it accepts"):
        cluster.check_answers(address)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster_get_the_code_of_the_task(head, tmp_path):
    address, home = head
    here, config = tmp_path / "here", tmp_path / "mine.yaml"
    write_task(here)
    config.write_text(YAML)
    variables = {"HOME": home, "RAY_AUTH_MODE": "token"}
    done = installed_command("run", config, "--out", tmp_path / "out", "--address", address, cwd=here, **variables)
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path / "out" / "results.csv")["epoch"].tolist() == [1, 2]


def test_a_submitted_job_keeps_its_working_directory(tmp_path, monkeypatch):
    write_task(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mytask", "mynetwork"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import mytask  # noqa: F401

    with cluster._environment("auto", "mytask:build", [tmp_path]) as environment:
        assert sorted(os.listdir(environment["working_dir"])) == ["mynetwork.py", "mytask.py"]
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://code.zip"}}')
    with cluster._environment("auto", "mytask:build", [tmp_path]) as environment:
        assert environment["env_vars"]["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path.resolve())
    with cluster._environment("auto", "digits-mlp", [tmp_path]) as environment:
        assert environment == {}
