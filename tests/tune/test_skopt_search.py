"""Facts about the Gaussian-process searcher; none needs a Ray cluster."""

import json
import math
import statistics
from types import NoneType

import numpy as np
import pytest
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator
from skopt.learning import GaussianProcessRegressor

from ray_deltastn.tune.skopt_model import ceiling
from ray_deltastn.tune.skopt_search import SkOptSearch
from ray_deltastn.tune.skopt_space import SearchSpace

PLANE = {"x": tune.uniform(-5, 10), "y": tune.uniform(0, 15)}
EVERY = {
    "uniform": tune.uniform(-1, 2),
    "loguniform": tune.loguniform(1e-5, 1e-1),
    "quniform": tune.quniform(-0.3, 0.6, 0.1),
    "qloguniform": tune.qloguniform(0.01, 1.0, 0.01),
    "randint": tune.randint(-2, 3),
    "lograndint": tune.lograndint(1, 100),
    "qrandint": tune.qrandint(4, 20, 4),
    "qlograndint": tune.qlograndint(8, 64, 8),
    "choice": tune.choice([1, 2.5, "a", True, None, np.float32(0.5), np.int64(7)]),
}


def branin(config):
    x, y = config["x"], config["y"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def searcher(space=None, mode="min", **arguments):
    return SkOptSearch(PLANE if space is None else space, "loss", mode, **{"random_state": 0, **arguments})


def finish(search, trial_id, loss):
    search.on_trial_complete(trial_id, result={"loss": loss})


def run(search, count, objective=branin, start=0):
    """`count` trials one after another; their configs."""
    configs = []
    for index in range(start, start + count):
        configs.append(search.suggest(f"t{index}"))
        finish(search, f"t{index}", objective(configs[-1]))
    return configs


def distinct(configs):
    return len({repr(config) for config in configs}) == len(configs)


# --- proposals


def test_concurrent_suggestions_are_distinct_before_and_after_the_model():
    for lie in ("model", "worst", "mean"):
        search = searcher(n_initial_points=4, lie=lie)
        assert distinct([search.suggest(f"a{index}") for index in range(4)])
        for index in range(4):
            finish(search, f"a{index}", float(index))
        assert distinct([search.suggest(f"b{index}") for index in range(4)])


def test_a_running_trial_asked_again_gets_the_same_config():
    search = searcher()
    assert search.suggest("a") == search.suggest("a") != search.suggest("b")


@pytest.mark.parametrize(("in_flight", "seeds"), [(1, 4), (4, 2)])
def test_branin_is_minimised_in_forty_evaluations(in_flight, seeds):
    gaps = []
    for seed in range(seeds):
        search, live, best = searcher(random_state=seed), [], math.inf
        for index in range(40):
            live.append((str(index), search.suggest(str(index))))
            if len(live) == in_flight:
                trial_id, config = live.pop(0)
                best = min(best, branin(config))
                finish(search, trial_id, branin(config))
        gaps.append(best - 0.397887)
    assert statistics.median(gaps) < 0.1  # 0.01 over 8 seeds


def test_one_enormous_loss_does_not_spoil_branin():
    values = []

    def spoilt(config):
        values.append(branin(config))
        return 1e30 if len(values) == 3 else values[-1]

    run(searcher(), 30, spoilt)
    assert min(values) - 0.397887 < 0.3  # without the ceiling 0.6 to 7 even after 40 evaluations


def test_ceiling_is_ten_spreads_above_the_median():
    assert ceiling([1.0, 2.0, 3.0, 4.0, 1e30]) == 3.0 + 10 * 2.0
    assert ceiling([1.0, 1.0, 1.0, 2.0, 1e30]) == 2.0
    assert ceiling([1.0, 1.0]) == 1.0


@pytest.mark.filterwarnings("error")
def test_a_finite_space_repeats_only_when_exhausted_and_without_warnings():
    search = searcher({"a": tune.choice(["u", "v", "w"]), "b": tune.randint(0, 4)}, n_initial_points=4)
    configs = run(search, 14, lambda config: config["b"] + ord(config["a"]))
    assert distinct(configs[:12])
    assert configs[12] in configs[:12]
    assert configs[13] in configs[:12]


@pytest.mark.filterwarnings("error")
def test_a_space_of_choices_only_is_searched():
    space = {name: tune.choice(["u", "v", None, 3.0]) for name in "abc"}
    configs = run(searcher(space, n_initial_points=6), 25, lambda config: -sum(v == "v" for v in config.values()))
    assert {"a": "v", "b": "v", "c": "v"} in configs  # one of 64
    assert distinct(configs)


def test_one_value_and_one_choice_are_enough():
    assert run(searcher({"a": tune.choice([7])}), 12, lambda config: 1.0) == [{"a": 7}] * 12


def test_equal_losses_do_not_stop_the_search():
    assert distinct(run(searcher(n_initial_points=2), 5, lambda config: 1.0))


def test_the_model_starts_after_n_initial_points_with_one_search_for_its_kernel_each(monkeypatch):
    fits = []
    fit = GaussianProcessRegressor.fit

    def counted(self, x, y):
        if self.optimizer is not None:
            fits.append(len(y))
        return fit(self, x, y)

    monkeypatch.setattr(GaussianProcessRegressor, "fit", counted)
    run(searcher(n_initial_points=5), 5)
    assert fits == []
    run(searcher(n_initial_points=5), 8)
    assert fits == [5, 6, 7]
    fits.clear()
    search = searcher(n_initial_points=3)
    for index in range(3):
        search.add_evaluated_point({"x": float(index), "y": 1.0}, value=float(index))
    search.suggest("a")
    search.suggest("b")
    assert fits == [3, 3]


def test_a_fit_that_fails_gives_an_initial_point(monkeypatch, caplog):
    search = searcher(n_initial_points=2)
    seen = run(search, 2)

    def fail(self, x, y):
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(GaussianProcessRegressor, "fit", fail)
    assert search.suggest("a") not in seen
    assert "singular" in caplog.text


def test_suggest_at_a_hundred_points_is_quick_and_counted():
    rng = np.random.RandomState(0)
    search = searcher()
    for x, y in rng.uniform(0, 10, size=(100, 2)):
        search.add_evaluated_point({"x": x, "y": y}, branin({"x": x, "y": y}))
    search.suggest("a")
    assert 0 < search.suggest_seconds < 5  # 0.3 s on an idle core


def test_max_is_min_of_the_negated():
    down = run(searcher(mode="min", n_initial_points=4), 7)
    up = run(searcher(mode="max", n_initial_points=4), 7, lambda config: -branin(config))
    assert down == up


def test_equal_seeds_give_equal_proposals_and_others_do_not():
    for acq_func in ("EI", "LCB", "PI", "gp_hedge"):
        once, again = (run(searcher(n_initial_points=4, acq_func=acq_func), 6) for _ in range(2))
        assert once == again
    assert run(searcher(random_state=1), 1) != run(searcher(random_state=2), 1)


# --- domains


def test_every_domain_keeps_tunes_bounds_and_types():
    search = searcher(EVERY, n_initial_points=96)
    configs = run(search, 100, lambda config: config["uniform"])
    column = {name: [config[name] for config in configs] for name in EVERY}
    assert {type(value) for values in column.values() for value in values} <= {int, float, str, bool, NoneType}
    assert all(-1 <= value < 2 for value in column["uniform"])
    assert all(1e-5 <= value < 1e-1 for value in column["loguniform"])
    for name, low, high, q in [("quniform", -0.3, 0.6, 0.1), ("qloguniform", 0.01, 1.0, 0.01)]:
        assert all(type(v) is float and low <= v <= high and math.isclose(v, round(v / q) * q) for v in column[name])
    assert set(column["randint"]) == {-2, -1, 0, 1, 2}
    assert all(type(value) is int and 1 <= value < 100 for value in column["lograndint"])
    assert set(column["qrandint"]) == {4, 8, 12, 16, 20}
    assert set(column["qlograndint"]) == set(range(8, 65, 8))
    assert {(type(value), value) for value in column["choice"]} == {
        *[(int, 1), (float, 2.5), (str, "a"), (bool, True), (NoneType, None), (float, 0.5), (int, 7)]
    }


def test_the_ends_of_the_unit_cube_are_the_ends_of_the_domains():
    space = SearchSpace(EVERY)
    low, high = (space.decode(space.from_units([end] * len(EVERY))) for end in (0.0, 1.0))
    assert low["uniform"] == -1
    assert high["uniform"] == math.nextafter(2, 0)
    assert (low["quniform"], high["quniform"]) == (-0.3, 0.6)
    assert (low["randint"], high["randint"]) == (-2, 2)
    assert (low["lograndint"], high["lograndint"]) == (1, 99)
    assert (low["qlograndint"], high["qlograndint"]) == (8, 64)


def test_points_survive_the_way_to_skopt_and_to_configs_and_back():
    space = SearchSpace(EVERY)
    for units in np.random.RandomState(0).uniform(size=(200, len(EVERY))).tolist():
        point = space.from_units(units)
        assert tuple(space.encode(space.decode(point), "here")) == point
        assert space.from_features(space.features(point)) == pytest.approx(point, rel=1e-12)


def test_nested_dictionaries_lists_and_categories_of_any_type():
    shape = {"sizes": [np.int64(3), 4], "name": None}
    config = {
        "model": {"lr": tune.loguniform(1e-3, 1e-1), "kind": "mlp", "widths": [16, tune.randint(1, 3), {"p": 0.5}]},
        "shape": tune.choice([shape, [1, 2]]),
        "epochs": 3,
    }
    given = run(searcher(config), 8, lambda config: config["model"]["lr"])
    assert all(got["epochs"] == 3 and got["model"]["kind"] == "mlp" for got in given)
    assert all(got["model"]["widths"] in ([16, 1, {"p": 0.5}], [16, 2, {"p": 0.5}]) for got in given)
    assert all(got["shape"] in (shape, [1, 2]) for got in given)
    dictionaries = [got["shape"] for got in given if isinstance(got["shape"], dict)]
    assert type(dictionaries[0]["sizes"][0]) is int
    dictionaries[0]["sizes"].append(5)
    assert shape["sizes"] == [3, 4]


def test_tunes_own_constants_are_left_to_tune():
    search = SkOptSearch(random_state=0)
    assert search.set_search_properties("loss", "min", {"task": print, "a": {"b": 1, "c": tune.uniform(0, 1)}}) is True
    config = search.suggest("t")
    assert config.keys() == {"a"}
    assert config["a"].keys() == {"c"}


@pytest.mark.parametrize(
    ("domain", "named"),
    [
        (tune.sample_from(lambda config: 1), "sample_from"),
        (tune.grid_search([1, 2]), "grid_search"),
        ({"eval": "1"}, "eval"),
        (tune.randn(0, 1), "randn"),
        (tune.qrandn(0, 1, 0.5), "qrandn"),
        (tune.choice([1, tune.uniform(0, 1)]), "conditional"),
        (tune.choice([{"p": tune.uniform(0, 1)}]), "conditional"),
    ],
)
def test_an_unsupported_domain_is_refused_by_key(domain, named):
    with pytest.raises(ValueError, match=rf"qlograndint, choice\)` must hold for 'a\.b', got .*{named}"):
        SkOptSearch().set_search_properties("loss", "min", {"a": {"b": domain}, "lr": tune.uniform(0, 1)})


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (tune.uniform(1, 0.5), "`low < high` must hold for 'lr', got low=1.0, high=0.5"),
        (tune.randint(3, 3), "`low < high` must hold for 'lr', got low=3, high=3"),
        (
            tune.qrandint(5, 7, 4),
            "`low <= k * q <= high for some integer k` must hold for 'lr', got low=5, high=7, q=4",
        ),
        (tune.choice([]), "`at least one category` must hold for 'lr', got []"),
    ],
)
def test_an_empty_domain_is_refused_by_key(domain, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        searcher({"lr": domain})
    assert str(caught.value) == message


def test_a_space_without_domains_is_refused():
    with pytest.raises(ValueError, match="at least one domain"):
        SkOptSearch().set_search_properties("loss", "min", {"lr": 0.1})


@pytest.mark.parametrize(
    "wrong",
    [{"lie": "best"}, {"acq_func": "MES"}, {"n_initial_points": 0}, {"random_state": -1}, {"mode": "up"}],
)
def test_an_argument_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        searcher(**wrong)


# --- Tune's protocol


def test_search_properties_follow_tunes_contract():
    given = SkOptSearch(PLANE)
    assert given.set_search_properties("loss", "min", {"lr": tune.uniform(0, 1)}) is False
    assert given.set_search_properties("loss", "max", {"lr": 0.1}) is True
    assert (given.metric, given.mode) == ("loss", "max")
    search = SkOptSearch()
    assert search.set_search_properties("loss", "min", PLANE) is True
    assert search.set_search_properties("loss", "min", PLANE) is True
    assert search.set_search_properties("loss", "min", {"x": tune.uniform(0, 1)}) is False


def test_suggest_without_space_metric_or_mode_says_so():
    with pytest.raises(RuntimeError, match="space"):
        SkOptSearch(metric="loss", mode="min").suggest("a")
    with pytest.raises(RuntimeError, match="mode"):
        SkOptSearch(PLANE, metric="loss").suggest("a")


@pytest.mark.parametrize(
    "bad",
    [
        {"error": True},
        {"result": None},
        {"result": {}},
        {"result": {"loss": math.nan}},
        {"result": {"loss": math.inf}},
        {"result": {"loss": "none"}},
        {"result": {"loss": 9.0}, "error": True},
    ],
)
def test_a_failed_trial_counts_as_the_worst_value_even_of_later_ones(bad):
    def next_config(failure):
        search = searcher(n_initial_points=4)
        for index, kwargs in enumerate([failure, *({"result": {"loss": loss}} for loss in (3.0, 5.0, 4.0))]):
            search.suggest(str(index))
            search.on_trial_complete(str(index), **kwargs)
        return search.suggest("next")

    assert next_config(bad) == next_config({"result": {"loss": 5.0}})


def test_only_failures_keep_the_search_in_its_initial_phase():
    search = searcher(n_initial_points=2)
    configs = []
    for index in range(6):
        configs.append(search.suggest(str(index)))
        search.on_trial_complete(str(index), None, True)
    assert distinct(configs)
    assert [record.value for record in search.finished] == [None] * 6


def test_the_lie_is_taken_back():
    search = searcher(n_initial_points=2)
    run(search, 2)
    first = search.suggest("a")
    search.suggest("b")
    finish(search, "a", 1.5)
    points = [search._space.decode(record.point) for record in search.finished]
    assert [record.value for record in search.finished][2:] == [1.5]
    assert points[2] == first
    assert list(search.running) == ["b"]


def test_a_paused_trial_ended_without_result_keeps_its_last_value():
    search = searcher()
    for trial_id in "ab":
        search.suggest(trial_id)
        search.on_trial_result(trial_id, {"loss": 2.0})
        search.on_trial_result(trial_id, {"loss": math.nan})
    search.on_trial_complete("a")
    search.on_trial_complete("b", error=True)
    assert [record.value for record in search.finished] == [2.0, None]


def test_a_failed_trial_run_again_gets_its_value():
    search = searcher()
    search.suggest("a")
    search.on_trial_complete("a", error=True)
    finish(search, "a", 2.0)
    search.on_trial_complete("a", error=True)
    assert [record.value for record in search.finished] == [2.0]


def test_an_unknown_trial_is_ignored_with_a_warning(caplog):
    search = searcher()
    search.on_trial_result("stranger", {"loss": 1.0})
    finish(search, "stranger", 1.0)
    assert "stranger" in caplog.text
    assert search.finished == []


# --- known points


def test_points_to_evaluate_come_first_and_are_completed():
    search = searcher(points_to_evaluate=[{"x": 1.0, "y": 2.0}, {"y": 3.0}])
    first, second, third = run(search, 3)
    assert first == {"x": 1.0, "y": 2.0}
    assert second["y"] == 3.0
    assert -5 <= second["x"] < 10
    assert third["y"] not in (2.0, 3.0)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"x": 11.0}, r"points_to_evaluate\[0\]: `-5\.0 <= value <= 10\.0` must hold for 'x', got 11\.0"),
        ({"z": 1.0}, r"points_to_evaluate\[0\]: `key in \['x', 'y'\]` must hold, got 'z'"),
        ({"x": "1"}, "for 'x', got '1'"),
    ],
)
def test_points_to_evaluate_are_checked_by_name(point, message):
    with pytest.raises(ValueError, match=message):
        searcher(points_to_evaluate=[point])


def test_grid_and_choice_points_are_checked_by_name():
    space = {"a": {"k": tune.qrandint(0, 8, 4), "c": tune.choice([1, True, "u"])}}
    for point, message in [
        ({"k": 5}, r"k \* 4` must hold for 'a\.k'"),
        ({"k": 12}, r"'a\.k'"),
        ({"c": "v"}, r"'a\.c'"),
    ]:
        with pytest.raises(ValueError, match=message):
            searcher(space, points_to_evaluate=[{"a": point}])
    given = searcher(space, points_to_evaluate=[{"a": {"k": 8, "c": True}}, {"a": {"c": 1}}])
    assert given.suggest("0")["a"] == {"k": 8, "c": True}
    assert type(given.suggest("1")["a"]["c"]) is int


def test_evaluated_points_count_and_are_not_suggested():
    search = searcher(points_to_evaluate=[{"x": 1.0, "y": 2.0}], evaluated_rewards=[0.5], n_initial_points=3)
    search.add_evaluated_point({"x": 2.0, "y": 2.0, "epochs": 3}, 0.7, pruned=True, intermediate_values=[1.0])
    search.add_evaluated_point({"x": 3.0, "y": 2.0}, math.nan, error=True)
    assert [record.value for record in search.finished] == [0.5, 0.7, None]
    assert search.suggest("a")["x"] not in (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="'y' in parameters"):
        search.add_evaluated_point({"x": 1.0}, 0.5)


# --- saving


def advance(search, names):
    """Two trials run out of order with two others; the configs."""
    configs = [search.suggest(name) for name in names]
    finish(search, names[1], branin(configs[1]))
    return configs


def test_a_search_restored_with_trials_in_flight_continues_as_the_unbroken_one(tmp_path):
    whole = searcher(n_initial_points=4, points_to_evaluate=[{"x": 0.0}] * 6)
    for names in ("ab", "cd", "ef"):
        advance(whole, names)
    whole.save(str(tmp_path / "state"))
    after = SkOptSearch(PLANE, n_initial_points=4, random_state=99)
    before = SkOptSearch(n_initial_points=4)
    before.restore(str(tmp_path / "state"))
    before.set_search_properties("loss", "min", PLANE)
    after.restore(str(tmp_path / "state"))
    assert list(after.running) == list(whole.running) == ["a", "c", "e"]
    expected = [advance(whole, names) for names in ("gh", "ij")]
    for search in (before, after):
        assert [advance(search, names) for names in ("gh", "ij")] == expected
        finish(search, "a", 1.0)
        assert search.finished[-1].value == 1.0


def test_a_state_restored_early_is_saved_unread(tmp_path):
    whole = searcher()
    advance(whole, "ab")
    whole.save(str(tmp_path / "state"))
    early = SkOptSearch()
    early.restore(str(tmp_path / "state"))
    early.save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_text() == (tmp_path / "state").read_text()


def test_every_domain_survives_saving(tmp_path):
    search = searcher(EVERY)
    expected = [search.suggest(str(index)) for index in range(6)]
    search.save(str(tmp_path / "state"))
    other = searcher(EVERY)
    other.restore(str(tmp_path / "state"))
    assert [other.suggest(str(index)) for index in range(6)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_another_space_metric_or_mode_is_refused_by_name(tmp_path):
    path = str(tmp_path / "state")
    searcher().save(path)
    other = SkOptSearch({"x": tune.uniform(-5, 9), "z": tune.uniform(0, 1)})
    message = (
        r"'x': uniform\(-5\.0, 10\.0\) saved, uniform\(-5\.0, 9\.0\) now; 'y': .* saved, None now; 'z': None saved"
    )
    with pytest.raises(ValueError, match=message):
        other.restore(path)
    with pytest.raises(ValueError, match=r"`metric of .*'reward' and 'loss'"):
        SkOptSearch(PLANE, "reward", "min").restore(path)
    late = SkOptSearch()
    late.restore(path)
    with pytest.raises(ValueError, match="mode of"):
        late.set_search_properties("loss", "max", PLANE)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\x80\x04pickle",
        lambda text: json.dumps({**json.loads(text), "running": None}),
        lambda text: json.dumps({**json.loads(text), "running": {"a": [[99.0, 1.0], None]}}),
        lambda text: json.dumps({**json.loads(text), "finished": [["a", [1.0], 2.0]]}),
        lambda text: json.dumps({**json.loads(text), "finished": [["a", [1.0, 1.0], "2"]]}),
        lambda text: json.dumps({**json.loads(text), "seed": -1}),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_and_changes_nothing(tmp_path, spoil):
    path = tmp_path / "state"
    search = searcher()
    search.suggest("a")
    search.save(str(path))
    path.write_text(spoil(path.read_text()))
    before = search.get_state()
    with pytest.raises(ValueError, match=r"state'") as caught:
        search.restore(str(path))
    assert "\n" not in str(caught.value)
    assert search.get_state() == before


@pytest.mark.parametrize("batch", [False, True])
def test_tunes_checkpoint_of_a_limited_search_holds_what_is_in_flight(tmp_path, batch):
    def generator():
        limited = ConcurrencyLimiter(SkOptSearch(n_initial_points=3, random_state=0), max_concurrent=2, batch=batch)
        built = SearchGenerator(limited)
        assert built.set_search_properties("loss", "min", PLANE) is True
        return built

    whole = generator()
    for names in ("ab", "cd"):
        configs = [whole.searcher.suggest(name) for name in names]
        assert whole.searcher.suggest("more") is None
        for name, config in zip(names, configs, strict=True):
            whole.on_trial_complete(name, {"loss": branin(config)})
    config = whole.searcher.suggest("e")
    whole.save_to_dir(str(tmp_path), session_str="2026")
    other = generator()
    assert other.has_checkpoint(str(tmp_path))
    other.restore_from_dir(str(tmp_path))
    assert list(other.searcher.searcher.running) == ["e"]
    for search in (whole, other):
        search.on_trial_complete("e", {"loss": branin(config)})
    assert other.searcher.suggest("f") == whole.searcher.suggest("f")


def test_a_limited_search_saves_and_restores_by_hand(tmp_path):
    limited = ConcurrencyLimiter(searcher(), max_concurrent=2)
    limited.suggest("a")
    limited.save(str(tmp_path / "state"))
    other = ConcurrencyLimiter(searcher(random_state=1), max_concurrent=2)
    other.restore(str(tmp_path / "state"))
    assert other.suggest("b") == limited.suggest("b")
