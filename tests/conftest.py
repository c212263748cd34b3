"""Shared fixtures: one small local Ray cluster for all tests that need one. And the order and groups of the tests."""

import os
import tempfile
import time

# Tune writes to ~/ray_results unless told otherwise, and looks up the home when it is imported.
os.environ["HOME"] = tempfile.mkdtemp(prefix="deltastn-tests-")
# One thread in each process, as Ray gives its workers: there is a process of tests per core.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)

#: CPUs of the cluster.
CPUS = 2


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """Tests that start a cluster are one group, which comes first because it takes longest; a file is one otherwise."""
    places = {}
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker("ray")
        ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.nodeid.partition("::")[0]))
        places[item] = (not ray, "larger_ray_cluster" in item.fixturenames)
    items.sort(key=places.__getitem__)
    yield  # pytest-xdist adds the groups to the names
    if config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in items):
        raise pytest.UsageError("pytest-xdist must see the groups of the tests: 3.8 does not with pytest 9.2")


@pytest.fixture(scope="session")
def ray_cluster():
    """A quiet cluster of two CPUs, shut down at the end of the session."""
    for name, value in {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }.items():
        os.environ.setdefault(name, value)
    import ray

    ray.shutdown()  # a command that a test ran in this process may have begun a cluster of its own
    begin()
    yield
    ray.shutdown()


@pytest.fixture
def larger_ray_cluster(ray_cluster):
    """One of four CPUs in its place, for a test that asks for so much that the loss of a CPU would stop it."""
    import ray

    ray.shutdown()
    begin(2 * CPUS)
    yield
    ray.shutdown()  # the next test that needs a cluster begins one


def begin(cpus=CPUS):
    """Start the cluster of the tests."""
    import ray

    ray.init(
        "local",  # whatever else runs on this machine
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=80 * 2**20,
    )


@pytest.fixture(autouse=True)
def _all_of_the_cluster(request):
    """A new cluster where a CPU is missing.

    Ray loses one if a placement group is removed while it is being made (https://github.com/ray-project/ray/issues/64693).
    """
    if "ray_cluster" not in request.fixturenames:
        return
    import ray

    request.getfixturevalue("ray_cluster")
    given_up = time.monotonic() + 20
    while ray.is_initialized() and time.monotonic() < given_up:
        if ray.available_resources().get("CPU", 0) >= CPUS:
            return
        time.sleep(0.05)
    ray.shutdown()
    begin()
