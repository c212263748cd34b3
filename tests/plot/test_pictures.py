"""What the pictures show, for every kind of source, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from torch import nn

import ray_deltastn as rd
from tests.training.runs import from_bytes, make_task, make_tuner, to_bytes

NAMES = ["first", "second", "decay"]


def trained(**options):
    tuner = make_tuner(**options)
    reports = list(tuner.fit())
    return tuner, reports


@pytest.fixture(scope="module")
def run():
    return trained()


@pytest.fixture
def folder(run, tmp_path):
    """Results folder with two trials; the reports of the second one are a little worse and take their turns."""
    tuner, reports = run
    rows = []
    for time, report in enumerate(reports):
        for trial in ("1e3", "2"):
            worse = report["valid_loss"] + (0.5 if trial == "2" else 0.0)
            rows.append({**report, "trial_id": trial, "timestamp": time, "valid_loss": worse})
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    about = {name: p.about("clamped") for name, p in tuner.space.hyperparameters.items()}
    (tmp_path / "space.json").write_text(json.dumps(about))
    (tmp_path / "config.json").write_text(json.dumps({"tune": {"metric": "best_valid_loss", "mode": "min"}}))
    return tmp_path


def lines(axis):
    return [line.get_xydata().tolist() for line in axis.get_lines()]


def drawn(figure):
    return {axis.get_title(): lines(axis) for axis in figure.axes}


def expected(reports):
    return {name: [[[r["epoch"], r[f"hyperparameters/{name}"]] for r in reports]] for name in NAMES}


def test_a_tuner_its_table_and_a_folder_show_the_same_schedules(run, folder):
    tuner, reports = run
    for source in (tuner, pd.DataFrame(reports), folder, str(folder), [tuner], (folder,)):
        assert drawn(rd.plot.schedules(source)) == expected(reports)
    assert [axis.get_yscale() for axis in rd.plot.schedules(tuner).axes] == ["linear", "linear", "log"]


def test_the_band_is_that_of_the_domains(run):
    tuner, reports = run
    for figure in (rd.plot.schedules(tuner), rd.plot.schedules(pd.DataFrame(reports), space=tuner.space)):
        band = figure.axes[0].collections[0].get_paths()[0].vertices
        last = reports[-1]["hyperparameters/first"], reports[-1]["scale/first"]
        at_the_end = band[np.isclose(band[:, 0], reports[-1]["epoch"]), 1]
        step = 0.9 / 4 * last[1]  # a quarter of the range is one unit of λ
        assert at_the_end.min() == pytest.approx(max(0.0, last[0] - step))
        assert at_the_end.max() == pytest.approx(min(0.9, last[0] + step))
    assert not rd.plot.schedules(pd.DataFrame(reports)).axes[0].collections


def test_a_schedule_is_drawn_by_epoch(run):
    tuner, _ = run
    table = tuner.schedule()
    shown = drawn(rd.plot.schedules(table))
    assert shown == {name: [list(map(list, table[name].items()))] for name in NAMES}


def test_several_runs_share_the_panels(run, folder):
    tuner, reports = run
    figure = rd.plot.schedules({"mine": tuner, "other": folder})
    assert all(len(axis.get_lines()) == 2 for axis in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine", "other"]
    figure = rd.plot.loss_over_time(tuner, folder, pd.DataFrame(reports))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["delta-stn", folder.name, "run 3"]


@pytest.mark.parametrize("over", ["seconds", "epochs"])
def test_losses_are_drawn_over_the_cost_of_all_trials(folder, run, over):
    _, reports = run
    (axis,) = rd.plot.loss_over_time(folder, over=over).axes
    one, two, best = (np.array(line) for line in lines(axis))
    losses = np.array([report["valid_loss"] for report in reports])
    assert one[:, 1] == pytest.approx(losses)
    assert two[:, 1] == pytest.approx(losses + 0.5)
    column = {"seconds": "seconds/total", "epochs": "epoch"}[over]
    steps = np.diff([0.0, *(report[column] for report in reports)])
    assert best[:, 0] == pytest.approx(np.cumsum(np.repeat(steps, 2)))
    assert best[-1, 1] == pytest.approx(losses.min())


def test_infinite_losses_leave_a_readable_picture(run):
    table = pd.DataFrame(run[1])
    table.loc[2, "valid_loss"] = np.inf
    (axis,) = rd.plot.loss_over_time(table).axes
    assert np.isfinite(axis.get_ylim()).all()
    assert np.isnan(lines(axis)[0][2][1])
    table.loc[3, "valid_loss"] = 1e9
    (axis,) = rd.plot.loss_over_time(table).axes
    assert axis.get_ylim()[1] == pytest.approx(1.5 * table["valid_loss"][0])
    table["valid_loss"] = -1.0
    (axis,) = rd.plot.loss_over_time(table).axes
    assert axis.get_yscale() == "linear"


def test_the_sensitivity_of_a_tuner_is_that_of_its_table(run):
    tuner, _ = run
    table = tuner.sensitivity()
    figure, again = rd.plot.sensitivity(tuner), rd.plot.sensitivity({"a": table, "b": table}, space=tuner.space)
    for axis, both, name in zip(figure.axes, again.axes, NAMES, strict=True):
        own = table[table["hyperparameter"] == name]
        assert lines(axis)[0] == own[["value", "change"]].to_numpy().tolist()
        assert lines(both)[0] == lines(axis)[0]
        assert both.get_xscale() == axis.get_xscale() == ("log" if name == "decay" else "linear")
    short = rd.plot.sensitivity(tuner, examples=5)
    assert lines(short.axes[0])[0] != lines(figure.axes[0])[0]


def test_the_history_of_a_resumed_run_is_whole(run):
    tuner, reports = run
    first = make_tuner()
    first.step()
    second = make_tuner()
    second.load_state_dict(from_bytes(to_bytes(first.state_dict())))
    for _ in second.fit():
        pass
    times = [name for name in tuner.history() if name.startswith("seconds/")]
    pd.testing.assert_frame_equal(second.history().drop(columns=times), tuner.history().drop(columns=times))
    assert tuner.history()["valid_loss"].tolist() == [report["valid_loss"] for report in reports]
    old = {name: part for name, part in first.state_dict().items() if name != "history"}
    third = make_tuner()
    third.load_state_dict(old)
    assert third.history().empty


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda tuner: rd.plot.schedules(), ValueError, "`sources` must hold at least one run, got none"),
        (lambda tuner: rd.plot.schedules([]), ValueError, "`sources` must hold at least one run, got none"),
        (lambda tuner: rd.plot.schedules(3), TypeError, "a run must be a SelfTuner, .*, got int"),
        (
            lambda tuner: rd.plot.loss_over_time({"a": 3.5}),
            TypeError,
            "a run must be a SelfTuner, .*, got float",
        ),
        (lambda tuner: rd.plot.schedules("nowhere"), FileNotFoundError, "must hold a finished .* got no config.json"),
        (
            lambda tuner: rd.plot.schedules(make_tuner()),
            ValueError,
            "a run must have at least one report, got none for 'delta-stn'",
        ),
        (lambda tuner: rd.plot.schedules(pd.DataFrame()), ValueError, "a run must have at least one report"),
        (
            lambda tuner: rd.plot.schedules(pd.DataFrame({"epoch": [1]})),
            ValueError,
            "reports must have columns `hyperparameters/…`, got none for 'run'",
        ),
        (
            lambda tuner: rd.plot.loss_over_time({"mine": tuner.history().drop(columns="seconds/total")}),
            ValueError,
            "reports must have the column `seconds/total`, got none for 'mine'",
        ),
        (lambda tuner: rd.plot.loss_over_time(tuner, over="days"), ValueError, "`over` must be one of .* got 'days'"),
        (
            lambda tuner: rd.plot.sensitivity(tuner.history()),
            ValueError,
            "reports must have the column `hyperparameter`, got none",
        ),
        (
            lambda tuner: rd.plot.sensitivity(make_tuner(method="fixed", hyperparameters={})),
            ValueError,
            "`sensitivity` needs a method that learns a response",
        ),
    ],
)
def test_bad_sources_give_one_clear_line(call, error, line, run):
    with pytest.raises(error, match=line) as raised:
        call(run[0])
    assert "\n" not in str(raised.value)


def test_a_result_without_reports_is_refused():
    with pytest.raises(ValueError, match="at least one report, got none for 'run'"):
        rd.plot.loss_over_time(SimpleNamespace(metrics_dataframe=None))


def test_no_setting_of_matplotlib_changes(run):
    before = dict(matplotlib.rcParams)
    figure = rd.plot.schedules(run[0])
    rd.plot.loss_over_time(run[0])
    assert dict(matplotlib.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pictures_need_neither_ray_nor_pyplot(folder):
    code = f"""
import sys
sys.modules["ray"] = None
import ray_deltastn as rd
assert "matplotlib" not in sys.modules
rd.plot.schedules({str(folder)!r}).savefig({str(folder / "one.png")!r})
rd.plot.loss_over_time({str(folder)!r}).savefig({str(folder / "two.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(rd.__file__).parents[1])


def test_names_of_users_are_no_formulas():
    space = rd.HyperSpace(**{"a$x$b": rd.Bounded(0.2, low=0.0, high=0.9)})
    tuner = make_tuner(make_task(space=space, model=_one_rate("a$x$b"), penalty=()))
    for _ in tuner.fit():
        pass
    figure = rd.plot.schedules({"run $1$": tuner, "run $2$": tuner})
    figure.savefig(Path("/dev/null"), format="png")
    assert figure.axes[0].get_title() == r"a\$x\$b"


def _one_rate(name):
    return nn.Sequential(rd.Dropout(name), nn.Linear(6, 3))
