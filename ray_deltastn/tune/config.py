"""The YAML file of an experiment, typed and checked before anything runs."""

from __future__ import annotations

import ast
import copy
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ray import tune

from ray_deltastn.methods import get_method
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.schedulers import CHANGING, PAUSING

DOMAINS = (
    "uniform",
    "loguniform",
    "quniform",
    "qloguniform",
    "randint",
    "lograndint",
    "qrandint",
    "qlograndint",
    "choice",
)


class ConfigError(ValueError):
    """A configuration that breaks a rule; the message is one line."""


ConfigKind = TypeVar("ConfigKind", bound="ExperimentConfig")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TuneSection(_Section):
    """How the trials are searched and run.

    Attributes:
        searcher: `bo` (Gaussian process of scikit-optimize; `skopt` is the same), `random`, `grid`, `optuna-tpe` or
            `optuna-gp`.
        scheduler: `fifo` (every trial runs to its end), `asha`, `hyperband`, `median`, `pbt` or `pb2`; see
            `make_scheduler`.
        num_samples: number of trials.
        budget: epochs of all trials together after which the experiment ends; by default it ends with its last trial.
        metric: column of the reports that is optimised.
        mode: `min` or `max`.
        max_concurrent: trials at a time; by default as many as fit the CPUs.
        cpu: CPUs of one trial.
        gpu: GPUs of one trial, may be a fraction.
        checkpoint_every: reports between checkpoints of a trial.
        max_failures: restarts of a trial that crashed or was killed.
        seed: seed of the searcher.
        warm_start: begin each trial with the hyperparameters learned by the nearest of the best finished ones.
    """

    searcher: Literal["bo", "random", "grid", "optuna-tpe", "optuna-gp"] = "bo"
    scheduler: Literal["fifo", "asha", "hyperband", "median", "pbt", "pb2"] = "fifo"
    num_samples: int = Field(default=8, ge=1)
    budget: int | None = Field(default=None, ge=1)
    metric: str = "best_valid_loss"
    mode: Literal["min", "max"] = "min"
    max_concurrent: int | None = Field(default=None, ge=1)
    cpu: float = Field(default=1, gt=0)
    gpu: float = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=10, ge=1)
    max_failures: int = Field(default=2, ge=-1)
    seed: int = Field(default=0, ge=0)
    warm_start: bool = False

    @field_validator("searcher", mode="before")
    @classmethod
    def _usual_name(cls, name: Any) -> Any:
        return "bo" if name == "skopt" else name


class ExperimentConfig(_Section):
    """One reproducible experiment.

    Attributes:
        task: name of a ready task, or an import string `module:function`.
        options: what the task's function reads.
        train: options of `Settings`, the same for all trials.
        search: option → Tune domain as text, such as `loguniform(0.01, 0.3)`; a dot reaches into a mapping, as in
            `hyperparameters.dropout`, or into the task's own options, as in `options.width`. `hyperparameters: all`
            searches, for method `fixed`, all of the task's hyperparameters, each in its own range.
        tune: how trials are searched and run.
    """

    task: str
    options: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, str] = Field(default_factory=dict)
    tune: TuneSection = TuneSection()

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
            overrides: `key=value` with dots for sections, such as `train.epochs=5`; values are YAML.

        Raises:
            ConfigError: if the file cannot be read, a key is unknown or a value breaks a rule.
        """
        try:
            return cls.model_validate(load_yaml(path, overrides))
        except ValidationError as error:
            raise ConfigError(first_error(error, cls)) from None

    def model_post_init(self, context: Any) -> None:
        """Check what concerns several sections."""
        for name, text in self.search.items():
            head = name.split(".")[0]
            if head == "hyperparameters":
                self._check_constant(name)
            if name == "hyperparameters":
                if text != "all":
                    raise ValueError(
                        f"`search.hyperparameters` must be `all`, got {text!r}; one of them is `{name}.NAME`"
                    )
                continue
            if head not in (*Settings.names(), "options"):
                raise ValueError(unknown_key(f"search.{name}", [f"search.{n}" for n in (*Settings.names(), "options")]))
            if _holds(self.train, name):
                raise ValueError(f"`{name}` must be either in `train` or in `search`, got both")
            if _holds({"options": self.options}, name):
                raise ValueError(f"`{name}` must be either in `options` or in `search`, got both")
            self._check_ends(name, parse_domain(name, text))

        self._check_tune()

    def _check_tune(self) -> None:
        """Raise ValueError if scheduler, searcher and warm start do not go together."""
        if self.tune.scheduler in PAUSING and self.tune.max_concurrent is not None:
            raise ValueError(
                f"`tune.max_concurrent` must be left out with `tune.scheduler: {self.tune.scheduler}`, which pauses "
                f"trials and needs them all alive, got {self.tune.max_concurrent}; as many run as fit the CPUs"
            )
        if self.tune.scheduler in CHANGING and self.tune.searcher not in ("random", "grid"):
            raise ValueError(
                f"`tune.scheduler: {self.tune.scheduler}` changes options itself and needs `tune.searcher: random` or "
                f"`grid`, got {self.tune.searcher!r}"
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
        """Raise ValueError if trials may have a method that tunes the hyperparameters itself."""
        tuning = [method for method in self.methods() if get_method(method).tunes]
        if tuning:
            raise ValueError(f"`search.{name}` needs `method: fixed`, got {tuning[0]!r}, which tunes them itself")

    def with_ranges(self, ranges: Mapping[str, tuple[str, float, float]]) -> ExperimentConfig:
        """This experiment with `hyperparameters: all` spelt out.

        Args:
            ranges: of the task's space, see `HyperSpace.search_ranges`; what the file itself gives, ranges and
                constants, stays.
        """
        if "hyperparameters" not in self.search:
            return self
        every = {f"hyperparameters.{n}": f"{kind}({low!r}, {high!r})" for n, (kind, low, high) in ranges.items()}
        for name in self.train.get("hyperparameters", {}):
            every.pop(f"hyperparameters.{name}", None)
        given = {name: text for name, text in self.search.items() if name != "hyperparameters"}
        return self.model_copy(update={"search": {**every, **given}})

    def _check_ends(self, name: str, domain: Any) -> None:
        """Raise ValueError if an option would break its rule somewhere in its domain."""
        if name not in Settings.names():
            return
        ends = getattr(domain, "categories", None)
        if ends is None:
            # Tune's upper bounds are exclusive.
            whole = isinstance(domain.upper, int)
            ends = [domain.lower, domain.upper - 1 if whole else math.nextafter(domain.upper, domain.lower)]
        for end in ends:
            Settings(**{**self.train, name: end})

    def methods(self) -> list[Any]:
        """The methods that trials of this experiment may have."""
        if "method" in self.search:
            return list(parse_domain("method", self.search["method"]).categories)
        return [self.train.get("method", Settings.model_fields["method"].default)]

    def param_space(self) -> dict[str, Any]:
        """Config of a trial, with Tune domains where it is searched."""
        space: dict[str, Any] = {
            "task": self.task,
            **copy.deepcopy(self.options),
            **copy.deepcopy(self.train),
            "resources": {"cpu": self.tune.cpu, "gpu": self.tune.gpu},
        }
        for name, text in self.search.items():
            *path, last = option_of(name).split(".")
            inner = space
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = parse_domain(name, text)
        return space


def option_of(searched: str) -> str:
    """Name in a trial's config of a key of `search`: `options.width` is the task's `width`."""
    return searched.removeprefix("options.")


def _holds(section: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True


def unknown_key(key: str, known: Sequence[str]) -> str:
    """One line about a key that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(known) or 'none here'}"
    return f"`{key}` is not a known key{hint}"


def parse_domain(name: str, text: str) -> Any:
    """The Tune domain that a text such as `loguniform(0.01, 0.3)` names.

    Raises:
        ValueError: if the text is no domain.
    """
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", str(text), re.DOTALL)
    if match is None or match[1] not in DOMAINS:
        raise ValueError(f"`search.{name}` must be one of {', '.join(DOMAINS)} with its bounds, got {text!r}")
    try:
        arguments = ast.literal_eval(f"({match[2]},)")
        return getattr(tune, match[1])(*arguments)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"`search.{name}` must be a domain with its bounds, got {text!r}: {error}") from None


def load_yaml(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping in a file, with overrides, not yet checked.

    Raises:
        ConfigError: if the file cannot be read or an override reaches nowhere.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` must be UTF-8 text, got {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"`{path}` must be a readable file: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"`{path}` must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"`{path}` must hold a mapping, got {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"`--set` must be key=value, got {override!r}")
        *path_, last = key.split(".")
        # Keys of `search` may hold dots themselves: `search.hyperparameters.dropout`.
        if path_ and path_[0] == "search":
            path_, last = ["search"], ".".join([*path_[1:], last])
        inner = data
        for part in path_:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"`--set {key}` must reach into a mapping, got {type(inner).__name__} at '{part}'")
        try:
            inner[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"`--set {key}` must be YAML, got {value!r}") from None
    return data


def first_error(error: ValidationError, section: type[_Section]) -> str:
    """One line about the first of the rules that a configuration of this kind breaks."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        inner = section if len(first["loc"]) == 1 else TuneSection
        prefix = "" if len(first["loc"]) == 1 else "tune."
        return unknown_key(key, [prefix + name for name in inner.model_fields])
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    return f"`{key}`: {first['msg']}, got {first['input']!r}"
