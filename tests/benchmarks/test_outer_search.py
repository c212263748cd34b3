"""The functions of the searchers' benchmark have the minima they claim, and its loop is that of Tune's driver."""

import json
import math

import numpy as np
import pytest
from ray.tune.search.variant_generator import generate_variants

from benchmarks.outer_search import __main__ as command
from benchmarks.outer_search import runs
from benchmarks.outer_search.functions import DIVERGED, FUNCTIONS, CrashError
from benchmarks.outer_search.summary import summary
from ray_deltastn.tune.search.axes import Choice
from ray_deltastn.tune.search.domains import read_domain


def true(function, config):
    try:
        return function.true(config)
    except CrashError:
        return None


def drawn(name, count):
    state = np.random.RandomState(0)
    return [next(iter(generate_variants(dict(FUNCTIONS[name].space), random_state=state)))[1] for _ in range(count)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_minimum_is_where_it_is_said_to_be(name):
    function = FUNCTIONS[name]
    assert function.true(function.at) == pytest.approx(function.minimum, abs=1e-5)
    values = [true(function, config) for config in drawn(name, 2000)]
    assert min(value for value in values if value is not None) >= function.minimum
    draws = np.random.RandomState(1)
    axes = [read_domain(*item) for item in function.space.items()]
    for _ in range(300):
        near = {}
        for axis in axes:
            unit = axis.to_unit(axis.code(function.at[axis.name])) + 0.01 * draws.normal()
            kept = isinstance(axis, Choice)
            near[axis.name] = function.at[axis.name] if kept else axis.value(axis.from_unit(min(max(unit, 0), 1)))
        value = true(function, near)
        assert value is None or value >= function.minimum - 1e-9


def test_branin_has_three_equal_minima():
    for x, y in ((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)):
        assert FUNCTIONS["branin"].true({"x": x, "y": y}) == pytest.approx(0.397887, abs=1e-6)


def test_a_third_of_the_failing_function_crashes_and_a_large_effective_rate_diverges():
    crashed = [true(FUNCTIONS["failing"], config) is None for config in drawn("failing", 4000)]
    assert np.mean(crashed) == pytest.approx(1 / 3, abs=0.02)
    rate = {"lr": 0.3, "momentum": 0.5, "tau": 0.1}
    assert math.isfinite(FUNCTIONS["training"].true(rate))
    assert FUNCTIONS["training"].true({**rate, "momentum": 0.6}) == DIVERGED


class Recorder:
    """A searcher that proposes draws, and keeps what it was asked and told."""

    seconds = 0.5

    def __init__(self, configs):
        self.configs, self.calls = iter(configs), []

    def set_search_properties(self, metric, mode, config):
        return True

    def suggest(self, trial_id):
        self.calls.append(("ask", trial_id))
        return next(self.configs)

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.calls.append(("tell", trial_id, result and result["loss"], error))


def test_two_trials_are_in_flight_and_reports_are_noisy(monkeypatch):
    configs = drawn("flat", 5)
    recorder = Recorder(configs)
    monkeypatch.setattr(runs, "make_searcher", lambda *_, **__: recorder)
    row = runs.run("flat", "bo", seed=3, budget=5)
    order = [call[:2] for call in recorder.calls]
    first, later = [("ask", "0"), ("ask", "1")], [("ask", "2"), ("ask", "3"), ("ask", "4")]
    between = [call for index, ask in enumerate(later) for call in (("tell", str(index)), ask)]
    assert order == [*first, *between, ("tell", "3"), ("tell", "4")]
    values = [FUNCTIONS["flat"].true(config) for config in configs]
    told = [call[2] for call in recorder.calls if call[0] == "tell"]
    noise = np.random.RandomState(3).normal(size=5) * 0.02
    assert told == pytest.approx(np.add(values, noise))
    assert (row["best"], row["chosen"], row["failed"], row["seconds"]) == (
        min(values),
        values[int(np.argmin(told))],
        0,
        0.5,
    )


def test_crashes_and_divergence_are_told_as_tune_tells_them(monkeypatch):
    crash = {"x": 1.0, "y": 0.5, "z": 0.5}
    recorder = Recorder([crash, FUNCTIONS["failing"].at, crash])
    monkeypatch.setattr(runs, "make_searcher", lambda *_, **__: recorder)
    assert runs.run("failing", "bo", seed=0, budget=3)["failed"] == 2
    told = [call[2:] for call in recorder.calls if call[0] == "tell"]
    assert told == [(None, True), (pytest.approx(0.0, abs=1e-9), False), (None, True)]
    recorder = Recorder([{"lr": 0.3, "momentum": 0.8, "tau": 0.1}] * 2)
    assert runs.run("training", "bo", seed=0, budget=2)["best"] is None
    assert [call[2:] for call in recorder.calls if call[0] == "tell"] == [(math.inf, False)] * 2


def test_searches_repeat_and_random_search_draws_as_tune_does():
    for searcher in ("random", "bo", "optuna-tpe"):
        one, two = (runs.run("mixed", searcher, seed=1, budget=7) for _ in range(2))
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert runs.run("mixed", "random", seed=2, budget=7)["best"] != one["best"]


def test_summary_has_medians_ranks_and_wins_against_random():
    found = {"random": (3.0, 1.0, 2.0), "bo": (1.0, 1.0, 5.0), "optuna-gp": (2.0, None, 1.0)}
    rows = [
        {"function": "branin", "searcher": name, "budget": 4, "seed": seed, "best": best, "seconds": 1.0}
        for name, values in found.items()
        for seed, best in enumerate(values)
    ]
    lines = {line["searcher"]: line for line in summary(rows)}
    assert [lines[name]["best"] for name in found] == [2.0, 1.0, 2.0]
    assert [lines[name]["wins"] for name in found] == [None, 1.5, 2.0]
    assert lines["bo"]["pairs"] == 3
    assert [lines[name]["rank"] for name in found] == pytest.approx(
        [(3 + 1.5 + 2) / 3, (1 + 1.5 + 3) / 3, 2.0], rel=1e-5
    )


def test_the_command_continues_its_record(tmp_path, monkeypatch, capsys):
    path = tmp_path / "record.json"
    line = ["--functions", "branin", "--searchers", "random", "--budget", "4", "--json", str(path)]
    command.main([*line, "--seeds", "1"])
    (row,) = json.loads(path.read_text())["rows"]
    row["best"] = 7.5
    path.write_text(json.dumps({"rows": [row]}))
    command.main([*line, "--seeds", "2"])
    record = json.loads(path.read_text())
    assert record["rows"][0]["best"] == 7.5
    assert record["rows"][1]["best"] != 7.5
    assert record["summary"][0]["n"] == 2


def test_wrong_arguments_end_with_one_error_line(refusal):
    said = refusal(command.main, "--functions", "brannin")
    assert said == f"`--functions` must be of {', '.join(FUNCTIONS)}, got 'brannin'"
    assert "`--searchers` must be of random, bo, optuna-tpe, optuna-gp" in refusal(command.main, "--searchers", "gp")
    assert "--budget: must be a whole number >= 2" in refusal(command.main, "--budget", "1")
