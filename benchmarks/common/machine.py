"""What numbers depend on besides the code: the machine and the versions of Python and PyTorch."""

from __future__ import annotations

import platform
import warnings

import torch

import ray_deltastn as rd


def quiet() -> None:
    """Hide warnings about how a run goes, but not that its steps are not captured."""
    warnings.simplefilter("ignore", rd.RunWarning)
    warnings.filterwarnings("default", message="`graph` is off", category=rd.RunWarning)


def hardware(device: torch.device) -> str:
    """Name of what a run was on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """What the numbers depend on: machine and versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray_deltastn": rd.__version__,
    }
