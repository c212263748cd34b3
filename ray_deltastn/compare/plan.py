"""What a comparison runs: one experiment per method and seed, one for all single runs together.

| method                             | trains                                                                        |
|------------------------------------|-------------------------------------------------------------------------------|
| `grid`, `random`, `bo`             | `trials` trials; the searcher proposes hyperparameters and outer options      |
| `asha`                             | random ones; bad ones end early, new ones begin until the budget is spent     |
| `pbt`                              | a population of `trials`                                                      |
| `stn`, `centered-stn`, `delta-stn` | one run over the whole budget, outer options as in `single`                   |
| `hybrid`                           | `trials` trials; `bo` proposes the outer options, Δ-STN tunes inside each     |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ray_deltastn.settings import Settings
from ray_deltastn.tune.config import ExperimentConfig, TuneSection, unknown_key
from ray_deltastn.tune.nested import nest


@dataclass(frozen=True)
class Contender:
    """How a method takes part: its searcher and scheduler for constant hyperparameters, or a method that tunes them."""

    method: str = "fixed"
    searcher: str | None = None
    scheduler: str = "fifo"


#: The methods that can be compared, in the order of the tables.
CONTENDERS = {
    "grid": Contender(searcher="grid"),
    "random": Contender(searcher="random"),
    "bo": Contender(searcher="bo"),
    "asha": Contender(searcher="random", scheduler="asha"),
    "pbt": Contender(searcher="random", scheduler="pbt"),
    "stn": Contender("stn"),
    "centered-stn": Contender("centered-stn"),
    "delta-stn": Contender("delta-stn"),
    "hybrid": Contender("delta-stn", searcher="bo"),
}


class CompareConfig(ExperimentConfig):
    """A comparison: an experiment's task, options, `train`, `search` and `tune`, and what is added here.

    `search` holds the outer options; constant methods search all hyperparameters of the task besides, each in its own
    range. Of `tune`, the searcher, scheduler, number of trials and metric are the comparison's own.

    Attributes:
        trials: trials of `train.epochs` epochs that a searching method may train; their product is the budget.
        single: values of the outer options for the methods that train a single run.
        self_tuned: options of `Settings` for the methods that tune themselves only, such as `hyper_lr`.
    """

    trials: int = Field(default=8, ge=1)
    single: dict[str, Any] = Field(default_factory=dict)
    self_tuned: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Check what concerns several sections."""
        super().model_post_init(context)
        for name in ("method", "seed", "steps_per_report", "hyperparameters"):
            if name in self.train or any(key.split(".")[0] == name for key in self.search):
                raise ValueError(f"`{name}` is set by the comparison itself, got it in `train` or `search`")
        if "epochs" not in self.train:
            raise ValueError("`train.epochs` must be given: with `trials` it is the budget")
        missing = [name for name in self.search if name not in self.single]
        if missing:
            raise ValueError(f"`single` must hold every option of `search`, got no `{missing[0]}`")
        unknown = [name for name in self.single if name not in self.search]
        if unknown:
            raise ValueError(unknown_key(f"single.{unknown[0]}", [f"single.{name}" for name in self.search]))
        both = [name for name in self.self_tuned if name in self.search or name in self.train]
        if both:
            raise ValueError(f"`{both[0]}` must be in one of `train`, `search` and `self_tuned`, got it in two")
        for name in self.self_tuned:
            if name not in Settings.names():
                raise ValueError(unknown_key(f"self_tuned.{name}", [f"self_tuned.{n}" for n in Settings.names()]))
        Settings(**{**self.train, **self.self_tuned})
        own = {"searcher", "scheduler", "num_samples", "budget", "metric", "mode", "warm_start", "seed"}
        given = sorted(own & self.tune.model_fields_set)
        if given:
            raise ValueError(f"`tune.{given[0]}` is set by the comparison itself, got it in `tune`")

    @property
    def budget(self) -> int:
        """Training epochs of each method."""
        return self.trials * int(self.train["epochs"])


@dataclass(frozen=True)
class Planned:
    """One experiment of a comparison.

    Attributes:
        name: of its folder.
        config: what runs.
        method: whose it is; None for the single runs, whose trials say so themselves.
        seed: of its searcher and trials; None for the single runs.
    """

    name: str
    config: ExperimentConfig
    method: str | None
    seed: int | None


def plan(config: CompareConfig, methods: Sequence[str], seeds: int) -> list[Planned]:
    """The experiments of a comparison, single runs first.

    Args:
        config: the comparison.
        methods: names in `CONTENDERS`.
        seeds: number of seeds, from 0.

    Raises:
        ValueError: if a method is unknown or named twice, or there is no seed.
    """
    for name in methods:
        if name not in CONTENDERS:
            raise ValueError(unknown_key(f"--methods {name}", [f"--methods {known}" for known in CONTENDERS]))
    if len(set(methods)) < len(methods) or not methods:
        raise ValueError(f"`--methods` must name each method once, got {','.join(methods) or 'none'}")
    if seeds < 1:
        raise ValueError(f"`--seeds >= 1` must hold, got {seeds}")
    single = [name for name in methods if CONTENDERS[name].searcher is None]
    planned = [_single(config, single, seeds)] if single else []
    return planned + [
        _searching(config, name, seed) for seed in range(seeds) for name in methods if CONTENDERS[name].searcher
    ]


def _single(config: CompareConfig, methods: Sequence[str], seeds: int) -> Planned:
    outer = {name: value for name, value in config.single.items() if not name.startswith("options.")}
    options = {name.removeprefix("options."): v for name, v in config.single.items() if name.startswith("options.")}
    experiment = ExperimentConfig(
        task=config.task,
        options={**config.options, **options},
        train={**config.train, **config.self_tuned, **nest(outer), "epochs": config.budget},
        search={"method": f"choice({list(methods)!r})", "seed": f"choice({list(range(seeds))!r})"},
        tune=_tune(config, searcher="grid", num_samples=len(methods) * seeds, seed=0),
    )
    return Planned(f"single-{'+'.join(methods)}-x{seeds}", experiment, None, None)


def _searching(config: CompareConfig, name: str, seed: int) -> Planned:
    contender = CONTENDERS[name]
    constant = contender.method == "fixed"
    epochs = int(config.train["epochs"])
    # Enough trials for the budget even if every one of them ended after its first epoch.
    spending = {"num_samples": config.budget, "budget": config.budget} if contender.scheduler == "asha" else {}
    experiment = ExperimentConfig(
        task=config.task,
        options=config.options,
        train={
            **config.train,
            **({} if constant else config.self_tuned),
            "epochs": epochs,
            "method": contender.method,
            "seed": seed,
        },
        search={**config.search, **({"hyperparameters": "all"} if constant else {})},
        tune=_tune(
            config,
            searcher=contender.searcher,
            scheduler=contender.scheduler,
            seed=seed,
            **{"num_samples": config.trials, **spending},
        ),
    )
    return Planned(f"{name}-s{seed}", experiment, name, seed)


def _tune(config: CompareConfig, **own: Any) -> TuneSection:
    given = config.tune.model_dump(include=config.tune.model_fields_set)
    if own.get("scheduler") == "pbt":
        given.pop("max_concurrent", None)
    return TuneSection(**{**given, **own})
