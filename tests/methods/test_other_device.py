"""A cycle stays on its device. The device of this test is not the CPU, and its tensors hold no data."""

import json
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from tests.other_device import ADD_DEVICE, RUNS, WRONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(backend_registration, ADD_DEVICE), reason="needs a newer PyTorch"),
]


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, "-m", "tests.other_device"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_finds_operations_that_leave_the_device(found, wrong):
    assert found[wrong]


@pytest.mark.parametrize("run", RUNS)
def test_a_cycle_stays_on_its_device(found, run):
    assert found[run] == []
