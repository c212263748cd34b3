"""The reader of Tune's domains holds exactly the values that Ray draws, and all that search use this reader."""

import math

import pytest
import ray
from packaging.version import Version
from ray import tune
from ray.tune.search.sample import Domain, Quantized

from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.population import bounds, mutations, within
from ray_deltastn.tune.search.domains import DOMAINS, parse_domain, read_domain
from ray_deltastn.tune.search.grid import grid_points
from ray_deltastn.tune.search.searchers import make_searcher
from ray_deltastn.tune.search.space import SearchSpace
from ray_deltastn.tune.search.texts import read_text
from ray_deltastn.tune.search.warm_start import WarmStart
from tests.tune.search.proposals import Listed, report
from tests.tune.search.searches import run, searcher

#: Domain → all of its values.
FINITE = {
    "randint(0, 5)": range(5),
    "randint(-3, 3)": range(-3, 3),
    "randint(2, 3)": [2],
    "lograndint(1, 10)": range(1, 10),
    "lograndint(3, 9)": range(3, 9),
    "lograndint(5, 6)": [5],
    "qrandint(1, 10, 3)": [3, 6, 9],
    "qrandint(1, 10, 1)": range(1, 10),
    "qrandint(0, 10, 3)": [0, 3, 6, 9],
    "qrandint(1, 10, 2.0)": [2, 4, 6, 8, 10],
    "qrandint(4, 20, 4)": [4, 8, 12, 16, 20],
    "qrandint(-7, 7, 3)": [-6, -3, 0, 3, 6],
    "qrandint(-7, -1, 2)": [-6, -4, -2],
    "qrandint(3, 3, 3)": [3],
    "qrandint(8, 9, 4)": [8],
    "qlograndint(1, 10, 3)": [3, 6, 9],
    "qlograndint(1, 10, 1)": range(1, 10),
    "qlograndint(8, 64, 8)": range(8, 65, 8),
    "qlograndint(2, 10, 4)": [4, 8],
    "quniform(0, 10, 1)": [float(k) for k in range(11)],
    "quniform(0, 1, 0.25)": [0.0, 0.25, 0.5, 0.75, 1.0],
    "quniform(0.3, 0.6, 0.1)": [k * 0.1 for k in (3, 4, 5, 6)],  # 6 * 0.1 is larger than 0.6
    "quniform(-0.3, 0.6, 0.1)": [k * 0.1 for k in range(-3, 7)],
    "quniform(-2, -1, 0.5)": [-2.0, -1.5, -1.0],
    "quniform(1, 1, 0.5)": [1.0],
    "qloguniform(0.1, 0.7, 0.1)": [k * 0.1 for k in range(1, 8)],
    "qloguniform(0.5, 4, 0.5)": [k * 0.5 for k in range(1, 9)],
    "choice([1, 2.5, 'a', None])": [1, 2.5, "a", None],
    "choice([3, 3, 1])": [3, 1],
    "choice('abc')": ["a", "b", "c"],
}
INTERVALS = {
    "uniform(-1, 2)": (-1.0, 2.0),
    "uniform(-3e-5, -1e-5)": (-3e-5, -1e-5),
    "loguniform(1e-5, 0.1)": (1e-5, 0.1),
    "loguniform(0.5, 300)": (0.5, 300.0),
}
NUMERIC = [text for text in FINITE if not text.startswith("choice")]
EMPTY = {
    "randint(3, 3)": "`low < high`",
    "lograndint(5, 5)": "`low < high`",
    "qrandint(5, 7, 4)": "`low <= k * q <= high for some integer k`",
    "qrandint(3, 3, 1)": "`low < high`",
    "qrandint(1, 10, -3)": "`0 < q`",
    "qrandint(1, 10, 0)": "`0 < q`",
    "qrandint(1, 10, 2.5)": "`whole bounds and q`",
    "randint(0.5, 4)": "`whole bounds and q`",
    "randint(0, 1e999)": "`finite bounds and q`",
    "randint('a', 4)": "`finite bounds and q`",
    "uniform(1, 0.5)": "`low < high`",
    "uniform(1, 1)": "`low < high`",
    "quniform(1, 0, 0.5)": "`low <= k * q <= high for some integer k`",
    "choice([])": "`at least one category`",
}


def read(text):
    domain = parse_domain("x", text)
    # Until then Ray did not round for q = 1, and drew the ends less often or not at all.
    if isinstance(domain.get_sampler(), Quantized) and Version(ray.__version__) < Version("2.60"):
        pytest.skip(f"Ray draws quantised values differently before 2.60, got {ray.__version__}")
    return domain, read_domain("x", domain)


def drawn(domain):
    return [domain.sample(random_state=seed) for seed in range(20)] + list(domain.sample(size=4000, random_state=0))


@pytest.mark.parametrize("text", FINITE)
def test_a_finite_axis_has_exactly_the_values_that_ray_draws(text):
    domain, axis = read(text)
    values = [axis.value(code) for code in range(axis.first, axis.last + 1)]
    assert values == list(FINITE[text])
    assert set(values) == set(drawn(domain))
    assert {type(value) for value in values} >= {type(domain.sample(random_state=0))}
    assert len(values) == axis.size
    assert all(axis.value(axis.code(value)) == value for value in drawn(domain))


@pytest.mark.parametrize("text", NUMERIC)
def test_the_ends_of_a_finite_axis_are_the_least_and_the_largest_draw(text):
    domain, axis = read(text)
    assert axis.extremes == [axis.least, axis.largest] == [min(drawn(domain)), max(drawn(domain))]


@pytest.mark.parametrize("text", INTERVALS)
def test_the_ends_of_an_interval_hold_all_draws(text):
    domain, axis = read(text)
    values = drawn(domain)
    low, high = INTERVALS[text]
    assert axis.extremes == [low, math.nextafter(high, low)]
    assert low <= min(values)
    assert max(values) <= axis.largest
    at = sorted(axis.to_unit(axis.code(value)) for value in values)
    assert at[0] < 0.01
    assert at[-1] > 0.99
    assert at[len(at) // 2] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("text", [*FINITE, *INTERVALS, "qrandint(1, 4)", "choice([[1], {}])"])
def test_a_text_is_read_without_ray_as_its_domain_is(text):
    assert read_text("x", text) == read_domain("search.x", parse_domain("x", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uniform(1)", "`uniform` has 2 arguments, not 1"),
        ("quniform(0, 1)", "`quniform` has 3 arguments"),
        ("choice(1, 2)", "`choice` has 1 argument, not 2"),
        ("lograndint(1, 2, 3, 4)", "2 or 3 arguments"),
        ("choice(3)", "`a list of categories`"),
        ("choice([[{'grid_search': [1]}]])", "choice between domains"),
        ("loguniform(0, 1)", "`0 < low`"),
        ("quniform(0, 1, 0.3)", "`low and high are multiples of q`"),
        ("quniform(0, 1, 0)", "`0 < q`"),
        ("uniform(None, 1)", "`finite bounds and q`"),
        ("uniform(low=0, high=1)", "must be a domain with its bounds"),
        *EMPTY.items(),
    ],
)
def test_a_text_that_is_no_domain_is_refused_by_both_readers(text, said):
    with pytest.raises(ValueError, match="x") as error:
        read_text("x", text)
    assert said in str(error.value)
    with pytest.raises((ValueError, TypeError)):
        read_domain("search.x", parse_domain("x", text))


def test_every_domain_of_tune_is_tried():
    assert {text.partition("(")[0] for text in (*FINITE, *INTERVALS)} == set(DOMAINS)


@pytest.mark.parametrize("text", EMPTY)
def test_a_domain_without_values_is_refused_by_key(text):
    with pytest.raises(ValueError, match="must hold for 'x'") as error:
        read_domain("x", parse_domain("x", text))
    assert str(error.value).startswith(EMPTY[text])


@pytest.mark.parametrize("text", FINITE)
def test_grid_and_skopt_see_what_ray_draws(text):
    domain, _ = read(text)
    values = list(FINITE[text])
    assert {point["x"] for point in grid_points({"x": domain}, len(values), seed=0)} == set(values)
    with pytest.raises(ValueError, match=f"at most the {len(values)} points"):
        grid_points({"x": domain}, len(values) + 1, seed=0)
    space = SearchSpace({"x": domain})
    assert {space.decode(space.from_units([unit / 2000]))["x"] for unit in range(2001)} == set(values)
    configs = run(searcher({"x": domain}, n_initial_points=30), len(values), lambda config: 1.0)
    assert {config["x"] for config in configs} == set(values)


@pytest.mark.parametrize("text", NUMERIC)
def test_population_moves_a_perturbed_value_to_the_nearest_that_ray_draws(text):
    domain, _ = read(text)
    values = list(FINITE[text])
    changed = mutations({"lr": domain})
    for config in [v + shift for v in values for shift in (-0.3, 0.0, 0.04, 5.0)] + [v * 1.2 for v in values]:
        found = within(changed, {"lr": config})["lr"]
        assert found in values
        assert type(found) is type(values[0])
        assert abs(found - config) == pytest.approx(min(abs(value - config) for value in values))


def test_bounds_of_pb2_are_the_least_and_the_largest_value():
    changed = mutations({"lr": tune.quniform(0.3, 0.6, 0.1), "hyperparameters": {"rate": tune.uniform(0, 1)}})
    assert bounds(changed) == {"lr": [3 * 0.1, 6 * 0.1], "hyperparameters": {"rate": [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("text", "values", "distances"),
    [
        ("qrandint(1, 10, 3)", (3, 6, 9), (1 / 3, 2 / 3)),
        ("randint(0, 5)", (0, 1, 4), (1 / 5, 4 / 5)),
        ("uniform(-1, 3)", (-1.0, 0.0, 2.0), (1 / 4, 3 / 4)),
        ("loguniform(0.01, 1)", (0.01, 0.1, 0.5), (1 / 2, 1 + math.log10(0.5) / 2)),
        ("choice(['a', 'b'])", ("a", "a", "b"), (0, 1)),
    ],
)
def test_the_distance_of_warm_starts_is_relative_to_what_ray_draws(text, values, distances):
    _, axis = read(text)
    assert [axis.distance(values[0], other) for other in values[1:]] == pytest.approx(list(distances))


def test_warm_starts_find_the_nearest_on_a_quantised_axis():
    search = WarmStart(Listed([{"x": 3, "y": 0.0}, {"x": 9, "y": 0.9}, {"x": 6, "y": 0.0}]), share=1.0)
    # x moves by a third of its range, y by 0.9 of its own.
    search.set_search_properties("loss", "min", {"x": tune.qrandint(1, 10, 3), "y": tune.uniform(0, 1)})
    for trial in "ab":
        search.suggest(trial)
    search.on_trial_complete("a", report(1.0, 0.1))
    search.on_trial_complete("b", report(1.0, 0.2))
    assert search.suggest("c")["warm_start"]["values"] == {"rate": 0.1}


@pytest.mark.parametrize("name", ["optuna-tpe", "optuna-gp"])
@pytest.mark.parametrize(
    "text",
    ["qrandint(1, 10, 3)", "qlograndint(1, 10, 3)", "qrandint(1, 4, 1)", "randint(0, 3)", "qloguniform(1, 3, 0.5)"],
)
def test_optuna_proposes_what_ray_draws(text, name):
    pytest.importorskip("optuna")
    domain, axis = read(text)
    search = make_searcher(name, {"a": {"x": domain}}, num_samples=30, max_concurrent=1, seed=0)
    search.set_search_properties("loss", "min", {"a": {"x": domain}})
    found = []
    for trial in map(str, range(12)):
        found.append(search.suggest(trial)["a"]["x"])
        assert search.suggest(trial)["a"]["x"] == found[-1]
        search.on_trial_complete(trial, {"loss": float(found[-1]), "training_iteration": 1})
    assert set(found) <= {axis.value(code) for code in range(axis.first, axis.last + 1)}
    assert len(set(found)) > 1


def test_optuna_keeps_the_keys_of_the_config_and_refuses_domains_in_lists():
    pytest.importorskip("optuna")
    space = {"a.b": tune.randint(0, 9), "c": {"d.e": tune.uniform(0, 1)}, "f": 1}
    search = make_searcher("optuna-tpe", space, num_samples=4, max_concurrent=1, seed=0)
    search.set_search_properties("loss", "min", space)
    config = search.suggest("t")
    assert list(config) == ["a.b", "c"]
    assert list(config["c"]) == ["d.e"]
    assert isinstance(space["a.b"], Domain)
    with pytest.raises(ValueError, match=r"must be in nested mappings for Optuna, got one in a list for 'sizes.0'"):
        search.set_search_properties("loss", "min", {"sizes": [tune.randint(1, 9), 2]})


@pytest.mark.parametrize(
    ("key", "text", "named"),
    [
        ("batch_size", "qrandint(0, 10, 3)", "batch_size=0"),  # 0 is a multiple of 3
        ("epochs", "qrandint(-7, 7, 3)", "epochs=-6"),
        ("momentum", "quniform(0, 1, 0.25)", "momentum=1.0"),  # the upper bound of a quantised range is included
        ("momentum", "uniform(0, 1.5)", "momentum=1.4999999999999998"),
        ("response_fraction", "quniform(0.25, 1.25, 0.25)", "response_fraction=1.25"),
        ("lr", "choice([0.1, 0, 0.2])", "lr=0"),
        ("epochs", "quniform(1, 3, 1)", "epochs=1.0"),  # a float
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_by_name(key, text, named):
    with pytest.raises(ValueError, match="must hold") as error:
        ExperimentConfig(task="digits-mlp", search={key: text})
    assert f"got {named}" in str(error.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [("batch_size", "qrandint(1, 10, 3)"), ("momentum", "uniform(0, 1)"), ("momentum", "quniform(0, 0.75, 0.25)")],
)
def test_bounds_that_ray_does_not_draw_break_no_rule(key, text):
    config = ExperimentConfig(task="digits-mlp", search={key: text})
    assert config.extremes(key) == read(text)[1].extremes
