"""Self-tuning inside the `Trainer` of Transformers."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Mapping, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ray_deltastn.integrations.classification import LOGITS, CrossEntropy, Network
from ray_deltastn.integrations.companion import Companion, kept_modes, require_free, shuffled
from ray_deltastn.methods import Loss, Method, MethodName
from ray_deltastn.regularizers import L2, ReadRates
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.training.columns import VALUES
from ray_deltastn.training.options import Options
from ray_deltastn.training.saved import STATE_FILE
from ray_deltastn.training.settings import Settings

#: Largest relative difference between the model's own loss and that of the tuner.
_SAME = 1e-3


class SelfTuningTrainer(Trainer):
    """A `Trainer` that tunes dropout, label smoothing and weight decay while it trains, on one device.

    `Trainer` trains the weights w₀ as always. After each step of its optimiser, the response Θ is trained on the same
    minibatch, and every `train_interval` steps λ moves on a minibatch of `eval_dataset`, in random order. So
    `eval_dataset` tunes: keep other data for the test. With accumulated gradients, Θ trains on the last minibatch of
    each step.

    Logs hold `hyperparameters/NAME`. Checkpoints hold the state, in `deltastn.pt`, and `resume_from_checkpoint`
    continues it. `hyperparameter_search` works as always; `model_init` then builds the model with its tuned layers.

    Args:
        space: the hyperparameters; each `train` tunes a copy.
        loss: `loss(output, batch)`, where `output` has the tensors of the model's output by name. The default is cross
            entropy of `logits` and `labels`, whose value must be that of the model's own loss.
        label_smoothing: hyperparameter for label smoothing in [0, 1], with the default loss; None for no smoothing.
        weight_decay: hyperparameter → regular expression. All layers whose name in the model has a match share this
            penalty ½·s(λ)·‖w‖², whose gradient is added after clipping. It comes in addition to the optimiser's own
            constant `weight_decay`.
        method: `delta-stn` or `centered-stn`.
        tuning: options of the run that `Trainer` does not decide, by name, see `Settings`.
        given: arguments of `Trainer`.

    Attributes:
        tuner: the tuner of the last `train`, with `hyperparameters()`, `schedule()`, `sensitivity()` and `coverage`;
            None before.

    Raises:
        TypeError: if `space` is no HyperSpace.
        ValueError: if an option is unknown or is one that `Trainer` decides, or if `weight_decay` matches no layer.
            At the start of `train`, if there are several devices, float16, or data without a length, if the default
            loss is not that of the model, and for whatever `SelfTuner` refuses.
    """

    def __init__(
        self,
        *positional: Any,
        space: HyperSpace,
        loss: Loss | None = None,
        label_smoothing: str | None = None,
        weight_decay: Mapping[str, str] | None = None,
        method: MethodName | Method = "delta-stn",
        tuning: Options | None = None,
        **given: Any,
    ) -> None:
        if not isinstance(space, HyperSpace):
            raise TypeError(f"`space` must be a HyperSpace, got {type(space).__name__}")
        self._options = Options(**(tuning or {}))
        Settings.require_known(self._options)
        require_free(self._options)
        if label_smoothing is not None and loss is not None:
            raise ValueError(f"`label_smoothing` needs the default loss, got '{label_smoothing}' with `loss`")
        self.tuner: Companion | None = None
        self._space, self._own_loss, self._method = space, loss, method
        self._smoothing, self._decays = label_smoothing, dict(weight_decay or {})
        self._resumed: Path | None = None
        self._batch: dict[str, Any] = {}
        super().__init__(*positional, **given)
        self.add_callback(_Steps(self))
        if label_smoothing is not None:
            if self.args.label_smoothing_factor:
                raise ValueError(
                    f"`label_smoothing_factor` must be 0 if label smoothing is tuned, got "
                    f"{self.args.label_smoothing_factor:g}"
                )
            self.loss_is_scaled_for_ga = False  # its loss is the mean of a minibatch

    def train(self, *positional: Any, **given: Any) -> Any:
        """Train and tune, see `Trainer.train`."""
        self._resumed = None
        state = self.accelerator.gradient_state
        active = state.dataloader_references
        try:
            return super().train(*positional, **given)
        finally:
            # `Trainer` does not read its loader to the end, so Accelerate keeps it as active. Then no trainer of this
            # process could be pickled, as Ray does for a search.
            state.dataloader_references = active
            if self.tuner is not None and self.tuner.task.in_use:
                self.tuner.release()

    def begin(self, train: Any, steps: int) -> None:
        """Attach the response to the model, and load the state of the checkpoint that `Trainer` resumes.

        Args:
            train: loader of the training data.
            steps: steps of the optimiser in the whole run.
        """
        arguments = self.args
        if arguments.world_size > 1 or arguments.n_gpu > 1:
            got = max(arguments.world_size, arguments.n_gpu)
            raise ValueError(f"`SelfTuningTrainer` needs one device, got {got}; CUDA_VISIBLE_DEVICES=0 shows one")
        if arguments.fp16:
            raise ValueError("`fp16` must be false, because Θ has no loss scaling, got True; use `bf16`")
        valid = shuffled(self.get_eval_dataloader())
        assert isinstance(self.model, nn.Module)
        assert self.optimizer is not None
        network = Network(self.model, self._smoothing)
        task = Task(
            space=copy.deepcopy(self._space),
            model=network,
            loss=self._own_loss or self._default_loss(network, valid),
            train=shuffled(train),
            valid=valid,
            penalty=[L2(name, layers=_matching(network, name, pattern)) for name, pattern in self._decays.items()],
            batch=self._pair,
        )
        each = math.ceil(len(train) / arguments.gradient_accumulation_steps)
        precision = "bf16" if arguments.bf16 else "fp32"
        epochs = max(1, math.ceil(steps / each))
        self.tuner = Companion(task, self._method, self.optimizer, each, epochs, precision, self._options)
        if self._resumed is not None:
            self.tuner.load_state_dict(torch.load(self._resumed, map_location="cpu", weights_only=True))

    def _pair(self, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs, which are all but the targets, and the whole batch."""
        return {name: value for name, value in batch.items() if name not in self.label_names}, dict(batch)

    def _default_loss(self, network: Network, valid: DataLoader[Any]) -> CrossEntropy:
        """Cross entropy, if that is what the model computes.

        Raises:
            ValueError: if it is not.
        """
        model: Any = self.model
        name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
        loss = CrossEntropy(shifted=name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
        # Not by an iterator of the loader: Accelerate counts one that is not read to its end as active.
        examples = [valid.dataset[row] for row in range(min(4, len(cast(Sized, valid.dataset))))]
        batch = dict(self._prepare_inputs(valid.collate_fn(examples)))
        inputs, targets = self._pair(batch)
        with torch.no_grad(), kept_modes(network):
            network.eval()
            own = model(**batch).get("loss")
            try:
                found = loss(network(**inputs), targets)
            except (KeyError, RuntimeError, IndexError):
                found = None
        if own is None or found is None or not math.isclose(float(own), float(found), rel_tol=_SAME, abs_tol=1e-6):
            shown = "none" if found is None else f"{float(found):.4g}"
            mine = "none" if own is None else f"{float(own):.4g}"
            raise ValueError(
                f"`loss` must be given for {name}, whose own loss is not the cross entropy of `{LOGITS}` and `labels`: "
                f"got {mine} and {shown}"
            )
        return loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **given: Any) -> Tensor:
        """Compute the gradients of w₀ at the present hyperparameters (called by `Trainer`)."""
        assert self.tuner is not None
        self._batch = dict(self._prepare_inputs(inputs))
        self.tuner.begin()
        # Attention may read its rate as a number.
        with ReadRates() if self.tuner.objective.reads_rates else nullcontext():
            gradients: Tensor = super().training_step(model, inputs, *rest, **given)
        return gradients

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a minibatch, with the tuned label smoothing in training mode (called by `Trainer`)."""
        if self._smoothing is None or not model.training or self.tuner is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        x, y = self._pair(inputs)
        outputs = self.tuner.model(**x)
        loss = self.tuner.task.loss(outputs, y)
        return (loss, outputs) if return_outputs else loss

    def end(self) -> None:
        """Move Θ after a step of the optimiser, and λ and σ at the end of a cycle."""
        assert self.tuner is not None
        assert self.optimizer is not None
        self.tuner.end(*self._pair(self._batch), float(self.optimizer.param_groups[0]["lr"]))

    def log(self, logs: dict[str, float], *rest: Any, **given: Any) -> None:
        """Log numbers, and with them the hyperparameters (called by `Trainer`)."""
        values = {} if self.tuner is None else VALUES.named(self.tuner.hyperparameters())
        super().log({**logs, **values}, *rest, **given)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._save_tuner(output_dir)

    def _tune_save_checkpoint(self, checkpoint_dir: str) -> None:
        super()._tune_save_checkpoint(checkpoint_dir)
        (folder,) = Path(checkpoint_dir).iterdir()
        self._save_tuner(folder)

    def _save_tuner(self, folder: str | Path) -> None:
        if self.tuner is not None:
            torch.save(self.tuner.state_dict(), os.path.join(folder, STATE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._resumed = Path(checkpoint, STATE_FILE)
            if not self._resumed.exists():
                raise FileNotFoundError(
                    f"`{checkpoint}` must be a checkpoint of a SelfTuningTrainer, got no {STATE_FILE}"
                )


class _Steps(TrainerCallback):
    """Calls the trainer at the places of the loop that have no method."""

    def __init__(self, trainer: SelfTuningTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Attach the response."""
        self.trainer.begin(more["train_dataloader"], state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Add the gradients of the penalties."""
        assert self.trainer.tuner is not None
        self.trainer.tuner.add_penalties()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Move Θ, λ and σ."""
        self.trainer.end()


def _matching(network: nn.Module, hyperparameter: str, pattern: str) -> list[str]:
    """Names of the layers with trainable weights that a regular expression matches, without `model.` in front.

    Raises:
        ValueError: if there is none.
    """
    owners = [name for name, m in network.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    found = [name for name in owners if re.search(pattern, name.removeprefix("model."))]
    if not found:
        raise ValueError(
            f"`weight_decay[{hyperparameter!r}]` must match a layer with trainable weights, got {pattern!r}; the "
            f"layers are: {', '.join(name.removeprefix('model.') for name in owners)}"
        )
    return found
