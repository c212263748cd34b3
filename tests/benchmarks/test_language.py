"""Runs of language models are kept, resume to the bit and are reported; a run with other options is refused."""

import json
from pathlib import Path

import pytest

import ray_deltastn as rd
from benchmarks.common.tables import language as tables
from benchmarks.language import __main__ as command
from benchmarks.language import flops, pictures
from benchmarks.language.problems import CONTENDERS, PROBLEMS, TRIALS, TUNED
from benchmarks.language.report import per_seed, report, score
from benchmarks.language.runs import runs
from tests.tasks import grammar

SMALL = {
    "lstm": {"units": 6, "embedding": 6, "batch": 4, "length": 8, "limit": 300, "epochs": 3},
    "transformer": {"width": 8, "heads": 2, "layers": 1, "batch": 4, "length": 16, "limit": 600, "epochs": 3},
}


def made(problem, name, tmp_path, folder="runs"):
    text = grammar.folder(tmp_path / "text", counts=(60, 30, 30))
    changes = (*SMALL[problem.partition("-")[0]].items(), ("path", str(text)))
    return runs(problem, 0, name, tmp_path / folder, changes)


def numbers(run):
    kept = run.read()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in kept["rows"]]


@pytest.mark.parametrize(("problem", "name"), [("lstm", "delta-stn"), ("lstm", "stn"), ("transformer", "plain")])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(problem, name, tmp_path):
    (whole,) = made(problem, name, tmp_path)
    assert whole.train()
    (cut,) = made(problem, name, tmp_path, "cut")
    assert not cut.train(lambda: True)
    assert not cut.done
    assert len(numbers(cut)) == 1
    assert cut.train()
    assert numbers(cut) == numbers(whole)
    assert [path.suffix for path in cut.path.parent.iterdir()] == [".json"]
    assert whole.train()  # nothing is left to do


def test_a_run_with_other_options_is_refused(tmp_path):
    (run,) = made("lstm", "plain", tmp_path)
    run.train()
    (other,) = runs("lstm", 0, "plain", tmp_path / "runs", (*run.changes, ("lr", 1.0)))
    with pytest.raises(ValueError, match=r"`.*plain\.json` must be a run with .*'lr': 1\.0"):
        other.train()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_regularisation_is_the_decay_of_the_constants_alone(problem, tmp_path):
    (run,) = runs(problem, 0, "none", tmp_path)
    values = run.settings(rd.HyperSpace(rate=rd.Bounded(0.1, low=0.0, high=0.9)))["hyperparameters"]
    assert values.keys() == run.of.constants.keys()
    kept = {name: value for name, value in values.items() if value}
    assert kept == {name: value for name, value in run.of.constants.items() if name.endswith("_decay")}


def test_a_report_has_the_best_epoch_of_each_run(tmp_path):
    found = [run for name in ("plain", "initial") for run in made("transformer", name, tmp_path)]
    for run in found:
        run.train()
    record = report(found, "command")
    assert json.loads(json.dumps(record)) == record
    for row in record["rows"]:
        assert row["valid"] == min(row["curve"]["valid"])
        assert row["test"] == row["curve"]["test"][row["best_epoch"] - 1]
        assert len(row["curve"]["train"]) == 3
        assert row["lr"] == [0.003] * 3
    assert [one["contender"] for one in record["summary"]] == ["plain", "initial"]
    earlier = {"rows": [{**record["rows"][0], "valid": -1.0}, {**record["rows"][0], "seed": 1}]}
    grown = report(found, "command", earlier)
    assert [(one["name"], one["seed"]) for one in grown["rows"]] == [("plain", 0), ("plain", 1), ("initial", 0)]
    assert [grown["rows"][0], grown["rows"][2]] == record["rows"]
    first = {"command": "first", "versions": {}}
    earlier |= {"command": "second", "versions": {}, "earlier": [first]}
    grown = report(found, "third", earlier)
    assert grown["earlier"] == [first, {"command": "second", "versions": {}}]
    assert report(found, "third", grown)["earlier"] == grown["earlier"]  # the same command again
    assert [(one["contender"], one["seeds"]) for one in grown["summary"]] == [("plain", 2), ("initial", 1)]
    assert tables.transformer(record).count("\n") == 3
    with pytest.raises(ValueError, match="`--out` must have a run that has ended, got none"):
        report([], "command")


def rows(seed, **valid):
    shared = {"problem": "lstm", "seed": seed, "seconds": 2.0}
    return [{**shared, "name": name, "valid": v, "test": None if v is None else v + 1} for name, v in valid.items()]


def test_random_search_is_the_best_of_all_its_trials():
    trials = {f"random{trial}": float(50 - trial) for trial in range(TRIALS)}
    some = [*rows(0, **{**trials, "random0": None}), *rows(1, **dict(list(trials.items())[1:]))]
    best, missing = per_seed(some, "lstm", "random")
    assert best == {"valid": 50.0 - (TRIALS - 1), "test": 51.0 - (TRIALS - 1), "seconds": 2.0 * TRIALS}
    assert missing is None


def test_a_run_that_diverged_has_no_digits_in_a_table():
    figures = {"valid": {"mean": 1001.0, "std": 5.0}, "test": {"mean": 999.0, "std": None}, "seconds": {"mean": 2.0}}
    table = tables.lstm({"summary": [{"problem": "lstm", "contender": "stn", "seeds": 2, **figures}]})
    assert "| 2 | > 1000 | 999.0 | 2 |" in table


def test_a_run_that_diverged_does_not_hide_the_others_in_a_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures.Figure, "savefig", lambda figure, path, **options: drawn.append(figure.axes[0]))
    best = {"plain": 100.0, "delta-stn": 90.0, "stn": 1e6}
    given = [
        {"problem": "lstm", "seed": 0, "name": name, "valid": valid, "curve": {"valid": [3 * valid, valid]}}
        for name, valid in best.items()
    ]
    pictures.curves(given, "lstm", tmp_path / "curves.png")
    (axes,) = drawn
    assert axes.get_ylim()[1] == pytest.approx(200.0)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["constants of others", "Δ-STN, recommended", "STN, the paper's settings (above the picture)"]


def test_flops_are_counted_at_each_size_and_the_record_is_within_the_limits():
    small = {"small": flops.Size(words=800, units=60, length=6, tied=False, train_interval=5)}
    (row,) = flops.rows(small)
    assert 2.0 < row["ratios"]["delta-stn paper"] <= 3.0
    assert row["ratios"]["delta-stn paper"] < row["ratios"]["delta-stn"] <= 3.1
    record = json.loads(
        (Path(flops.__file__).parents[1] / "records" / tables.TABLES["language-flops"].records[0]).read_text()
    )
    assert [one["name"] for one in record["rows"]] == list(flops.SIZES)
    for one in record["rows"]:
        # A decoder with the weight of the embedding responds per column, which takes one more product of matrices.
        limit = {5: 3.15 if one["tied"] else 3.0, 2: 3.7}[one["train_interval"]]
        assert one["ratios"]["delta-stn paper"] <= limit
        assert one["ratios"]["delta-stn"] <= (3.0 if limit == 3.0 else limit + 0.02)
    assert tables.flops(record).count("\n") == 5


def test_scores_are_perplexities_or_bits():
    assert score(2.0, bits=False) == pytest.approx(7.389056)
    assert score(0.6931472, bits=True) == pytest.approx(1.0)
    assert score(None, bits=True) is None


def test_problems_name_all_hyperparameters_of_their_tasks(tmp_path):
    for problem, of in PROBLEMS.items():
        assert sorted(of.constants) == sorted(name for group in of.picture for name in group)
        for name in CONTENDERS:
            assert len(made(problem, name, tmp_path)) == (TRIALS if name == "random" else 1)
    assert set(tables.NAMES) == set(CONTENDERS) >= set(TUNED)


@pytest.mark.slow
def test_the_command_trains_what_is_missing_and_draws(tmp_path):
    text = grammar.folder(tmp_path / "text", counts=(60, 30, 30))
    out, record, pictures = tmp_path / "runs", tmp_path / "record.json", tmp_path / "pictures"
    changes = [word for name, value in SMALL["lstm"].items() for word in ("--set", f"{name}={value}")]
    given = ["--out", str(out), "--problems", "lstm", "--contenders", "delta-stn", "--seeds", "1", "--path", str(text)]
    command.main([*given, *changes, "--json", str(record), "--plot", str(pictures)])
    kept = json.loads(record.read_text())
    assert str(tmp_path) not in json.dumps(kept["rows"])
    assert set(kept["rows"][0]["values"]) == set(PROBLEMS["lstm"].constants)
    assert sorted(path.name for path in pictures.iterdir()) == ["lstm_schedules.png", "lstm_valid.png"]
    with pytest.raises(SystemExit) as end:
        command.main([*given[:4], "--contenders", "plain", *given[6:], *changes, "--report"])
    assert end.value.code == command.UNFINISHED
