"""The YAML file of an experiment, typed and checked before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_deltastn.methods import get_method
from ray_deltastn.training.rules import shown
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.places import check_place, full_key, require_own, unknown_section, with_own_names
from ray_deltastn.tune.places import unknown_key as unknown_key  # used by other commands too
from ray_deltastn.tune.reading import ConfigError as ConfigError  # raised by `read`
from ray_deltastn.tune.reading import load_yaml
from ray_deltastn.tune.resources import check_whole_gpu
from ray_deltastn.tune.scheduler_names import CHANGING, PAUSING
from ray_deltastn.tune.search.axes import Axis, Choice
from ray_deltastn.tune.search.texts import read_text

ConfigKind = TypeVar("ConfigKind", bound="ExperimentConfig")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TuneSection(_Section):
    """How the trials are searched and run.

    Attributes:
        searcher: `bo` (Gaussian process of scikit-optimize), `random`, `grid`, `optuna-tpe` or `optuna-gp`.
        scheduler: `fifo` (every trial runs to its end), `asha`, `hyperband`, `median`, `pbt` or `pb2`; see
            `make_scheduler`.
        num_samples: number of trials.
        budget: number of epochs, of all trials together, after which the experiment ends; by default it ends with its
            last trial.
        metric: the key of a report that is optimised.
        mode: whether the metric is minimised (`min`) or maximised (`max`).
        max_concurrent: number of trials that run at the same time; by default as many as the CPUs allow.
        workers: processes that train one trial together. Each takes a share of every minibatch, and gradients are
            averaged.
        cpu: CPUs of one worker.
        gpu: GPUs of one worker; may be a fraction if a trial has one worker.
        checkpoint_every: number of reports between two checkpoints of a trial.
        max_failures: how often a trial is restarted after it crashed or was killed.
        seed: seed of the searcher.
        warm_start: start each trial with the hyperparameters that the nearest of the best finished trials has learned.
    """

    # A text is not a number, and a number is not a boolean.
    model_config = ConfigDict(extra="forbid", strict=True)

    searcher: Literal["bo", "random", "grid", "optuna-tpe", "optuna-gp"] = "bo"
    scheduler: Literal["fifo", "asha", "hyperband", "median", "pbt", "pb2"] = "fifo"
    num_samples: int = Field(default=8, ge=1)
    budget: int | None = Field(default=None, ge=1)
    metric: str = "best_valid_loss"
    mode: Literal["min", "max"] = "min"
    max_concurrent: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1)
    cpu: float = Field(default=1, gt=0)
    gpu: float = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=10, ge=1)
    max_failures: int = Field(default=2, ge=-1)
    seed: int = Field(default=0, ge=0)
    warm_start: bool = False

    @model_validator(mode="after")
    def _whole_gpus(self) -> TuneSection:
        if self.workers > 1:
            check_whole_gpu("tune.gpu", self.gpu)
        return self


class ExperimentConfig(_Section):
    """One reproducible experiment.

    Attributes:
        task: name of a ready task, or an import string `module:function`.
        options: the task's own options, which its function reads. An option of `Settings`, `task`, `resources` and
            `warm_start` are refused here: they would replace what other sections say.
        train: options of `Settings`, the same for all trials.
        search: option → Tune domain as text, such as `loguniform(0.01, 0.3)`. A dot reaches into a mapping, as in
            `hyperparameters.dropout`, or into the task's own options, as in `options.width`. With method `fixed`,
            `hyperparameters: all` searches all hyperparameters of the task, each in its own range.
        tune: how trials are searched and run.
        control: after the search, train one more trial with the options of the best trial and constant initial
            hyperparameters. The end of the run and its page then tell what tuning has gained.
    """

    task: str
    options: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, str] = Field(default_factory=dict)
    tune: TuneSection = TuneSection()
    control: bool = Field(default=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, data: Any) -> Any:
        return with_own_names(data) if isinstance(data, dict) else data

    @field_validator("options")
    @classmethod
    def _own_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            require_own(f"options.{name}", name, "train", value)
        return options

    @field_validator("train")
    @classmethod
    def _known_options(cls, train: dict[str, Any]) -> dict[str, Any]:
        for name in train:
            if name not in Settings.names():
                raise ValueError(unknown_key(f"train.{name}", [f"train.{n}" for n in Settings.names()]))
        Settings(**train)
        return train

    @classmethod
    def read(cls: type[ConfigKind], path: str | Path, overrides: Sequence[str] = ()) -> ConfigKind:
        """Read, override and check a file.

        Args:
            path: YAML file.
            overrides: `key=value` with dots for sections, such as `train.epochs=5`; values are YAML. The section may
                be left out if only one has such a key.

        Raises:
            ConfigError: if the file cannot be read, a key is unknown or a value breaks a rule.
        """
        try:
            return cls.model_validate(load_yaml(path, overrides, lambda key, data: full_key(key, data, cls.sections())))
        except ValidationError as error:
            raise ConfigError(first_error(error, cls)) from None

    @classmethod
    def sections(cls) -> dict[str, tuple[str, ...]]:
        """Names of all keys at the top of a file, with the known keys of `train` and `tune`."""
        known = {"train": Settings.names(), "tune": tuple(TuneSection.model_fields)}
        return {name: known.get(name, ()) for name in cls.model_fields}

    def model_post_init(self, context: Any) -> None:
        """Check the rules that concern several sections."""
        for name, text in self.search.items():
            if name.split(".")[0] == "hyperparameters":
                self._check_constant(name)
            if name != "hyperparameters":
                check_place(name, self.search, self.train, self.options)
                self._check_values(name)
            elif text != "all":
                raise ValueError(
                    f"`search.hyperparameters` must be `all`, got {text!r}; for a single one use `{name}.NAME`"
                )
        self._check_tune()
        tunes = any(get_method(method).tunes for method in self.methods())
        if self.control and not tunes and not any(name.split(".")[0] == "hyperparameters" for name in self.search):
            raise ValueError(
                "`control: true` needs trials that tune hyperparameters, or a search of them, got only `method: fixed`"
            )

    def _check_values(self, name: str) -> None:
        """Raise ValueError if the domain is not readable, or one of its values would break the rule of its option."""
        values = self.extremes(name)
        if name == "method" and not isinstance(self._axis(name), Choice):
            raise ValueError(f"`search.method` must be a choice, got {self.search[name]!r}")
        if name in Settings.names():
            for value in values:
                Settings(**{**self.train, name: value})

    def _check_tune(self) -> None:
        """Raise ValueError if scheduler, searcher and warm start cannot be combined."""
        if self.tune.scheduler in PAUSING and self.tune.max_concurrent is not None:
            raise ValueError(
                f"`tune.max_concurrent` must not be given with `tune.scheduler: {self.tune.scheduler}`, which pauses "
                f"trials and needs all of them alive, got {self.tune.max_concurrent}; as many run as the CPUs allow"
            )
        if self.tune.scheduler in CHANGING and self.tune.searcher not in ("random", "grid"):
            raise ValueError(
                f"`tune.scheduler: {self.tune.scheduler}` changes options itself, so `tune.searcher` must be `random` "
                f"or `grid`, got {self.tune.searcher!r}"
            )
        if self.tune.warm_start:
            if self.tune.searcher in ("random", "grid"):
                raise ValueError(
                    f"`tune.warm_start` needs a searcher that learns (bo, optuna-tpe, optuna-gp), got "
                    f"{self.tune.searcher!r}"
                )
            fixed = [method for method in self.methods() if not get_method(method).tunes]
            if fixed:
                raise ValueError(f"`tune.warm_start` needs methods that tune hyperparameters, got {fixed[0]!r}")

    def _check_constant(self, name: str) -> None:
        """Raise ValueError if the method of a trial can be one that tunes the hyperparameters itself."""
        tuning = [method for method in self.methods() if get_method(method).tunes]
        if tuning:
            raise ValueError(f"`search.{name}` needs `method: fixed`, got {tuning[0]!r}, which tunes them itself")

    def with_ranges(self, ranges: Mapping[str, tuple[str, float, float]]) -> ExperimentConfig:
        """Return this experiment with every hyperparameter named in `search` instead of `hyperparameters: all`.

        Args:
            ranges: ranges of the task's space, see `HyperSpace.search_ranges`. A range or a constant that the file
                gives is kept.
        """
        if "hyperparameters" not in self.search:
            return self
        every = {f"hyperparameters.{n}": f"{kind}({low!r}, {high!r})" for n, (kind, low, high) in ranges.items()}
        for name in self.train.get("hyperparameters", {}):
            every.pop(f"hyperparameters.{name}", None)
        given = {name: text for name, text in self.search.items() if name != "hyperparameters"}
        return self.model_copy(update={"search": {**every, **given}})

    def _axis(self, name: str) -> Axis:
        """Return the axis of a key of `search`."""
        return read_text(name, self.search[name])

    def extremes(self, name: str) -> list[Any]:
        """Return the values of an option that decide whether its rule holds in all trials.

        These are the smallest and the largest value of a range, all categories of a choice, or the constant.

        Args:
            name: a key of `search`, or an option of `Settings`.

        Raises:
            ValueError: if the domain is not supported or has no values.
        """
        if name in self.search:
            return list(self._axis(name).extremes)
        return [self.train.get(name, Settings.model_fields[name].default)]

    def methods(self) -> list[Any]:
        """Return the methods that trials of this experiment can have."""
        return self.extremes("method")

    def param_space(self) -> dict[str, Any]:
        """Return the config of a trial; the searched options are Tune domains."""
        from ray_deltastn.tune.search.domains import parse_domain  # imports Ray, which reading a file does not need

        space: dict[str, Any] = {
            "task": self.task,
            **copy.deepcopy(self.options),
            **copy.deepcopy(self.train),
            "resources": {
                "cpu": self.tune.cpu,
                "gpu": self.tune.gpu,
                **({"workers": self.tune.workers} if self.tune.workers > 1 else {}),
            },
        }
        shown = self.tune.metric.removeprefix("best_")
        if (shown, self.tune.mode) != ("valid_loss", "min") and not {"monitor", "monitor_mode"} & self.train.keys():
            # The network that a trial keeps must be the one that the search ranks.
            space |= {"monitor": shown, "monitor_mode": self.tune.mode}
        for name, text in self.search.items():
            *path, last = option_of(name).split(".")
            inner = space
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = parse_domain(name, text)
        return space


def option_of(searched: str) -> str:
    """Return the name that a key of `search` has in a trial's config: `options.width` becomes `width`."""
    return searched.removeprefix("options.")


def first_error(error: ValidationError, kind: type[ExperimentConfig]) -> str:
    """Return one line about the first rule that a configuration breaks.

    Args:
        error: the error of pydantic.
        kind: the class of the configuration.
    """
    # An unknown key explains a missing one.
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return unknown_section(key, kind.sections())
    if first["type"] == "extra_forbidden":
        return unknown_key(key, [f"tune.{name}" for name in TuneSection.model_fields])
    kinds = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false"}
    if first["type"] in kinds:
        return f"`{key}` must be {kinds[first['type']]}, got {shown(first['input'])}"
    if first["type"] == "missing":
        return f"`{key}` must be given, got no such key"
    if first["type"] == "literal_error":
        return f"`{key}` must be {first['ctx']['expected']}, got {first['input']!r}"
    return f"`{key}`: {first['msg']}, got {first['input']!r}"
