"""Rounding of float32 matrix products and convolutions: PyTorch's global switches, set during the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch


@contextmanager
def float32_products(tf32: bool, device: torch.device) -> Iterator[None]:
    """Allow float32 products and convolutions to round to TF32 inside, or forbid it.

    Args:
        tf32: whether TF32 is allowed; by PyTorch's default it is for convolutions on a GPU.
        device: the training device; for a CPU only the switch of matrix products is set.
    """
    if _uses_newer_switches():
        with _newer_switches(tf32, device):
            yield
        return
    convolutions = device.type == "cuda"
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if convolutions:
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        if convolutions:
            torch.backends.cudnn.allow_tf32 = cudnn


def _uses_newer_switches() -> bool:
    """Whether the program uses `fp32_precision`; PyTorch refuses the older switches then."""
    if getattr(torch.backends, "fp32_precision", "none") != "none":
        return True
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:
        return True
    return False


@contextmanager
def _newer_switches(tf32: bool, device: torch.device) -> Iterator[None]:
    convolutions = ("cudnn.conv", "cudnn.rnn") if device.type == "cuda" else ()
    switches = [attrgetter(name)(torch.backends) for name in ("cuda.matmul", "mkldnn.matmul", *convolutions)]
    kept = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, kept, strict=True):
            switch.fp32_precision = precision
