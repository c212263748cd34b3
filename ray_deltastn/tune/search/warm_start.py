"""New trials begin with what earlier ones have learned: λ and σ of the nearest of the best finished trials."""

from __future__ import annotations

import base64
import copy
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.sample import Categorical, Domain, LogUniform, Quantized

from ray_deltastn.training.columns import SCALES, VALUES
from ray_deltastn.tune.nested import flat
from ray_deltastn.tune.search.state import read_file, write_file

#: Key of a trial's config with the values and scales to begin with.
KEY = "warm_start"
_FORMAT = "ray_deltastn.WarmStart 1"


class WarmStart(Searcher):
    """Gives each new trial the λ and σ that an earlier trial has learned.

    Of the finished trials the best `share` is kept, at least one, and of these the nearest in the searched options
    is taken: each option counts with its distance over the width of its range (of its logarithm, where it is searched
    so), a choice with 0 or 1. Diverged and failed trials teach nothing. The first trials start as the task says.

    The searcher inside never learns of it: a trial that began warm counts like any other, though its loss is better
    for the same options. That is why it is off by default.

    Args:
        searcher: the searcher that proposes the options.
        share: share of the finished trials that count as the best, in (0, 1].

    Attributes:
        finished: options, learned values, learned scales and metric of every trial that has ended well.

    Raises:
        TypeError: if `searcher` is no `Searcher`; Tune's `BasicVariantGenerator` (random, grid) is none.
        ValueError: if `share` breaks its rule.

    Examples:
        >>> search = WarmStart(SkOptSearch(random_state=0))
        >>> tune.run(DeltaSTNTrainable, config=config, search_alg=search, num_samples=8)  # doctest: +SKIP
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"
    _metric: str | None
    _mode: str | None

    def __init__(self, searcher: Searcher, share: float = 0.25) -> None:
        if not isinstance(searcher, Searcher):
            raise TypeError(f"`searcher` must be a Searcher such as SkOptSearch, got {type(searcher).__name__}")
        if not 0 < share <= 1:
            raise ValueError(f"`0 < share <= 1` must hold, got share={share}")
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher = searcher
        self.share = share
        self.finished: list[dict[str, Any]] = []
        self._options: dict[str, dict[str, Any]] = {}  # of trials in flight
        self._domains: dict[str, Domain] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric, mode and ranges from Tune, and hand them on."""
        self._domains = flat(config, Domain)
        self._metric, self._mode = metric or self._metric, mode or self._mode
        return bool(self.searcher.set_search_properties(metric, mode, config, **spec))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Leave the number of trials at a time to the searcher inside."""
        return bool(self.searcher.set_max_concurrency(max_concurrent))

    def suggest(self, trial_id: str) -> Any:
        """The searcher's proposal, with the key `warm_start` once a trial has ended."""
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return config
        options = {name: value for name, value in flat(config).items() if not self._domains or name in self._domains}
        self._options[trial_id] = options
        start = self.start_of(options)
        return config if start is None else {**config, KEY: start}

    def start_of(self, options: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
        """Values and scales for a trial with these options; None before any trial has ended well."""
        if not self.finished:
            return None
        sign = -1.0 if self._mode == "max" else 1.0
        ranked = sorted(self.finished, key=lambda trial: sign * trial["metric"])
        best = ranked[: max(1, math.ceil(self.share * len(ranked)))]
        nearest = min(best, key=lambda trial: self._distance(options, trial["options"]))
        return copy.deepcopy({"values": nearest["values"], "scale": nearest["scale"]})

    def _distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        return math.sqrt(sum(_apart(self._domains.get(name), one[name], other.get(name)) ** 2 for name in one))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand on a report."""
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Keep what a trial has learned, and hand on its end."""
        self.searcher.on_trial_complete(trial_id, result=result, error=error)
        options = self._options.pop(trial_id, None)
        if options is None or result is None or error:
            return
        metric = float(result.get(self._metric or "", math.nan))
        start = learned(result)
        if start is not None and math.isfinite(metric):
            self.finished.append({"options": options, **start, "metric": metric})

    def get_state(self) -> dict[str, Any]:
        """What the trials have learned, as plain data; Tune keeps the searcher's own state beside it."""
        return {"format": _FORMAT, "finished": self.finished, "options": self._options}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` gave.

        Raises:
            ValueError: if it is the state of something else.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"`format = '{_FORMAT}'` must hold for the state of a WarmStart, got another")
        self.finished, self._options = copy.deepcopy(state["finished"]), copy.deepcopy(state["options"])

    def save(self, checkpoint_path: str) -> None:
        """Write what the trials have learned and the searcher's own state into one JSON file."""
        with tempfile.TemporaryDirectory() as folder:
            inner = Path(folder, "searcher")
            self.searcher.save(str(inner))
            own = base64.b64encode(inner.read_bytes()).decode()
        write_file(checkpoint_path, {**self.get_state(), "searcher": own})

    def restore(self, checkpoint_path: str) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is damaged or of another kind.
        """
        state = read_file(checkpoint_path)
        self.set_state(state)
        handle, path = tempfile.mkstemp()
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(base64.b64decode(state["searcher"]))
            self.searcher.restore(path)
        finally:
            os.unlink(path)


def learned(result: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
    """What the key `warm_start` of another trial may hold, from a trial's last report; None if it teaches nothing."""
    values = {name: float(value) for name, value in VALUES.of(result).items()}
    scales = {name: float(value) for name, value in SCALES.of(result).items()}
    scale = {name: sigma for name, sigma in scales.items() if sigma != 0}  # zero: the method perturbs nothing
    if not values or not all(map(math.isfinite, (*values.values(), *scale.values()))):
        return None
    return {"values": values, "scale": scale}


def _apart(domain: Domain | None, one: Any, other: Any) -> float:
    """Distance of two values of an option, 1 for the width of its range."""
    if domain is None or isinstance(domain, Categorical) or not hasattr(domain, "lower"):
        return float(one != other)
    sampler = domain.get_sampler()
    sampler = sampler.sampler if isinstance(sampler, Quantized) else sampler
    low, high = float(domain.lower), float(domain.upper)
    if isinstance(sampler, LogUniform):
        low, high, one, other = map(math.log, (low, high, one, other))
    return abs(one - other) / (high - low)
