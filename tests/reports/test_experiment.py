"""Notes below the final table of an experiment."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ray_deltastn.reports import response, several
from ray_deltastn.reports.results import Results
from tests.reports.results import SPACE


@pytest.fixture
def folder(tmp_path):
    """Folder of an experiment without results; `notes` adds two trials with two reports each."""
    (tmp_path / "config.json").write_text(json.dumps({"search": {}, "tune": {"metric": "valid_loss", "mode": "min"}}))
    (tmp_path / "space.json").write_text("{}")
    return tmp_path


def notes(folder, damaged):
    rows = [
        {
            "trial_id": trial,
            "training_iteration": iteration,
            "valid_loss": 0.5,
            "diverged": False,
            "warning/short_run": 0.0,
            "warning/saturated": 0.0,
        }
        for trial in ("a", "b")
        for iteration in (1, 2)
    ]
    table = pd.DataFrame(rows)
    if damaged is not None:
        table["warning/damaged_checkpoints"] = damaged
    table.to_csv(folder / "results.csv", index=False)
    return Results(folder).notes()


@pytest.mark.parametrize("damaged", [[0, 2, 0, 0], [0, 0, 1, 0]])
def test_trials_that_skipped_a_damaged_checkpoint_are_counted(damaged, folder):
    assert notes(folder, damaged) == ["1 of 2 trials found a damaged checkpoint and continued from an earlier one."]


@pytest.mark.parametrize("damaged", [[0, 0, 0, 0], None], ids=["none", "results of an older version"])
def test_there_is_no_note_if_no_checkpoint_was_damaged(damaged, folder):
    assert notes(folder, damaged) == []


SHARE = "87.5 % of the trainable weights respond to the hyperparameters."
GAP = "'head.weight' (1,280 weights): owned directly by Head"


@pytest.mark.parametrize(
    ("share", "gap", "note"),
    [
        (1.0, "", ["100.0 % of the trainable weights respond to the hyperparameters."]),
        (
            0.875,
            GAP,
            [f"{SHARE} The largest part that does not is {GAP}."],
        ),
        (0.0, "", []),
        (None, None, []),
    ],
    ids=["all", "most", "without a response", "results of an older version"],
)
def test_the_share_of_weights_that_respond_is_a_note(share, gap, note, folder):
    rows = [
        {"trial_id": trial, "training_iteration": 1, "valid_loss": loss, "diverged": False}
        | {"warning/short_run": 0.0, "warning/saturated": 0.0}
        | ({} if share is None else {"coverage/share": share * weight, "coverage/largest_gap": gap})
        for trial, loss, weight in (("worse", 0.7, 0.5), ("best", 0.5, 1.0))
    ]
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    assert Results(folder).notes() == note


@pytest.mark.parametrize(
    ("hyper_steps", "short", "note", "names"),
    [
        (0, 1.0, "In 2 of 2 trials λ never moved", []),
        (0, 0.0, None, ["dropout", "decay"]),  # constants: nothing was to move
        (3, 1.0, "Some trials were too short", ["learned dropout", "learned decay"]),
        (3, 0.0, None, ["learned dropout", "learned decay"]),
    ],
)
def test_values_that_never_moved_are_not_called_learned(hyper_steps, short, note, names, folder):
    (folder / "space.json").write_text(json.dumps({"dropout": {}, "decay": {}}))
    rows = [
        {"trial_id": trial, "training_iteration": 1, "epoch": 3, "valid_loss": 0.5, "diverged": False}
        | {"warning/short_run": short, "warning/saturated": 0.0, "hyper_steps": hyper_steps}
        | {"hyperparameters/dropout": 0.1, "hyperparameters/decay": 0.2}
        for trial in ("a", "b")
    ]
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    results = Results(folder)
    found = results.notes()
    assert len(found) == (note is not None)
    assert all(one.startswith(note) for one in found)
    assert [name for name, _ in results.best_table()][1:] == names


def test_the_pictures_of_the_response_show_the_numbers_of_the_best_trial(tmp_path, monkeypatch):
    config = {"search": {}, "tune": {"metric": "valid_loss", "mode": "min"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    rows = [
        {"trial_id": trial, "steps": epoch, "epoch": epoch, "training_iteration": epoch, "valid_loss": loss}
        | {f"{group}/{name}": 0.1 * epoch for group in ("signal", "scale", "at_bound") for name in SPACE}
        for trial, loss in (("a", 0.4), ("b", 0.3))
        for epoch in (1, 2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    results = Results(tmp_path)
    drawn = {}
    monkeypatch.setattr(response, "save", lambda figure, path: drawn.setdefault(path.name, figure.axes))
    table = pd.DataFrame(
        [(name, t, 0.2 + 0.1 * t, 0.5 * t, 0.1, 1.0) for name in SPACE for t in (-1.0, 0.0, 1.0)],
        columns=["hyperparameter", "offset", "value", "change", "error", "loss"],
    )
    response.plot_response(results, table)
    response.plot_signal(results)
    rate, decay = drawn["response.png"]
    assert rate.get_lines()[0].get_xydata().tolist() == pytest.approx(np.array([[0.1, -0.5], [0.2, 0.0], [0.3, 0.5]]))
    assert (rate.get_xscale(), decay.get_xscale()) == ("linear", "log")
    assert [len(axis.get_lines()) for axis in drawn["signal.png"]] == [len(SPACE)] * 3


def test_the_picture_of_the_response_takes_as_many_examples_as_there_is_time_for(monkeypatch):
    clock = iter([0.0, 2.0, 0.0, 30.0])
    monkeypatch.setattr(response.time, "perf_counter", lambda: next(clock))
    asked = []
    tuner = SimpleNamespace(sensitivity=asked.append)
    assert response._affordable(tuner) == response.FEWEST * 10
    with pytest.raises(ValueError, match="too slow on this machine"):
        response._affordable(tuner)
    assert asked == [response.FEWEST] * 2


def test_a_missing_checkpoint_is_a_warning_and_no_picture(folder, caplog):
    notes(folder, None)
    response.draw_response(Results(folder))
    assert "the picture of the response could not be drawn: `trial` must be one of" in caplog.text
    assert not (folder / "response.png").exists()


def table_of(folder, losses, metric="valid_loss", mode="min"):
    """Results of one trial per (validation loss, test loss or None, seconds)."""
    folder.mkdir(exist_ok=True)
    config = {"search": {}, "tune": {"metric": metric, "mode": mode}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "space.json").write_text("{}")
    rows = [
        {"trial_id": f"t{n}", "training_iteration": 1, "epoch": 1, "valid_loss": valid, "diverged": False}
        | ({} if test is None else {"test_loss": test, "test_accuracy": 1 - test, "valid_accuracy": 1 - valid})
        | {"seconds/total": seconds, "warning/short_run": 0.0, "warning/saturated": 0.0}
        for n, (valid, test, seconds) in enumerate(losses)
    ]
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    return Results(folder)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((0.2, 0.4, 30.0), (0.3, 0.5, 10.0), "Tuning gained: the test loss is 0.4000 after 30.0 s, 20.0% lower than"),
        ((0.2, 0.6, 30.0), (0.3, 0.5, 10.0), "Tuning gained nothing: the test loss is 0.6000 after 30.0 s"),
        ((0.2, 0.5, 30.0), (0.3, 0.5, 10.0), "Tuning gained nothing"),  # equal
        ((0.2, None, 30.0), (0.3, None, 10.0), "Tuning gained: the validation loss is 0.2000"),
        ((0.2, None, 30.0), (np.inf, None, 10.0), "The control without tuning diverged"),
    ],
)
def test_one_sentence_tells_what_was_gained_on_test_data_if_there_are_any(ours, theirs, said, tmp_path):
    results = table_of(tmp_path, [(0.9, 0.1, 1.0) if ours[1] else (0.9, None, 1.0), ours])
    assert results.gained() == ""  # there is no control
    table_of(tmp_path / "control", [theirs])
    assert results.gained().startswith(said)


def test_a_score_is_better_if_it_is_higher(tmp_path):
    results = table_of(tmp_path, [(0.2, 0.4, 30.0)], "valid_accuracy", "max")
    table_of(tmp_path / "control", [(0.3, 0.5, 10.0)])
    assert results.gained().startswith("Tuning gained: the test accuracy is 0.6000 after 30.0 s, 20.0% higher than")


def test_the_short_table_has_what_matters_and_ends_with_the_control(tmp_path):
    results = table_of(tmp_path, [(0.9, 0.7, 1.0), (0.2, 0.4, 30.0)])
    table_of(tmp_path / "control", [(0.3, 0.5, 10.0)])
    header, rows = results.overview()
    assert header == ["trial", "valid loss", "test loss", "accuracy", "seconds"]
    assert [row[0] for row in rows] == ["t1", "t0", "control"]
    assert rows[0] == ["t1", "0.2000", "0.4000", "0.600", "30.0"]
    assert [row[0] for row in results.overview(most=1)[1]] == ["t1", "control"]


def test_the_short_table_has_the_metrics_of_the_task(tmp_path):
    results = table_of(tmp_path, [(0.9, 0.7, 1.0)])
    results.trials = results.trials.assign(valid_perplexity=2.5, test_perplexity=2.0, valid_error_rate=0.25)
    header, rows = results.overview()
    assert header == ["trial", "valid loss", "test loss", "accuracy", "perplexity", "error rate", "seconds"]
    assert [float(number) for number in rows[0][4:6]] == [2.0, 0.25]


def test_several_experiments_have_different_names_and_one_line_each(tmp_path):
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "y"]
    assert several.names_of(folders[1:]) == ["x", "y"]
    assert several.names_of(folders) == ["a/x", "b/x", f"{tmp_path.name}/y"]
    with pytest.raises(ValueError, match="must be different folders"):
        several.names_of([folders[0], folders[0]])
    for folder in folders:
        folder.parent.mkdir(exist_ok=True)
    every = [table_of(folders[1], [(0.2, 0.4, 30.0)]), table_of(folders[2], [(0.3, None, 10.0)])]
    header, rows = several.several_table(every, ["x", "y"])
    assert header == ["experiment", "valid loss", "test loss", "accuracy", "seconds"]
    assert rows == [["x", "0.2000", "0.4000", "0.600", "30.0"], ["y", "0.3000", "–", "–", "10.0"]]
