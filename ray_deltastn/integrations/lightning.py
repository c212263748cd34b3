"""Self-tuning inside `Trainer.fit` of Lightning."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from ray_deltastn.integrations.companion import Companion, require_free, shuffled
from ray_deltastn.methods import Loss, Method, MethodName, Workers
from ray_deltastn.regularizers import Augmentation, Penalty, ReadRates
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.training.options import Options
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.streams import as_pair

#: Lightning's precisions and ours.
_PRECISIONS = {"32-true": "fp32", "64-true": "fp32", "bf16-mixed": "bf16"}


class SelfTuning(pl.Callback):
    """Tunes the hyperparameters of a `LightningModule` while `Trainer.fit` trains it, on one device or under DDP.

    Lightning trains the weights w₀ as always: with the `training_step` and the optimiser of the module. After each step
    the callback trains the response Θ on the same minibatch, and every `train_interval` steps it moves λ on a minibatch
    of the validation data. Layers such as `rd.Dropout` read the present values in `training_step`. Penalties are added
    to the gradients, so `training_step` leaves them out. With accumulated gradients, Θ trains on the last minibatch of
    each step.

    Under DDP the gradients of Θ, λ and σ are averaged over the processes, as Lightning averages those of w₀ (see
    `Workers`). A hyper step takes as many validation examples as all processes have in a minibatch.

    The values and their scales σ are logged as `hyperparameters/NAME` and `scale/NAME`. Lightning's checkpoints hold
    the state, and `fit(ckpt_path=…)` continues it to the bit.

    Args:
        space: the hyperparameters; the callback tunes a copy.
        loss: `loss(output, target)`, the loss of `training_step`, where `output` is what the module returns for the
            inputs.
        valid: `DataLoader` of the validation data that tune. The default is the trainer's first validation loader, in
            random order.
        valid_loss: loss on validation data. The default is `loss`.
        penalty: one or more penalties in the training objective.
        augment: one or more augmentations of the training inputs; `training_step` applies them with
            `SelfTuning.augmented`.
        batch: how to take inputs and targets from a batch, see `Task`.
        network: name of the submodule that maps inputs to outputs. The default is the module itself.
        method: `delta-stn` or `centered-stn`.
        options: options of the run that Lightning does not decide, see `Settings`.

    Attributes:
        tuner: the tuner of the last `fit`, with `hyperparameters()`, `schedule()`, `sensitivity()` and `coverage`; None
            before.

    Raises:
        TypeError: if `space` is no HyperSpace.
        ValueError: if an option is unknown or is one that Lightning decides. At the start of `fit`, if the trainer has
            several devices without DDP, more than one optimiser, a precision other than float32, float64 or bfloat16
            autocast, or no end; and for whatever `SelfTuner` refuses.
    """

    def __init__(
        self,
        space: HyperSpace,
        loss: Loss,
        *,
        valid: DataLoader[Any] | None = None,
        valid_loss: Loss | None = None,
        penalty: Penalty | Sequence[Penalty] = (),
        augment: Augmentation | Sequence[Augmentation] = (),
        batch: str | Callable[[Any], tuple[Any, Any]] | None = None,
        network: str = "",
        method: MethodName | Method = "delta-stn",
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(space, HyperSpace):
            raise TypeError(f"`space` must be a HyperSpace, got {type(space).__name__}")
        Settings.require_known(options)
        require_free(options)
        self.tuner: Companion | None = None
        self._space, self._network, self._method = space, network, method
        self._options = options
        self._valid = valid
        self._parts: dict[str, Any] = {
            "loss": loss,
            "valid_loss": valid_loss,
            "penalty": penalty,
            "augment": augment,
            "batch": batch,
        }
        self._saved: dict[str, Any] = {}
        self._restore: Callable[[], None] | None = None
        self._lr = 0.0
        self._step = 0

    def augmented(self, x: Tensor) -> Tensor:
        """Training inputs (B, …) under the augmentations at the present values, for `training_step`.

        Raises:
            RuntimeError: outside of `Trainer.fit`.
        """
        if self.tuner is None:
            raise RuntimeError("`augmented` needs the values of a run, got a call outside of `Trainer.fit`")
        return self.tuner.augmented(x)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach the response to the module (called by Lightning)."""
        optimizer = _only_optimizer(trainer)
        steps, epochs = _length(trainer)
        task = Task(
            space=copy.deepcopy(self._space),
            model=pl_module.get_submodule(self._network),
            train=_loader(trainer.train_dataloader, "train"),
            valid=self._valid or shuffled(_loader(trainer.val_dataloaders, "valid"), trainer.world_size),
            **self._parts,
        )
        precision = _PRECISIONS[str(trainer.precision)]
        workers = Workers() if trainer.world_size > 1 else None
        self.tuner = Companion(task, self._method, optimizer, steps, epochs, precision, self._options, workers)
        self._step = trainer.global_step
        if self._saved:
            self.tuner.load_state_dict(self._saved)
        if self.tuner.objective.reads_rates:
            self._restore = _reading_rates(pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *rest: Any) -> None:
        """Give the layers their values (called by Lightning)."""
        assert self.tuner is not None
        self.tuner.begin()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Add the gradients of the penalties (called by Lightning)."""
        assert self.tuner is not None
        self._lr = float(optimizer.param_groups[0]["lr"])  # a scheduler may change it before the end of the batch
        self.tuner.add_penalties()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *rest: Any
    ) -> None:
        """Move Θ, λ and σ, and log the values (called by Lightning)."""
        assert self.tuner is not None
        if trainer.global_step != self._step:  # else gradients are accumulated
            self._step = trainer.global_step
            self.tuner.end(*as_pair(batch, "train", self.tuner.task.pair), self._lr)
        pl_module.log_dict(self.tuner.now(), on_step=True, on_epoch=False, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the state while all processes are there (called by Lightning)."""
        assert self.tuner is not None
        self._saved = self.tuner.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """State for Lightning's checkpoint."""
        return dict(self._saved) if self.tuner is None else self.tuner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until `fit` starts (called by Lightning)."""
        self._saved = state_dict

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off the module (called by Lightning)."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks off the module (called by Lightning)."""
        self._release()

    def _release(self) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None
        if self.tuner is not None and self.tuner.task.in_use:
            if self.tuner.workers.size == 1:  # after an exception other workers may wait for something else
                self._saved = self.tuner.state_dict()
            self.tuner.release()


def _reading_rates(module: pl.LightningModule) -> Callable[[], None]:
    """Let attention inside `training_step` read a tuned rate as a number.

    Returns:
        A function that gives the module its own `training_step` back.
    """
    own = module.training_step
    attributes = vars(module)
    before = attributes.get("training_step")

    @functools.wraps(own)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        with ReadRates():
            return own(*args, **kwargs)

    def restore() -> None:
        if before is None:
            del attributes["training_step"]
        else:
            attributes["training_step"] = before

    attributes["training_step"] = training_step
    return restore


def _only_optimizer(trainer: pl.Trainer) -> Any:
    """The optimiser of a trainer that this callback can work with.

    Raises:
        ValueError: if there are several devices without DDP, several optimisers, or another precision.
    """
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise ValueError(
            f"`SelfTuning` needs a trainer with one device or the strategy ddp, got {trainer.world_size} devices and "
            f"{type(trainer.strategy).__name__}"
        )
    if len(trainer.optimizers) != 1:
        raise ValueError(f"`SelfTuning` needs a module with one optimiser, got {len(trainer.optimizers)}")
    if str(trainer.precision) not in _PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(_PRECISIONS)}, got {trainer.precision!r}")
    return trainer.optimizers[0]


def _length(trainer: pl.Trainer) -> tuple[int, int]:
    """Steps of the optimiser in an epoch, and number of epochs.

    Raises:
        ValueError: if a run has no end, or its data have no length.
    """
    batches, whole = trainer.num_training_batches, trainer.estimated_stepping_batches
    if math.isinf(batches) or math.isinf(whole):
        raise ValueError(
            f"`SelfTuning` must know the length of the run, got {batches} minibatches in an epoch and {whole} steps; "
            "set `max_epochs` or `max_steps`, and `limit_train_batches` for data without a length"
        )
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    return steps, max(1, math.ceil(whole / steps))


def _loader(given: Any, name: str) -> DataLoader[Any]:
    """The loader of a split, or the first one of several.

    Raises:
        ValueError: if there is none.
    """
    found = given[0] if isinstance(given, list | tuple) and given else given
    if not isinstance(found, DataLoader):
        hint = "; give one to `SelfTuning(valid=…)`" if name == "valid" else ""
        raise ValueError(f"the trainer must have a DataLoader for '{name}', got {type(found).__name__}{hint}")
    return found
