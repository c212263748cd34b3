"""On a cluster of three nodes, all trials finish after a node dies; storage that is not shared is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_deltastn.tune import guards
from tests.tune.commands import ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("nodes")
    line = [sys.executable, "-m", "tests.tune.nodes", str(out)]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "found.json").read_text())


@pytest.mark.ray
def test_all_trials_finish_after_a_node_dies(found):
    assert found["died"] is not None
    assert found["died"] not in found["alive"]
    assert len(found["alive"]) == 2
    assert list(found["reports"].values()) == [list(range(1, 61))] * 3


@pytest.mark.ray
def test_trials_run_on_different_nodes_and_one_of_them_moves(found):
    # Each node has one CPU and runs one trial. The trial of the dead node continues in another process.
    assert sorted(found["processes"].values()) == [1, 1, 2]


def test_storage_that_a_machine_cannot_access_is_refused(monkeypatch, tmp_path, ray_cluster):
    import ray

    nodes = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)
    guards.check_shared(tmp_path)  # both entries are this machine, so both see the folder
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "exists", lambda path: True)
    answers = iter([True, False])
    monkeypatch.setattr(ray, "get", lambda reference, timeout: next(answers))
    with pytest.raises(ValueError, match="`--out` must be storage that every machine of the cluster shares"):
        guards.check_shared(tmp_path)


def test_a_machine_that_dies_during_the_check_is_ignored(monkeypatch, tmp_path, ray_cluster, caplog):
    import ray

    nodes = ray.nodes()
    gone = {**nodes[0], "NodeID": "0" * 55 + "f", "NodeManagerAddress": "the-late-one"}
    known = iter([[gone, *nodes]])  # only the first list of nodes holds the dead machine
    monkeypatch.setattr(ray, "nodes", lambda: next(known, nodes))
    guards.check_shared(tmp_path)
    assert "the-late-one died" in caplog.text


def test_a_machine_that_does_not_answer_is_asked_again_and_then_refused(monkeypatch, tmp_path, ray_cluster):
    import ray

    nodes, asked = ray.nodes(), []
    monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)
    monkeypatch.setattr(guards, "ATTEMPTS", 2)
    get = ray.get

    def crash(reference, timeout):
        asked.append(reference)
        if crashes():
            raise ray.exceptions.WorkerCrashedError
        return get(reference, timeout=timeout)

    monkeypatch.setattr(ray, "get", crash)
    crashes = iter([True, False, False]).__next__
    guards.check_shared(tmp_path)
    assert len(asked) == 3  # the first machine is asked twice
    crashes = lambda: True  # noqa: E731
    with pytest.raises(ValueError, match="`--address` must be a cluster whose machines answer, got no answer from"):
        guards.check_shared(tmp_path)
