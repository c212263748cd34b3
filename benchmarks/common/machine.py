"""Properties that numbers depend on besides the code: the machine, and the versions of Python and PyTorch."""

from __future__ import annotations

import platform
import warnings

import torch

import ray_deltastn as rd


def quiet() -> None:
    """Hide warnings about the progress of a run, except the warning that its steps are not captured."""
    warnings.simplefilter("ignore", rd.RunWarning)
    warnings.filterwarnings("default", message="`graph` is off", category=rd.RunWarning)


def hardware(device: torch.device) -> str:
    """Name of the device of a run."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Processor and software versions, for a record."""
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray_deltastn": rd.__version__,
    }
