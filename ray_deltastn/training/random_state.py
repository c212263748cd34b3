"""The global random generators, saved and restored, so that each run has its own stream of them.

The package itself draws from explicit generators. This module is for user code that draws from the global generators
(`nn.Dropout`, random transforms), so that runs with such code resume and repeat exactly, too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_of(*parts: int) -> int:
    """One well-mixed 63-bit seed from several integers."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0]) >> 1


def capture(device: torch.device) -> dict[str, Any]:
    """State of the global generators of Python, NumPy and PyTorch, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Put the global generators back into a captured state."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def host_draws(torch_too: bool = True) -> tuple[Any, ...]:
    """A value that changes with every draw from the host's global generators, for comparison.

    Args:
        torch_too: include PyTorch's generator on the CPU.
    """
    name, keys, position, *rest = np.random.get_state()
    own = torch.get_rng_state().numpy().tobytes() if torch_too else b""
    return random.getstate(), (name, np.asarray(keys).tobytes(), position, *rest), own


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, on the CPU and on this device."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # Not torch.manual_seed: it seeds every device.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # it seeds the current one
            torch.cuda.manual_seed(seed)


@contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators inside, and restore them at the end."""
    device = device or torch.device("cpu")
    # Not `capture`: it converts the states for a checkpoint, which is too slow for each minibatch of a loader.
    outer = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    seed_all(seed, device)
    try:
        yield
    finally:
        random.setstate(outer[0])
        np.random.set_state(outer[1])
        torch.set_rng_state(outer[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
