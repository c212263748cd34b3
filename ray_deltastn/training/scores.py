"""Scores of a run: mean training loss, loss and metrics of each split, seconds spent, and the best loss so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ray_deltastn.methods import Loss, Objective, Workers
from ray_deltastn.response.trees import rows
from ray_deltastn.training.accuracy import Accuracy, find_accuracy
from ray_deltastn.training.split_metrics import Collected, OfLoss, OverSplit
from ray_deltastn.training.streams import Stream

Metric = Callable[[Any, Any], Tensor] | OfLoss


def evaluate(
    objective: Objective,
    stream: Stream,
    loss: Loss,
    metrics: Mapping[str, Metric],
    accuracy: Accuracy | None = None,
    workers: Workers | None = None,
) -> dict[str, float]:
    """Means over one pass, and metrics over the whole split, in evaluation mode and without perturbation.

    The weights are those at the current λ: w₀, or r(λ) for a method whose response is not centred. Penalties do not
    count. If the loss ignores targets, it is the mean over the targets of the split that count. A `DataLoader` decides
    which examples it gives (`drop_last`, samplers). With `Segments` the means are over tokens, and the state is carried
    through the pass from the first one. Several workers add up the sums over their rows.

    Returns:
        `loss`, `accuracy` if it is defined, and each metric by name.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    of_loss = {name: metric for name, metric in metrics.items() if isinstance(metric, OfLoss)}
    whole = {name: metric for name, metric in metrics.items() if isinstance(metric, OverSplit)}
    means = {name: metric for name, metric in metrics.items() if not isinstance(metric, OfLoss | OverSplit)}
    collected = Collected()
    totals: dict[str, Tensor] = {}
    count = 0
    correct: list[tuple[Tensor, Tensor]] = []
    shares_counted: list[Tensor] = []
    with torch.no_grad():
        delta = objective.delta(objective.space.lam.detach(), None)
        for x, y in stream.in_order():
            with stream.explains(x, y):
                output = objective.predict(x, delta)
                objective.carry(x)
                weight = stream.weight(x, y)
                found = {"loss": loss(output, y).double().mean()}
                if accuracy is not None:
                    correct.append(accuracy(output, y))
                    if accuracy.weighs:  # the mean over all targets of the split that count
                        share = correct[-1][1] / y.numel()
                        found["loss"] = torch.where(share > 0, found["loss"] * share, 0.0)
                        shares_counted.append(share * weight)
                for name, mean in means.items():
                    found[name] = torch.as_tensor(mean(output, y)).double().mean()
                if whole:
                    collected.add(output, y)
            for name, value in found.items():
                totals[name] = (
                    totals.get(name, torch.zeros((), dtype=torch.float64, device=value.device)) + value * weight
                )
            count += weight
    model.train(was_training)
    sums = {name: total.item() for name, total in totals.items()}
    # Numbers behind the sums: examples, those that count for the loss, correct classes, and classes.
    numbers = [float(count), torch.stack(shares_counted).sum().item() if shares_counted else 0.0, 0.0, 0.0]
    if correct:
        numbers[2:] = torch.stack([torch.stack(pair) for pair in correct]).sum(0).tolist()
    if workers is not None and workers.size > 1:
        sums, numbers = _added(workers.gathered((sums, numbers)))
        collected = collected.with_others(workers)
    examples, weighed, hits, counted = numbers
    shares = {name: total / examples for name, total in sums.items()}
    if accuracy is not None and accuracy.weighs:
        shares["loss"] *= examples / weighed
    if whole:
        every = collected.joined(stream.whole.continues)
        shares |= {name: float(metric(*every)) for name, metric in whole.items()}
    shares |= {name: metric(shares["loss"]) for name, metric in of_loss.items()}
    shares = {name: shares[name] for name in ("loss", *metrics)}
    if accuracy is not None:
        shares = {"loss": shares["loss"], "accuracy": hits / max(1.0, counted), **shares}
    return shares


def _added(every: Sequence[tuple[dict[str, float], list[float]]]) -> tuple[dict[str, float], list[float]]:
    """The sums and the numbers of all workers; a worker without a row has no sums."""
    sums = {name: sum(own.get(name, 0.0) for own, _ in every) for name in every[0][0]}
    return sums, [sum(column) for column in zip(*(numbers for _, numbers in every), strict=True)]


class Scores:
    """The numbers of one run.

    Args:
        objective: L_T and L_V of the task under the method.
        valid: validation data.
        test: test data, or None.
        metrics: the user's own, by name.
        device: where training losses are added up.
        workers: the workers, which share the examples.

    Attributes:
        best_valid_loss: the smallest validation loss reported so far, infinite before the first.
        reports_since_best: number of reports since then.
        seconds: seconds of each activity. A GPU finishes its work later than the host. At a report, the time that the
            host waits for it counts as training, although a part of it may be hyper steps.
    """

    def __init__(
        self,
        objective: Objective,
        valid: Stream,
        test: Stream | None,
        metrics: Mapping[str, Metric],
        device: torch.device,
        workers: Workers,
    ) -> None:
        self.objective, self.valid, self.test, self.metrics = objective, valid, test, metrics
        self._workers = workers
        self.best_valid_loss = math.inf
        self.reports_since_best = 0
        self.seconds = dict.fromkeys(("train", "hyper", "evaluate"), 0.0)
        self._train_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._train_count = 0
        self._valid_scores: tuple[int, dict[str, float]] | None = None
        self._accuracy: Accuracy | None = None

    def try_out(self, output: Any, target: Any) -> None:
        """Find out whether accuracy is defined, and call each metric once.

        Args:
            output: outputs of some validation examples.
            target: their targets.

        Raises:
            ValueError: if a metric returns another shape, or one over a split more than one number.
            TypeError: if it returns something else.
        """
        if "accuracy" not in self.metrics:  # else the user's own takes its place
            self._accuracy = find_accuracy(output, target, self.objective.valid_loss)
        for name, metric in self.metrics.items():
            if isinstance(metric, OfLoss):
                continue
            if isinstance(metric, OverSplit):
                metric.try_out(name, output, target)
                continue
            found = metric(output, target)
            try:
                shape = tuple(torch.as_tensor(found).shape)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(
                    f"`metrics[{name!r}]` must return a number or a tensor, got {type(found).__name__}"
                ) from None
            if shape not in ((), (1,), (rows(target),)):
                raise ValueError(
                    f"`metrics[{name!r}]` must return a mean () or one value per example ({rows(target)},), got shape "
                    f"{shape}"
                )

    @property
    def names(self) -> list[str]:
        """The numbers of a report that score the network, once they have been tried out."""
        kinds = ["loss", *(["accuracy"] if self._accuracy is not None else []), *self.metrics]
        splits = ["valid", *(["test"] if self.test is not None else [])]
        return ["train_loss", "best_valid_loss", *(f"{split}_{kind}" for split in splits for kind in kinds)]

    def add(self, train_loss: Tensor) -> None:
        """Count the loss of a train step, without waiting for the device."""
        self._train_loss += train_loss
        self._train_count += 1

    def valid_scores(self, steps: int) -> dict[str, float]:
        """Loss, accuracy and metrics on the validation data; `steps` is the number of train steps so far."""
        # A plateau schedule and the report at the end of an epoch need the same numbers.
        if self._valid_scores is None or self._valid_scores[0] != steps:
            self._valid_scores = (steps, self._evaluate(self.valid))
        return self._valid_scores[1]

    def take(self, steps: int) -> tuple[float, dict[str, float]]:
        """Mean training loss since the last call, and the present `valid_*` and, with test data, `test_*`."""
        train_loss = self._settled() / max(1, self._train_count)
        self._begin()
        split = {"valid": self.valid_scores(steps)}
        if self.test is not None:
            split["test"] = self._evaluate(self.test)
        return train_loss, {f"{name}_{what}": value for name, found in split.items() for what, value in found.items()}

    def _begin(self) -> None:
        self._train_loss.zero_()
        self._train_count = 0

    def _settled(self) -> float:
        """Sum of the training losses, once the device has finished all steps; waiting counts as training."""
        started = time.perf_counter()
        train_loss = self._train_loss.item()
        self.seconds["train"] += time.perf_counter() - started
        return train_loss

    def _evaluate(self, stream: Stream) -> dict[str, float]:
        self._settled()
        with self.timed("evaluate"):
            return evaluate(
                self.objective, stream, self.objective.valid_loss, self.metrics, self._accuracy, self._workers
            )

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the seconds within the context to those of an activity."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - started

    def note(self, valid_loss: float) -> None:
        """Count a report."""
        if valid_loss < self.best_valid_loss:
            self.best_valid_loss, self.reports_since_best = valid_loss, 0
        else:
            self.reports_since_best += 1

    def state_dict(self) -> dict[str, Any]:
        """What is kept between reports; a state is saved right after a report."""
        return {
            "best_valid_loss": self.best_valid_loss,
            "reports_since_best": self.reports_since_best,
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.best_valid_loss = state["best_valid_loss"]
        self.reports_since_best = state["reports_since_best"]
        self.seconds = dict(state["seconds"])
        self._begin()
        self._valid_scores = None
