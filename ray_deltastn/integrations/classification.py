"""Cross entropy of the models of Transformers, from their logits, with one rate of label smoothing per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.regularizers import Regularizer

#: Target that counts for nothing.
IGNORED = -100
#: Names of the entries of an output that the loss reads.
LOGITS, SMOOTHING = "logits", "smoothing"


class Network(nn.Module):
    """A model of Transformers that returns its tensors only, and beside them the rate of label smoothing.

    Args:
        model: the model; it is called with keywords, and without targets.
        smoothing: hyperparameter for the rate of label smoothing; None for no smoothing.
    """

    def __init__(self, model: nn.Module, smoothing: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.smoothing = None if smoothing is None else _Rate(smoothing)
        # A cache of keys and values is no tensor, and training has no use for it.
        self._more = {"use_cache": False} if getattr(getattr(model, "config", None), "use_cache", False) else {}

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """The tensors of the output by name, without the model's own loss."""
        output = self.model(**inputs, **self._more)
        found = {name: t for name, t in output.items() if isinstance(t, Tensor) and name != "loss"}
        if self.smoothing is not None:
            found[SMOOTHING] = self.smoothing(found[LOGITS])
        return found


class _Rate(Regularizer):
    """Gives the value of a hyperparameter for each example; zero in evaluation mode."""

    def forward(self, logits: Tensor) -> Tensor:
        """The rate (B, 1) for logits (B, …)."""
        if not self.training:
            return torch.zeros(len(logits), 1, device=logits.device)
        return self.pass_values.value(self.names[0], like=logits).reshape(-1, 1).expand(len(logits), 1)


class CrossEntropy:
    """(1 − s)·(−log p_y) + s·mean_c(−log p_c), the mean over all targets that count, with a rate s per example.

    Args:
        shifted: whether the logits of a position predict the target of the next one, as in causal language models.
    """

    def __init__(self, shifted: bool = False) -> None:
        self.shifted = shifted

    def __call__(self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of an output with `logits` (B, …, C), for `labels` (B, …) of the batch."""
        logits, labels = output[LOGITS].float(), batch["labels"]
        if self.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        log_p = F.log_softmax(logits, -1)
        counts = labels != IGNORED
        loss = -log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        if SMOOTHING in output:
            rate = output[SMOOTHING].reshape(-1, *(1,) * (labels.dim() - 1))
            loss = (1 - rate) * loss - rate * log_p.mean(-1)
        return (loss * counts).sum() / counts.sum().clamp_min(1)
