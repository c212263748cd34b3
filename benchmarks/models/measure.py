"""Measures whether a network works with Δ-STN as it is, and whether its response is exact.

The oracle knows nothing of layers. For one example b at a time, with the dense change ΔW_b = fold(δ_b) − w₀,

| prediction | ours                                   | oracle                                          |
|------------|----------------------------------------|-------------------------------------------------|
| linearised | `linearised_forward`, minus the primal | `torch.func.jvp` of the network along ΔW_b      |
| displaced  | the network with hooks, minus primal   | `functional_call` at w₀ + ΔW_b, minus the primal |
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

import ray_deltastn as rd
from benchmarks.models.entry import Entry
from ray_deltastn.response import Response, linearised_forward
from ray_deltastn.response.linearise import rules_for_attention
from ray_deltastn.response.trees import arguments, called, mapped, taken, tensors

#: Standard deviation of U for the comparison.
SPREAD = 0.1
#: Examples of the comparison.
EXAMPLES = 4


@dataclass
class Found:
    """What was found for one network.

    Attributes:
        name: the network.
        library: the package that has it.
        weights: number of its trainable weights.
        lines: lines that its task needs besides the network.
        works: whether a run trains it, and λ moves.
        reason: why not; empty if it works.
        share: share of its weights that respond.
        gap: the largest part without a response, and why; empty if all respond.
        linearised: relative error of the tangent, ‖ours − oracle‖/‖oracle‖ over all outputs and examples.
        displaced: the same for the displaced network.
    """

    name: str
    library: str
    weights: int
    lines: int
    works: bool = False
    reason: str = ""
    share: float = 0.0
    gap: str = ""
    linearised: float | None = None
    displaced: float | None = None


def measure(entry: Entry, seed: int = 0) -> Found:
    """Build a network in float64, train it for two steps, and compare its response with the oracle."""
    torch.manual_seed(seed)
    model = entry.build()
    found = Found(entry.name, entry.library, sum(p.numel() for p in model.parameters() if p.requires_grad), entry.lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tuner = run_of(entry, model)
            assert tuner.response is not None  # the method has one
            coverage = tuner.response.coverage
            found.share, found.gap = coverage.share, coverage.largest_gap
            x = tuner.valid.first(EXAMPLES)[0]
            found.linearised, found.displaced = errors(tuner.model, tuner.response, x, len(tuner.space), entry.per)
            before = tuner.space.lam.detach().clone()
            report = tuner.step()
            found.works = math.isfinite(report["valid_loss"]) and bool((tuner.space.lam != before).any())
            found.reason = "" if found.works else "λ does not move, or the loss is not finite"
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
            found.reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return found


def run_of(entry: Entry, model: nn.Module, **options: Any) -> rd.SelfTuner:
    """A run of two train steps and two hyper steps: all dropout rates of the network and one weight decay."""
    space: dict[str, Any] = {"decay": rd.Positive(1e-4, per=entry.per)}
    if entry.attributes or any(type(m) in (nn.Dropout, nn.Dropout1d, nn.Dropout2d) for m in model.modules()):
        space |= rd.tune_dropouts(model, per=entry.per, attributes=entry.attributes)
    model = entry.wrap(model) if entry.wrap else model
    task = rd.Task(
        rd.HyperSpace(**space),
        model.double(),
        entry.loss,
        _double(entry.data(EXAMPLES)),
        _double(entry.data(EXAMPLES)),
        penalty=rd.L2("decay"),
        batch=entry.batch,
    )
    given: dict[str, Any] = {"epochs": 1, "batch_size": 2, "train_interval": 1, "warmup": 0, "lr": 1e-3, "graph": "off"}
    return rd.SelfTuner(task, **{**given, **options})


def errors(model: nn.Module, response: Response, x: Any, h: int, per: str, seed: int = 0) -> tuple[float, float]:
    """Relative errors of the tangent and of the displaced prediction, with U ~ N(0, `SPREAD`²) and δ ~ N(0, 1)."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    kept = copy.deepcopy(response.U.detach())
    with torch.no_grad():
        for slot in response.slots:
            response.U[slot.start : slot.stop].normal_(generator=generator).mul_(SPREAD)
    count = next(t.shape[0] for t in tensors(x) if t.dim())
    delta = torch.randn(count if per == "example" else 1, h, generator=generator, dtype=response.U.dtype)
    with torch.no_grad():
        primal = _flat(called(model, x))
        linearised = _flat(linearised_forward(model, x, response, delta)) - primal
        with response.displaced(delta):
            displaced = _flat(called(model, x)) - primal
        expected = [oracle(model, response, taken(x, slice(b, b + 1)), delta[b % len(delta)]) for b in range(count)]
        tangents, changes = (torch.cat([pair[i] for pair in expected]) for i in range(2))
        response.U.copy_(kept)
    return _relative(linearised, tangents), _relative(displaced, changes)


def oracle(model: nn.Module, response: Response, x: Any, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Tangent and change of the output for one example, by the network alone."""
    moved = response.fold(delta)
    own = dict(model.named_parameters())
    weights = {name: own[name].detach() for name in moved}

    def predict(values: dict[str, Tensor]) -> Tensor:
        return _flat(functional_call(model, values, *arguments(x)))

    with rules_for_attention():
        found = jvp(predict, (weights,), ({name: moved[name] - w for name, w in weights.items()},))
    return found[1], predict(moved) - found[0]


def _flat(output: Any) -> Tensor:
    """All real outputs of a batch, (B, n)."""
    found = [t for t in tensors(output) if t.is_floating_point() and t.dim()]
    return torch.cat([t.reshape(found[0].shape[0], -1) for t in found if t.shape[0] == found[0].shape[0]], 1)


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def _double(batch: Any) -> Any:
    return mapped(lambda t: t.double() if t.is_floating_point() else t, batch)


def row(found: Found) -> dict[str, Any]:
    """The row of a record."""
    return asdict(found)
