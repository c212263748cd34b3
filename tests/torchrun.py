"""Programs on two processes that `torchrun` starts."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_python(*arguments, cwd=ROOT):
    """What Python prints when it runs these arguments, on one thread; a failure fails the test."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def found_by_two(module, folder):
    """What each of two processes of a module has written to `folder/RANK.pt`."""
    run_python(*TWO, "-m", module, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
