"""The suite of tasks with headroom: runs are kept and made once, budgets count all seconds, statistics are right."""

import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
import torch

import ray_deltastn as rd
from benchmarks.common.tables import headroom as tables
from benchmarks.headroom import __main__ as command
from benchmarks.headroom import contenders, pictures, population, refits, results, study, suite, tricks
from benchmarks.headroom.problems import SUITE, Problem, decays, few_digits, perceptron, rates
from benchmarks.headroom.runs import Point, Runs
from ray_deltastn.training.presets import PRESETS

SHARED = {"lr": 0.1, "momentum": 0.5, "batch_size": 20}


def tiny():
    spaces = {**rates(3), **decays("weight_decay")}
    return Problem(partial(few_digits, 40), partial(perceptron, 64, width=8), spaces, epochs=12)


@pytest.fixture
def runs(tmp_path):
    return Runs("tiny", tiny(), 0, tmp_path, SHARED)


def losses(points):
    return [(p.valid, p.test, p.values) for p in points]


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_kept_run_is_not_made_again(runs, monkeypatch):
    first = list(runs.follow("plain", method="fixed"))
    monkeypatch.setattr(Runs, "training", lambda *a, **k: pytest.fail("the run was made again"))
    assert losses(runs.follow("plain", method="fixed")) == losses(first)


def test_a_run_that_was_stopped_goes_on_with_the_same_losses(runs, tmp_path):
    whole = list(Runs("tiny", tiny(), 0, tmp_path / "other", SHARED).follow("delta", method="delta-stn"))
    part = list(itertools.islice(runs.follow("delta", method="delta-stn"), 4))
    again = list(runs.follow("delta", method="delta-stn"))
    assert len(part) == 4
    assert [p.valid for p in again] == [p.valid for p in whole]
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(again))


def test_a_run_of_other_options_is_refused(runs):
    list(runs.follow("plain", method="fixed"))
    with pytest.raises(ValueError, match=r"must be a run with.*0\.2"):
        list(runs.follow("plain", method="fixed", lr=0.2))


def test_a_self_tuned_run_of_another_preset_is_refused(runs, monkeypatch):
    list(runs.follow("delta", method="delta-stn"))
    monkeypatch.setitem(PRESETS["recommended"], "hyper_decay", 0.5)
    with pytest.raises(ValueError, match=r"'hyper_decay': 0\.5"):
        list(runs.follow("delta", method="delta-stn"))


def test_the_test_loss_is_that_of_the_network_with_the_best_validation_loss(runs):
    points = list(runs.follow("plain", method="fixed"))
    assert all(
        p.test is not None for i, p in enumerate(points) if p.valid < min([math.inf, *(q.valid for q in points[:i])])
    )
    run = runs.training(contenders.Clock(), method="fixed")
    while not run.done:
        last = run.step()
    x, y = runs.splits[2]
    network = runs.problem.model()
    network.load_state_dict(run.tuner.export())
    network.eval()
    assert last.test == pytest.approx(torch.nn.functional.cross_entropy(network(x), y).item(), rel=1e-5)


def test_seeds_have_other_splits_and_other_draws(tmp_path):
    first, second = (Runs("tiny", tiny(), seed, tmp_path, SHARED) for seed in range(2))
    assert first.draw(0) != second.draw(0)
    assert not torch.equal(first.splits[0][0], second.splits[0][0])


@pytest.mark.parametrize("task", ["protein", "wine"])
def test_regression_tasks_penalise_each_layer_by_itself(task, monkeypatch):
    features = np.random.default_rng(0).normal(size=(900, 5))
    monkeypatch.setattr("benchmarks.headroom.problems.load", lambda name: (name, features, features[:, 0]))
    problem = SUITE[task]()
    built = problem.task(problem.splits(0))
    linear = [name for name, m in built.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert [layers for _, layers in problem.decays] == [(name,) for name in linear]
    assert built.train[0].mean(0).abs().max() < 1e-5
    assert built.test is None


# --- contenders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in contenders.CONTENDERS if n not in ("trivial-augment", "hybrid")])
def test_a_contender_yields_growing_seconds_and_is_repeatable(name, runs, monkeypatch):
    monkeypatch.setattr(contenders, "POOL", 6)
    monkeypatch.setattr(contenders, "ASHA_RUNS", 6)
    first = list(contenders.contender(name).trace(runs, 1.0))
    again = list(contenders.contender(name).trace(runs, 1.0))
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(first))
    assert [p.valid for p in again] == [p.valid for p in first]


def test_searches_share_the_first_draws_of_random_search(runs, monkeypatch):
    monkeypatch.setattr(contenders, "POOL", 6)
    for name in ("random", "tpe", "gp"):
        list(contenders.contender(name).trace(runs, 1.0))
    kept = sorted(path.stem for path in runs.folder.iterdir())
    assert kept == sorted([*(f"random-{i}" for i in range(6)), "tpe-4", "tpe-5", "gp-4", "gp-5"])


def test_halving_stops_most_runs_early(runs, monkeypatch):
    monkeypatch.setattr(contenders, "ASHA_RUNS", 12)
    list(contenders.contender("asha").trace(runs, 1.0))
    lengths = [len(json.loads(path.read_text())["points"]) for path in runs.folder.iterdir()]
    assert len(lengths) == 12
    assert max(lengths) == tiny().epochs
    assert sum(length < tiny().epochs for length in lengths) >= 6


def test_a_member_of_a_population_goes_on_from_the_state_of_a_better_one(runs):
    clock = contenders.Clock()
    source = runs.training(clock, method="fixed", hyperparameters=runs.draw(0))
    for _ in range(3):
        source.step()
    copied = population.copied(runs, source, runs.draw(1), clock)
    assert copied.tuner.epoch == 3
    assert copied.tuner.hyperparameters() == pytest.approx(runs.draw(1))
    for a, b in zip(source.tuner.model.parameters(), copied.tuner.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_hybrid_begins_with_the_self_tuned_run_of_the_shared_settings(runs, monkeypatch):
    monkeypatch.setattr(contenders, "POOL", 2)
    list(contenders.contender("hybrid").trace(runs, 1.0))
    found = {path.stem: json.loads(path.read_text())["config"] for path in runs.folder.iterdir()}
    assert found["delta-stn"]["lr"] == SHARED["lr"]
    assert found["hybrid-1"]["lr"] != SHARED["lr"]


def test_a_self_tuned_run_may_have_other_options(runs):
    list(contenders.contender("delta-stn:hyper_lr=0.02,preset=paper").trace(runs, 1.0))
    (path,) = runs.folder.iterdir()
    assert json.loads(path.read_text())["config"]["hyper_lr"] == 0.02
    with pytest.raises(ValueError, match="METHOD:KEY=VALUE"):
        contenders.contender("delta-stn:hyper_lr")
    with pytest.raises(ValueError, match="`--methods` must be of plain"):
        contenders.contender("nothing")


def test_a_refit_trains_on_both_splits_with_what_was_found(runs, monkeypatch):
    monkeypatch.setattr(refits, "POOL", 3)
    before, after = refits.refitted(runs, "refit-schedule")
    points = list(runs.follow("delta-stn", method="delta-stn"))
    assert before == min(points, key=lambda p: p.valid).test
    torch.manual_seed(runs.seed)
    task = runs.problem.task(runs.splits)
    schedule = {name: [p.values[name] for p in points] for name in runs.space.names}
    model = runs.problem.model()
    model.load_state_dict(rd.refit(task, schedule, seed=0, graph="on", **SHARED))
    x, y = runs.splits[2]
    assert after == pytest.approx(torch.nn.functional.cross_entropy(model.eval()(x), y).item(), rel=1e-5)
    found = {
        number: list(runs.follow(f"random-{number}", method="fixed", hyperparameters=runs.draw(number)))
        for number in range(3)
    }
    number = min(found, key=lambda i: min(p.valid for p in found[i]))
    epoch = min(range(12), key=lambda e: found[number][e].valid) + 1
    before, _ = refits.refitted(runs, "refit-random")
    assert before == found[number][epoch - 1].test
    kept = json.loads((runs.folder / "refit-random.json").read_text())["config"]
    assert (kept["epochs"], kept["values"]) == (epoch, runs.draw(number))


@pytest.mark.parametrize(("name", "search"), [("delta-stn-refit", "delta-stn-shorter"), ("random-refit", "random-0")])
def test_a_refit_takes_the_place_of_the_network_of_its_search(name, search, runs):
    plain = list(runs.follow("plain", method="fixed"))[-1].seconds
    points = list(contenders.contender(name).trace(runs, plain))
    assert [p.last for p in points] == [False] * (len(points) - 1) + [True]
    assert points[-1].valid == min(p.valid for p in points[:-1])
    assert points[-1].seconds > points[-2].seconds
    found = results.scored(points, plain)
    assert found["test"][-1] == points[-1].test
    assert (runs.folder / f"{search}.json").exists()


# --- results -------------------------------------------------------------------------------------------------------


def test_a_record_keeps_the_best_loss_within_each_budget():
    points = [Point(1.0, 0.9, 1.9), Point(2.0, 0.5, 1.5), Point(3.0, 0.7), Point(9.0, 0.4, 1.4)]
    found = results.scored(points, plain=2.0)
    assert [results.at(found, budget, "valid") for budget in results.BUDGETS] == [0.5, 0.5, 0.5, 0.4, 0.4]
    assert results.at(found, 4.0, "test") == 1.5
    assert found["valid"][0] is None
    assert results.time_to(found, 0.5) == 1.0
    assert results.time_to(found, 0.3) == math.inf


def test_a_comparison_says_who_is_lower():
    table = np.array([[1.0, 2.0, 2.1], [1.1, 2.3, 2.0], [0.9, 1.9, 2.4], [1.2, 1.1, 2.2], [1.0, 2.0, 2.0]] * 4)
    tasks = [task for task in "pqrs" for _ in range(5)]
    first, second = results.comparisons(table, ["a", "b", "c"], tasks, of="a")
    assert (first.second, second.second) == ("b", "c")
    assert first.wins == 0.8
    assert first.change == pytest.approx(math.log(0.5))
    assert first.p < 0.05
    assert first.p_of_tasks == 2 * 0.5**4  # four equal tasks, all with the same sign
    assert results.mean_ranks(table)[0] == pytest.approx(1.2)


def test_the_interval_of_a_median_may_end_at_never():
    assert results.interval([0.25] * 9) == (0.25, 0.25)
    low, high = results.interval([0.1, 0.2, 0.3, math.inf, math.inf])
    assert low in (0.1, 0.2)
    assert high == math.inf


def test_groups_join_neighbours_without_a_significant_difference():
    names, ranks = ["a", "b", "c", "d"], np.array([1.0, 2.0, 3.0, 4.0])
    pairs = [results.Comparison("a", other, 1, -1, 0.01, 0.1) for other in "cd"]
    assert results.groups(ranks, names, pairs) == [["a", "b"], ["b", "c", "d"]]


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_suite(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITE, "tiny", tiny)
    monkeypatch.setattr(suite, "GRID", {"lr": (0.05, 0.1), "momentum": (0.5,), "batch_size": (20,)})
    monkeypatch.setattr(suite, "PLAIN", tmp_path / "plain.json")
    monkeypatch.setattr(contenders, "POOL", 3)
    command.main(["--grid", "--tasks", "tiny", "--json", str(tmp_path / "plain.json")])
    return tmp_path


def test_the_command_runs_stops_goes_on_and_reports(small_suite, capsys):
    out, record = small_suite / "out", small_suite / "suite.json"
    arguments = ["--tasks", "tiny", "--methods", "plain,random,delta-stn", "--seeds", "1", "--out", str(out)]
    with pytest.raises(SystemExit, match="3"):
        command.main([*arguments, "--minutes", "0.0001"])
    command.main([*arguments, "--json", str(record)])
    rows = json.loads(record.read_text())["rows"]
    assert [row["contender"] for row in rows] == ["plain", "random", "delta-stn"]
    assert all(row["bests"] for row in rows)
    assert "tiny seed 0  delta-stn: best valid" in capsys.readouterr().out
    assert "`tiny`" in tables.times({"rows": rows})
    command.main([*arguments, "--report", "--json", str(small_suite / "again.json")])
    assert json.loads((small_suite / "again.json").read_text())["rows"] == rows


def test_a_record_grows_by_the_rows_of_another_folder(small_suite, capsys):
    record = small_suite / "suite.json"
    shared = ["--tasks", "tiny", "--seeds", "1", "--json", str(record)]
    with pytest.raises(SystemExit):
        command.main([*shared, "--methods", "plain", "--out", str(small_suite / "a"), "--add"])
    assert "`--json` must be a record for `--add`" in capsys.readouterr().err
    command.main([*shared, "--methods", "plain,random", "--out", str(small_suite / "a")])
    plain, random = json.loads(record.read_text())["rows"]
    command.main([*shared, "--methods", "plain,stn", "--out", str(small_suite / "b"), "--add"])
    again, kept, added = json.loads(record.read_text())["rows"]
    assert kept == random
    assert added["contender"] == "stn"
    # The plain run is the new one: the same losses in other seconds. Budgets stay in plain runs of their own folder.
    assert (again["final"], again["cost"]) == (plain["final"], 1.0)
    assert random["cost"] > 1.0


def test_wrong_arguments_end_the_command_with_one_line(small_suite, capsys):
    for arguments, rule in (
        (["--tasks", "nothing"], "`--tasks` must be of"),
        (["--tasks", "tiny"], "`--out` must name"),
        (["--tasks", "tiny", "--out", "x", "--methods", "nothing"], "`--methods` must be of"),
        (["--tasks", "wine", "--out", "x"], "must have rows of the task 'wine'"),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert rule in capsys.readouterr().err


# --- the study of λ's step -------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A part of the study on a tiny task."""
    monkeypatch.setattr(study, "SUITE", {"tiny": tiny})
    monkeypatch.setattr(study, "picked", lambda task: SHARED)
    return lambda *groups: study.Work("tiny", 0, groups, tmp_path, None)


def test_every_variant_of_the_study_changes_something_and_is_paired_with_the_reference(work, runs):
    rows = list(work(*study.GROUPS).rows())
    losses = {row["variant"]: row["best"] for row in rows if "best" in row}
    names = [name for group in study.GROUPS.values() for name in group]
    assert list(losses) == list(dict.fromkeys([*study.REFERENCES, *names]))
    points = list(runs.follow("delta-stn", method="delta-stn", response_optimizer="sgd", antithetic=False))
    assert losses[study.REFERENCE] == min(p.valid for p in points)
    tail = points[-1].valid
    assert rows[0]["final"] == tail
    refits = {row["variant"]: row["refit"] for row in rows if "refit" in row}
    assert refits.keys() == {study.REFERENCE, study.ROTATING}


def made(change=None, **options):
    """λ after a short run with a change."""
    torch.manual_seed(0)
    task = tiny().task(few_digits(40, 0))
    tuner = rd.SelfTuner(task, epochs=30, batch_size=20, lr=0.1, warmup=0, train_interval=1, **options)
    if change is not None:
        change(tuner)
    lams = []
    step = tuner.algorithm.hyper_step

    def watched(x, y):
        found = step(x, y)
        lams.append(tuner.space.lam.detach().clone())
        return found

    tuner.algorithm.hyper_step = watched
    list(tuner.fit())
    return tuner, torch.stack(lams)


def test_steps_by_the_sign_hold_lambda_over_a_segment_and_then_move_it_by_the_segments_reach():
    _, lams = made(tricks.signs, hyper_lr=0.01, hyper_decay=1.0, hyper_clip=2.0 * tricks.SEGMENT)
    moves = lams.diff(dim=0)
    at = torch.arange(1, len(lams)) % tricks.SEGMENT == tricks.SEGMENT - 1
    assert bool((moves[~at] == 0).all())
    inside = moves[at][(lams[1:][at].abs() < 1.9) & (lams[1:][at] > -1.9)]
    assert torch.allclose(inside.abs(), torch.full_like(inside, 0.01 * tricks.SEGMENT), rtol=1e-4)


def test_steps_by_signal_to_noise_are_adams_with_equal_decays():
    gradients = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    lam, other = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    ours = tricks.SignalToNoise(torch.optim.SGD([lam], lr=0.1))
    adam = torch.optim.Adam([other], lr=0.1, betas=(tricks.NOISE_DECAY, tricks.NOISE_DECAY), eps=1e-12)
    for gradient in gradients:
        lam.grad, other.grad = gradient.clone(), gradient.clone()
        ours.step()
        adam.step()
    torch.testing.assert_close(lam, other)


def test_the_hyper_step_sees_the_averages_and_the_train_step_does_not():
    torch.manual_seed(0)
    tuner = rd.SelfTuner(tiny().task(few_digits(40, 0)), epochs=5, batch_size=20, lr=0.1, warmup=0, train_interval=1)
    seen, expected = [], None
    first = tuner.algorithm.weights[0]
    step = tuner.algorithm.hyper_step
    tuner.algorithm.hyper_step = lambda x, y: (seen.append(first.detach().clone()), step(x, y))[1]
    tricks.averaged(tuner)
    expected = first.detach().clone()
    train_step = tuner.algorithm.train_step

    def train(x, y):
        nonlocal expected
        loss = train_step(x, y)
        expected = expected.lerp(first.detach(), 1 - tricks.AVERAGE)
        assert not torch.equal(expected, first)
        return loss

    tuner.algorithm.train_step = train
    tuner.step()
    torch.testing.assert_close(seen[-1], expected)


def test_rotating_splits_take_turns_and_never_overlap():
    data = (torch.arange(12.0)[:, None], torch.arange(12))
    splits = ((data[0][:8], data[1][:8]), (data[0][8:], data[1][8:]), data)
    train, valid = tricks.rotating(splits, 3)
    held = []
    for _ in range(6):
        ours = {int(y) for _, batch in train for y in batch}
        theirs = {int(y) for _, batch in valid for y in batch}
        assert ours | theirs == set(range(12))
        assert not ours & theirs
        assert (len(ours), len(theirs)) == (8, 4)
        held.append(frozenset(theirs))
    assert len(set(held)) == 3
    assert held[:3] == held[3:]


def test_the_report_of_the_study_has_what_is_done_and_a_picture(work, tmp_path):
    part = work("rate")
    list(part.rows())
    found = study.report([part, study.Work("tiny", 1, ("rate",), tmp_path, None)], "command")
    assert [row["variant"] for row in found["rows"]] == [study.REFERENCE, *study.RATES]
    pictures.rate_curve(found["rows"], tmp_path / "rate.png")
    assert (tmp_path / "rate.png").stat().st_size > 1000


def test_the_time_to_the_best_of_random_search_is_a_share_of_all_its_runs():
    # Random search takes 8 of 16 plain runs to its best; the other contender gets there after 2, or never.
    random = {"cost": 16.0, "bests": [[1.0, 0.9], [8.0, 0.5]]}
    blocks = {
        ("task", 0): {"random": random, "own": {"bests": [[1.0, 0.7], [2.0, 0.4]]}},
        ("task", 1): {"random": random, "own": {"bests": [[3.0, 0.6]]}},
    }
    assert results.shares(blocks, "own") == {"task": [2 / 16, math.inf]}
    assert results.shares(blocks, "own", of_all=False) == {"task": [2 / 8, math.inf]}
    assert results.shares(blocks, "random") == {"task": [8 / 16, 8 / 16]}
