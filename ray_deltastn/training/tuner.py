"""The training loop: warm-up, cycles of train and hyper steps, reports, and exact state in and out."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ray_deltastn.methods import Method, MethodName, Objective, Workers, get_method
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response import Coverage, Response
from ray_deltastn.task import Task
from ray_deltastn.training import random_state
from ray_deltastn.training.algorithm import make_steps, placed
from ray_deltastn.training.best import Best
from ray_deltastn.training.carrying import carried
from ray_deltastn.training.checks import (
    check_differentiable,
    check_precision,
    check_scales,
    check_small_batches,
    check_statistics,
    try_out,
    uses_batch_statistics,
    warn_of_decay,
)
from ray_deltastn.training.columns import COVERAGE, SCALES, SECONDS, VALUES
from ray_deltastn.training.data import stream
from ray_deltastn.training.export import plain_state
from ray_deltastn.training.health import Health, ResponseSize, divergence
from ray_deltastn.training.history import History
from ray_deltastn.training.in_force import InForce, until_best
from ray_deltastn.training.optimizers import Optimizers
from ray_deltastn.training.options import Options
from ray_deltastn.training.precision import float32_products
from ray_deltastn.training.scores import Scores
from ray_deltastn.training.sensitivity import sensitivity
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.shares import check_same, check_workers, shared
from ray_deltastn.training.state import identity, require_parts, require_same, state_of_worker
from ray_deltastn.training.streams import Stream
from ray_deltastn.training.trouble import Trouble

if TYPE_CHECKING:
    import pandas as pd

#: Reason of a run that ended as planned.
ALL_DONE = "all epochs done"


class SelfTuner:
    """Train a network and tune its regularisation online (Algorithms 1 and 2), without Ray.

    Args:
        task: model, hyperparameters, data and objective.
        method: `delta-stn`, `centered-stn`, `stn`, `ift`, `unrolled` or `fixed`.
        workers: processes that train the network together, see `Workers`. Each makes the same `SelfTuner` and calls the
            same methods. The default is one process, also if `torch.distributed` is initialised: processes may as well
            train a network each.
        options: options of the run, see `Settings`.

    Attributes:
        model: the task's model, trained in place.
        hyper_lr: learning rate of λ; a number also if the option is `auto`.
        coverage: which parameters respond; None for a method without response.
        done: whether the run has ended.
        stop_reason: why the run has ended; empty before.
        last_report: the latest report, empty before the first.
        best: the best network so far, and its report.
        algorithm: the train step and the hyper step, see `Steps`.

    Raises:
        ValueError: if an option, the data or the loss breaks a rule.
        TypeError: if an argument is of the wrong kind, or a layer has no forward-mode rule.

    Examples:
        >>> tuner = SelfTuner(task, epochs=20, lr=0.05)
        >>> reports = list(tuner.fit())
        >>> reports[-1]["valid_loss"] < reports[0]["valid_loss"]
        True
        >>> list(tuner.hyperparameters())
        ['dropout', 'decay']
    """

    def __init__(
        self,
        task: Task,
        method: MethodName | Method = "delta-stn",
        *,
        workers: Workers | None = None,
        **options: Unpack[Options],
    ) -> None:
        Settings.require_known(options)
        if not isinstance(task, Task):
            raise TypeError(f"`task` must be a Task, got {type(task).__name__}")
        if task.in_use:
            raise ValueError(
                "`task` must not be in use by another SelfTuner, got one that is; build the task again, or `release()` "
                "the other one to continue from its weights and hyperparameters"
            )
        self.task = task
        self.workers = workers or Workers.alone()
        given: dict[str, Any] = {"method": method, **options}
        self.settings = Settings(**given)
        self.method = get_method(method)
        check_differentiable(task, self.method)
        if self.workers.size > 1:
            check_workers(self.settings, self.method, task.model)
            self.settings = self.settings.model_copy(update={"graph": "off"})
        s = self.settings
        warn_of_decay(task, s.optimizer)
        self.device = s.torch_device()
        self.model = placed(task.model, self.device, s.channels_last)
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        if not self._trainable:
            raise ValueError("`model` needs at least one trainable parameter, got none")
        check_precision(s.precision, self._trainable)
        task.space.use(s.domains)
        if s.tune_scale and self.method.responds:
            check_scales(task.space)
        self.space = task.space.to(self.device, self._trainable[0].dtype)
        self._make_streams()
        self.hyper_lr = s.hyper_rate(self.hyper_steps)
        if self.workers.size > 1:
            every = [self.train, self.valid, *([] if self.test is None else [self.test])]
            check_same(self.workers, s, task, every)
            self.workers.broadcast([*self.model.parameters(), *self.model.buffers(), *self.space.parameters()])
        self.generator = torch.Generator(self.device).manual_seed(self._own_seed(3))
        self.pass_values = PassValues(self.space, self.generator)
        for regularizer in task.regularizers:
            regularizer.bind(self.pass_values)
        self.response: Response | None = None
        if self.method.responds:
            initial = torch.Generator().manual_seed(random_state.seed_of(s.seed, 4))
            self.response = Response(self.model, len(self.space), initial)
        self.objective = Objective(
            self.model,
            task.loss,
            self.space,
            self.pass_values,
            self.method,
            self.response,
            valid_loss=task.valid_loss,
            augment=task.augmentations,
            penalty=task.penalties,
            valid_penalty=task.valid_penalties,
            half=s.precision == "bf16",
            channels_last=s.channels_last,
            carries=carried(task, [self.train, self.valid, *([] if self.test is None else [self.test])]),
        )
        self._fixed_table = self.space.fixed_values(s.hyperparameters).to(self.device)
        tuned = self.space if self.method.tunes else None
        self.optimizers = Optimizers(s, self.model, self.response, tuned, self.hyper_lr)
        self.algorithm = make_steps(self.objective, self.optimizers, s, self.workers)
        reach = self.hyper_steps * self.hyper_lr * s.mean_share
        self.health = Health(self.space, reach, self.method.tunes)
        self.steps = 0
        self.stop_reason = ""
        self.scores = Scores(self.objective, self.valid, self.test, task.metrics, self.device, self.workers)
        self.response_size = ResponseSize(self.objective, self.valid.whole, random_state.seed_of(s.seed, 5))
        self.trouble = Trouble(self.objective, self.train.whole, self.valid.whole)
        self.in_force = InForce(self.space)
        self.last_report: dict[str, Any] = {}
        self._history = History()
        self.best = Best(s.monitor, s.monitor_mode)
        self._row = 0
        self._set_constant(0)
        # The response is compared with an oracle, which TF32 is too coarse for.
        with random_state.isolated(self._own_seed(), self.device), float32_products(False, self.device):
            try:
                self.scores.try_out(*try_out(self.objective, self.valid, self.train, self.test))
                self.best.check(self.scores.names)
                check_small_batches(self.objective, self.train, s.response_fraction)
                check_statistics(self.objective, s.parts(uses_batch_statistics(self.model), self.workers.size))
            except BaseException:
                self.release()
                raise
            self._global_random = random_state.capture(self.device)
        task.in_use = True

    def __repr__(self) -> str:
        best = self.best_valid_loss
        so_far = f", best valid loss {best:.4g}" if best < float("inf") else ""
        state = f", {self.stop_reason}" if self.done else ""
        lines = [
            f"{type(self).__name__}: {self.method.name} on {self.device}, epoch {self.epoch} of "
            f"{self.settings.epochs}{so_far}{state}",
            ", ".join(f"{name} {value:.4g}" for name, value in self.hyperparameters().items()),
        ]
        return "\n  ".join([*lines, *([self.coverage.headline] if self.coverage else [])])

    def _own_seed(self, *parts: int) -> int:
        """A seed for what each worker draws by itself; the first worker has that of a run of one process."""
        if self.workers.rank:
            parts = (*parts, self.workers.rank)
        return random_state.seed_of(self.settings.seed, *parts) if parts else self.settings.seed

    def _make_streams(self) -> None:
        s, task = self.settings, self.task
        self.train = self._stream(task.train, s.batch_size, "train", 0)
        self.valid = self._stream(task.valid, s.valid_batch_size or s.batch_size, "valid", 1)
        self.test = None if task.test is None else self._stream(task.test, s.batch_size, "test", 2)
        self._count_steps()

    def _count_steps(self) -> None:
        s = self.settings
        self.warmup_steps = s.warmup_train_steps(len(self.train))
        self.total_steps = s.epochs * len(self.train)
        self.hyper_steps = s.hyper_steps(len(self.train))

    def _stream(self, source: Any, batch_size: int, name: str, split: int) -> Stream:
        seed = random_state.seed_of(self.settings.seed, split)
        return shared(stream(source, batch_size, name, self.device, seed, self.task.pair), self.workers)

    @property
    def coverage(self) -> Coverage | None:
        """Which parameters respond to the hyperparameters, and why the others do not."""
        return None if self.response is None else self.response.coverage

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return bool(self.stop_reason)

    @property
    def best_valid_loss(self) -> float:
        """The smallest validation loss reported so far."""
        return self.scores.best_valid_loss

    @property
    def epoch(self) -> int:
        """Passes over the training data completed."""
        return self.steps // len(self.train)

    def fit(self) -> Iterator[dict[str, Any]]:
        """Train to the end, one report at a time; a loaded state is continued."""
        while not self.done:
            yield self.step()

    def step(self) -> dict[str, Any]:
        """Train up to the next report (an epoch, or `steps_per_report`) and return it.

        Returns:
            `epoch`, `steps`, `hyper_steps`, `train_loss`, `valid_loss`, `valid_accuracy`, `test_*`, `best_valid_loss`,
            `hyperparameters/<name>` in its own domain, `scale/<name>`, `signal/<name>`, `at_bound/<name>`, `lr`,
            `seconds/*`, `warning/*`, `diverged` and `stop_reason`. Losses of a diverged run are infinite.

        Raises:
            RuntimeError: if the run has ended.
        """
        if self.done:
            raise RuntimeError(f"`step` needs a run that has not ended, got one that stopped: {self.stop_reason}")
        outer = random_state.capture(self.device)
        random_state.restore(self._global_random, self.device)
        try:
            target = min(self.steps + (self.settings.steps_per_report or len(self.train)), self.total_steps)
            self.model.train()
            with self.arithmetic():
                while self.steps < target:
                    self._train_step()
                    if self.steps % len(self.train) == 0:
                        self.in_force.note(self.steps)
                        self.in_force.end_epoch(len(self.train), None if self.method.tunes else self.objective.constant)
                        self.optimizers.end_epoch(self._valid_loss)
                return self._report()
        finally:
            self._global_random = random_state.capture(self.device)
            random_state.restore(outer, self.device)

    def arithmetic(self) -> AbstractContextManager[None]:
        """Context in which float32 products round as `precision` says: PyTorch's switches are global."""
        return float32_products(self.settings.precision == "tf32", self.device)

    def _train_step(self) -> None:
        started = time.perf_counter()
        self._set_constant(self.steps)
        x, y = self.train.next()
        with self.train.explains(x, y):
            loss = self.algorithm.train_step(x, y)
        self.scores.add(loss)
        self.trouble.train_step(loss)
        self.steps += 1
        ended = time.perf_counter()
        self.scores.seconds["train"] += ended - started
        if self.method.tunes and self.steps > self.warmup_steps and self.steps % self.settings.train_interval == 0:
            self._hyper_steps()
            self.scores.seconds["hyper"] += time.perf_counter() - ended

    def _set_constant(self, step: int) -> None:
        """Take the constants of a step: the row of its epoch, or the last row."""
        if self.method.tunes:
            return
        row = min(step // len(self.train), len(self._fixed_table) - 1)
        if self.objective.constant is None:
            self.objective.constant = self._fixed_table[row].clone()
        elif row != self._row:
            # In place: a captured step reads this tensor, and would have to be captured again for another one.
            self.objective.constant.copy_(self._fixed_table[row])
        self._row = row

    def _hyper_steps(self) -> None:
        self.in_force.note(self.steps)
        self._share_buffers()
        self.model.eval()
        progress = (self.steps - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        share = self.settings.hyper_share(progress)
        self.optimizers.set_hyper_share(share)
        for _ in range(self.settings.valid_interval):
            before = self.space.lam.detach().clone()
            x, y = self.valid.next()
            with self.valid.explains(x, y):
                self.trouble.hyper_step(self.algorithm.hyper_step(x, y))
            self.health.watch(before, self.hyper_lr * share)
        self.model.train()

    def _valid_loss(self) -> float:
        self._share_buffers()
        return self.scores.valid_scores(self.steps)["loss"]

    def _share_buffers(self) -> None:
        """Take the buffers of worker 0, such as running statistics, which each worker has of its own rows."""
        self.workers.broadcast(self.model.buffers())

    def _report(self) -> dict[str, Any]:
        self._share_buffers()
        train_loss, scores = self.scores.take(self.steps)
        with self.scores.timed("evaluate"):
            size = self.response_size()
        reason = divergence(self.space, train_loss, scores["valid_loss"], self.steps)
        if reason:
            reason += self.trouble.found(self.steps, self.best.weights)
        self.trouble.reset()
        self.workers.check(self._moved())
        # The numbers are equal but for rounding; decisions must be equal.
        train_loss, scores, size, reason, seconds = self.workers.agreed(
            (train_loss, scores, size, reason, self.scores.seconds)
        )
        self.scores.seconds = seconds
        return self._assemble(train_loss, scores, size, reason)

    def _moved(self) -> list[Tensor]:
        """w₀, Θ, λ and σ."""
        response = [] if self.response is None else self.response.parameters()
        return [*self._trainable, *response, *self.space.parameters()]

    def give_up(self, reason: str) -> dict[str, Any]:
        """End a run that cannot continue, with infinite losses, and return its last report.

        Args:
            reason: becomes `stop_reason`.
        """
        known = {key: v for key, v in self.last_report.items() if key.startswith(("valid_", "test_"))}
        missing = {"valid_loss": math.inf, **({} if self.test is None else {"test_loss": math.inf})}
        # Nothing is computed here: the reason may be that the device has no memory left.
        return self._assemble(math.inf, known or missing, self.last_report.get("response_size", 0.0), reason)

    def _assemble(
        self, train_loss: float, scores: dict[str, float], response_size: float, reason: str
    ) -> dict[str, Any]:
        """Make a report, and end the run if there is a reason."""
        if reason:
            self.stop_reason = reason
            # Infinity can be ordered, NaN cannot: so schedulers and searchers see a finished trial with the worst loss.
            scores = {k: math.inf if k.endswith("_loss") else v for k, v in scores.items()}
            train_loss = math.inf
        self.scores.note(scores["valid_loss"])
        patience = self.settings.patience
        if not self.done and patience and self.scores.reports_since_best >= patience:
            self.stop_reason = f"no better validation loss in {patience} reports"
        slowest = self.settings.min_lr
        if not self.done and slowest and self.optimizers.lr < slowest:
            self.stop_reason = f"learning rate {self.optimizers.lr:.3g} below {slowest:g}"
        if not self.done and self.steps >= self.total_steps:
            self.stop_reason = ALL_DONE
        values = self.objective.current_values()
        scale = self.space.scale.detach() * float(self.method.responds)  # zero if nothing is perturbed
        report: dict[str, Any] = {
            "epoch": self.epoch,
            "steps": self.steps,
            "hyper_steps": self.settings.hyper_steps(len(self.train), self.steps) if self.method.tunes else 0,
            "train_loss": train_loss,
            **scores,
            "best_valid_loss": self.scores.best_valid_loss,
            **VALUES.named(dict(zip(self.space.names, values.tolist(), strict=True))),
            **SCALES.named(dict(zip(self.space.names, scale.tolist(), strict=True))),
            "lr": self.optimizers.lr,
            "response_size": response_size,
            **COVERAGE.named({"share": 0.0, "largest_gap": ""} if self.coverage is None else self.coverage.columns),
            **SECONDS.named({**self.scores.seconds, "total": sum(self.scores.seconds.values())}),
            **self.health.report(response_size),
            "diverged": bool(reason),
            "stop_reason": self.stop_reason,
        }
        self.health.reset()
        self.last_report = report
        self._history.add(report)
        if not reason:
            self.best.see(report, self.export)
        return report

    def hyperparameters(self) -> dict[str, float]:
        """Values of the hyperparameters now, in their own domains."""
        return dict(zip(self.space.names, self.objective.current_values().tolist(), strict=True))

    def schedule(self, best: bool = False) -> pd.DataFrame:
        """The hyperparameters in force during each completed epoch, for a later run.

        Row n holds s(λ̄) with the mean λ̄ of λ over the train steps of epoch n; for a decay this is the geometric mean.
        `hyperparameters=schedule.to_dict("list")` replays it with the method `fixed`. See also `rd.refit`.

        Args:
            best: end with the epoch of the report with the best `monitor`. A refit has no validation data that could
                stop it, so give it this one.

        Returns:
            One row per epoch, which counts from 1; one column per hyperparameter, in its own domain.

        Raises:
            ValueError: if the best epoch is asked for before a report with a finite number.
        """
        table = self.in_force.table()
        return until_best(table, self.best.report, self.best.monitor) if best else table

    def history(self) -> pd.DataFrame:
        """All reports so far, also those before a loaded state.

        Returns:
            One row per report, one column for each of its numbers.
        """
        return self._history.table()

    def sensitivity(self, examples: int | None = None) -> pd.DataFrame:
        """The validation loss that the response predicts along each hyperparameter, see `sensitivity`.

        Args:
            examples: number of validation examples, the first ones; None means all.

        Returns:
            One row per hyperparameter and point, with `hyperparameter`, `offset` in units of σ, `value`, `change`,
            `error` (standard error of the change) and `loss`.

        Raises:
            ValueError: if the method has no response.
        """
        linearized = False if self.settings.hyper_pass == "network" else None
        with self.arithmetic():
            return sensitivity(self.objective, self.valid.whole, linearized, examples)

    def export(self, best: bool = False) -> dict[str, Tensor]:
        """The tuned network as a `state_dict` of its own class.

        For `stn` the weights are r(λ), folded in; for the others they are w₀ as trained.

        Args:
            best: the network of the report with the best `monitor` instead of the present one, on the CPU. That report
                is `best.report`.

        Raises:
            ValueError: if the best network is asked for before a report with a finite number.
        """
        if best:
            if not self.best.weights:
                raise ValueError(f"`export(best=True)` needs a report with a finite `{self.best.monitor}`, got none")
            return {name: value.clone() for name, value in self.best.weights.items()}
        folded = self.response is not None and not self.method.centered
        return plain_state(self.model, self.response if folded else None, self.space.lam.detach())

    def release(self) -> nn.Module:
        """Remove all hooks and bindings from the model, and return it."""
        if self.response is not None:
            self.response.release()
        for regularizer in self.task.regularizers:
            regularizer.bind(None)
        self.task.in_use = False
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue to the bit: tensors and plain values, which `weights_only=True` loads.

        Several workers must all call it, and all get the same state.
        """
        self._share_buffers()
        own = {"generator": self.generator.get_state(), "global_random": self._global_random}
        every = self.workers.gathered((own, self.train.state_dict(), self.valid.state_dict()))
        random, train, valid = (list(part) for part in zip(*every, strict=True))
        return {
            **self._own_state(),
            **random[0],
            "train": self.train.joined(train),
            "valid": self.valid.joined(valid),
            **({"workers": random} if len(every) > 1 else {}),
        }

    def _own_state(self) -> dict[str, Any]:
        """The state of this process, without a word to the others."""
        return {
            "identity": self._identity(),
            "space": self.space.state_dict(),
            "model": self.model.state_dict(),
            "response": None if self.response is None else self.response.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "train": self.train.state_dict(),
            "valid": self.valid.state_dict(),
            "generator": self.generator.get_state(),
            "global_random": self._global_random,
            "steps": self.steps,
            "stop_reason": self.stop_reason,
            "last_report": dict(self.last_report),
            "history": self._history.state_dict(),
            "in_force": self.in_force.state_dict(),
            "best": self.best.state_dict(),
            **self.scores.state_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        space, task = self.space.fingerprint(), self.task.identity
        return identity(self.method.name, space, self.settings, self.model, len(self.train), task)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; this run's own settings win over those the state was saved under.

        Several workers must all load the same state. The state of a run with another number of workers is accepted with
        a warning: the run continues with new random numbers.

        Learning rates, momenta and all other options of the optimisers are those of this run, so a scheduler may copy
        a state and change them. A learning rate that a schedule had decayed stays decayed by the same factor.

        Raises:
            ValueError: if the state is not one of a run with this space, method, optimisers and model.
        """
        require_same(state, self._identity())
        require_parts(state, [part for part in self._own_state() if part != "history"])  # older states have none
        # The optimisers would share the buffers of a state that is handed over in memory.
        state = copy.deepcopy(dict(state))
        self.space.load_state_dict(state["space"])
        self.model.load_state_dict(state["model"])
        if self.response is not None:
            self.response.load_state_dict(state["response"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.train.load_state_dict(state["train"])
        self.valid.load_state_dict(state["valid"])
        self.steps = state["steps"]
        random = state_of_worker(state, self.workers)
        if random is None:
            self.generator.manual_seed(self._own_seed(3, self.steps))
            with random_state.isolated(self._own_seed(self.steps), self.device):
                self._global_random = random_state.capture(self.device)
        else:
            self.generator.set_state(random["generator"].cpu())
            self._global_random = random["global_random"]
        self._set_constant(max(0, self.steps - 1))
        self.scores.load_state_dict(state)
        # A run that has ended continues if the new run has more epochs.
        ended = state["steps"] < self.total_steps and state["stop_reason"] == ALL_DONE
        self.stop_reason = "" if ended else state["stop_reason"]
        self.last_report = dict(state["last_report"])
        if "history" in state:
            self._history.load_state_dict(state["history"])
        self.in_force.load_state_dict(state["in_force"])
        self.best.load_state_dict(state["best"])
        self.health.reset()
        self.trouble.reset()
