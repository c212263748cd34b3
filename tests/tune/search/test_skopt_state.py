"""A search that is saved goes on as if it had not been."""

import json

import pytest
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from ray_deltastn.tune.search.skopt_search import SkOptSearch
from tests.tune.search.searches import EVERY, PLANE, branin, finish, searcher


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
    with pytest.raises(ValueError, match=r"`metric` must be the same .*, got 'reward' and 'loss'"):
        SkOptSearch(PLANE, "reward", "min").restore(path)
    late = SkOptSearch()
    late.restore(path)
    with pytest.raises(ValueError, match=r"`mode` must be the same .*, got 'max' and 'min'"):
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
    with pytest.raises(ValueError, match=r"/state['`]") as caught:
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
