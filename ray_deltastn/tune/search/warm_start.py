"""Start new trials with what earlier trials have learned: λ and σ of the nearest of the best finished trials."""

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
from ray.tune.search.sample import Domain

from ray_deltastn.training.columns import SCALES, VALUES
from ray_deltastn.tune.nested import flat
from ray_deltastn.tune.search.axes import Axis, equal
from ray_deltastn.tune.search.domains import read_domain
from ray_deltastn.tune.search.space import WARM_START
from ray_deltastn.tune.search.state import read_file, write_file

#: The key of a trial's config that holds the values and scales to start with.
KEY = WARM_START
_FORMAT = "ray_deltastn.WarmStart 1"


class WarmStart(Searcher):
    """Searcher that gives each new trial the λ and σ that an earlier trial has learned.

    Among the best `share` of the finished trials (at least one) it takes the trial with the nearest options. The
    distance is Euclidean: a number counts with its distance divided by the width of its range (on a logarithmic scale,
    if the range is logarithmic); a choice, or a domain that `read_domain` does not support, counts 0 if the values are
    equal and 1 otherwise. Diverged and failed trials are not used. The first trials start with the task's own values.

    The inner searcher does not know which trials started warm, although such a trial has a better loss for the same
    options. Therefore warm start is off by default.

    Args:
        searcher: the searcher that proposes the options.
        share: share of the finished trials that count as the best, in (0, 1].

    Attributes:
        finished: options, learned values, learned scales and metric of every trial that ended with finite numbers.

    Raises:
        TypeError: if `searcher` is not a `Searcher`; Tune's `BasicVariantGenerator` (random, grid) is not one.
        ValueError: if `0 < share <= 1` does not hold.

    Examples:
        >>> search = WarmStart(SkOptSearch(random_state=0))
        >>> tuner = tune.Tuner(DeltaSTNTrainable, tune_config=tune.TuneConfig(search_alg=search))  # doctest: +SKIP
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
        self._options: dict[str, dict[str, Any]] = {}  # options of running trials, by trial
        self._axes: dict[str, Axis | None] = {}  # searched options; None for a domain that is not supported

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric, mode and domains from Tune, and pass them to the inner searcher."""
        self._axes = {name: _axis(name, domain) for name, domain in flat(config, Domain).items()}
        self._metric, self._mode = metric or self._metric, mode or self._mode
        return bool(self.searcher.set_search_properties(metric, mode, config, **spec))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Pass the number of concurrent trials to the inner searcher."""
        return bool(self.searcher.set_max_concurrency(max_concurrent))

    def suggest(self, trial_id: str) -> Any:
        """Return the proposal of the inner searcher, with the key `warm_start` as soon as a trial has ended."""
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return config
        options = {name: value for name, value in flat(config).items() if not self._axes or name in self._axes}
        self._options[trial_id] = options
        start = self.start_of(options)
        return config if start is None else {**config, KEY: start}

    def start_of(self, options: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
        """Return values and scales for a trial with these options; None if no trial has ended with finite numbers."""
        if not self.finished:
            return None
        sign = -1.0 if self._mode == "max" else 1.0
        ranked = sorted(self.finished, key=lambda trial: sign * trial["metric"])
        best = ranked[: max(1, math.ceil(self.share * len(ranked)))]
        nearest = min(best, key=lambda trial: self._distance(options, trial["options"]))
        return copy.deepcopy({"values": nearest["values"], "scale": nearest["scale"]})

    def _distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """Return the Euclidean distance of two trials' options."""
        total = 0.0
        for name, value in one.items():
            axis = self._axes.get(name)
            if axis is None or name not in other:
                total += float(not equal(value, other.get(name)))
            else:
                total += axis.distance(value, other[name]) ** 2
        return math.sqrt(total)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a report to the inner searcher."""
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Keep what a trial has learned, and tell the inner searcher that it has ended."""
        self.searcher.on_trial_complete(trial_id, result=result, error=error)
        options = self._options.pop(trial_id, None)
        if options is None or result is None or error:
            return
        metric = float(result.get(self._metric or "", math.nan))
        start = learned(result)
        if start is not None and math.isfinite(metric):
            self.finished.append({"options": options, **start, "metric": metric})

    def get_state(self) -> dict[str, Any]:
        """Return what the trials have learned, as plain data, without the state of the inner searcher."""
        return {"format": _FORMAT, "finished": self.finished, "options": self._options}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned.

        Raises:
            ValueError: if it is not the state of a `WarmStart`.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            got = repr(state.get("format")) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"`format = '{_FORMAT}'` must hold for the state of a WarmStart, got {got}")
        self.finished, self._options = copy.deepcopy(state["finished"]), copy.deepcopy(state["options"])

    def save(self, checkpoint_path: str) -> None:
        """Write what the trials have learned, and the state of the inner searcher, into one JSON file."""
        with tempfile.TemporaryDirectory() as folder:
            inner = Path(folder, "searcher")
            self.searcher.save(str(inner))
            own = base64.b64encode(inner.read_bytes()).decode()
        write_file(checkpoint_path, {**self.get_state(), "searcher": own})

    def restore(self, checkpoint_path: str) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is damaged or is not a file of `save`.
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
    """Return what a trial has learned, from its last report, for the key `warm_start` of another trial.

    It is None if the report has no hyperparameters, or if a number is not finite.
    """
    values = {name: float(value) for name, value in VALUES.of(result).items()}
    scales = {name: float(value) for name, value in SCALES.of(result).items()}
    scale = {name: sigma for name, sigma in scales.items() if sigma != 0}  # a method without perturbation reports zero
    if not values or not all(map(math.isfinite, (*values.values(), *scale.values()))):
        return None
    return {"values": values, "scale": scale}


def _axis(name: str, domain: Domain) -> Axis | None:
    """Return the axis of a domain, or None if it is not supported; the inner searcher may support it nevertheless."""
    try:
        return read_domain(name, domain)
    except ValueError:
        return None
