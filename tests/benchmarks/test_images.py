"""Runs of the image benchmark: the paper's settings, interrupted runs, schedules of other runs, and reports."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

import ray_deltastn as rd
from benchmarks import images, images_report
from ray_deltastn.training.settings import Settings
from tests.benchmarks.image_records import finished

TINY = [
    "--task",
    "tests.tune.tiny:build",
    "--epochs",
    "4",
    "--set",
    "batch_size=16",
    "--set",
    "warmup=1",
    "--set",
    "lr=0.1",
    "--threads",
    "1",
]
CONFIGS = Path(__file__).parents[2] / "configs"


def run(folder, *more):
    images.main([*TINY, "--out", str(folder), *more])


def read(folder, stem="delta-stn-s0"):
    return json.loads((folder / f"{stem}.json").read_text())


def without_seconds(record):
    return [{k: v for k, v in point.items() if not k.startswith("seconds")} for point in record["curve"]]


@pytest.mark.parametrize("task", images.PAPER)
def test_settings_agree_with_the_committed_configuration(task):
    config = yaml.safe_load((CONFIGS / f"{task.replace('-', '_')}.yaml").read_text())["train"]
    epochs, settings = images.PAPER[task]
    assert epochs == config["epochs"]
    default = Settings(preset="paper")
    assert config["preset"] == images.configuration(task, "delta-stn", epochs, 0, {})["preset"] == "paper"
    for name in {*config, *settings} - {"method", "epochs", "preset"}:
        assert settings.get(name, getattr(default, name)) == config.get(name, getattr(default, name)), name


def test_a_shorter_run_decays_after_the_same_share_of_its_epochs():
    config = images.configuration("cifar10-alexnet", "stn", 20, 3, {"lr": 0.1})
    assert config["schedule"] == {"name": "step", "step_size": 6, "gamma": 0.2}
    assert (config["lr"], config["epochs"], config["seed"]) == (0.1, 20, 3)
    assert images.PAPER["cifar10-alexnet"][1]["schedule"]["step_size"] == 60


def test_interrupted_runs_equal_an_uninterrupted_run(tmp_path, capsys):
    run(tmp_path / "whole")
    for _ in range(3):
        with pytest.raises(SystemExit) as left:
            run(tmp_path / "pieces", "--minutes", "0")
        assert left.value.code == images.UNFINISHED
    assert (tmp_path / "pieces" / "delta-stn-s0.pt").exists()
    run(tmp_path / "pieces", "--minutes", "0")
    whole, pieces = read(tmp_path / "whole"), read(tmp_path / "pieces")
    assert without_seconds(whole) == without_seconds(pieces)
    assert whole["done"]
    assert pieces["done"]
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == ["delta-stn-s0.json"]
    assert "epoch 4/4" in capsys.readouterr().out


def test_a_piece_ends_before_its_time_is_up_if_one_more_report_would_pass_it(tmp_path, monkeypatch, capsys):
    now, step = [0.0], images.rd.SelfTuner.step

    def minute(tuner):
        now[0] += 60.0
        return step(tuner)

    monkeypatch.setattr(images.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(images.rd.SelfTuner, "step", minute)
    with pytest.raises(SystemExit):
        run(tmp_path, "--minutes", "2.5")
    assert len(read(tmp_path)["curve"]) == 2  # a third report would come after 3 minutes
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(tmp_path, "--minutes", "0.5")
    assert "a report takes 1.0 minutes" in capsys.readouterr().out


def test_unknown_options_are_refused(tmp_path, capsys):
    for change in ("respones_fraction=0.25", "imagse=10000", "flip=0.5"):
        with pytest.raises(SystemExit):
            run(tmp_path, "--set", change)
        key = change.split("=")[0]
        assert f"`--set {key}` must be an option of `Settings` or an option that" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_vgg16_has_a_different_entropy_weight_for_stn():
    weights = {m: images.configuration("cifar10-vgg16", m, 200, 0, {})["entropy_weight"] for m in ("stn", "delta-stn")}
    assert weights == {"stn": 1e-3, "delta-stn": 1e-4}
    assert images.configuration("cifar10-vgg16", "stn", 200, 0, {"entropy_weight": 0.1})["entropy_weight"] == 0.1


def test_a_run_that_is_killed_between_writing_its_two_files_has_every_epoch(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, "--minutes", "0")
    early = (tmp_path / "delta-stn-s0.json").read_text()
    with pytest.raises(SystemExit):
        run(tmp_path, "--minutes", "0")
    (tmp_path / "delta-stn-s0.json").write_text(early)
    run(tmp_path)
    assert [point["epoch"] for point in read(tmp_path)["curve"]] == [1, 2, 3, 4]


def test_a_finished_run_is_not_changed(tmp_path, capsys):
    run(tmp_path)
    before = read(tmp_path)
    capsys.readouterr()
    run(tmp_path)
    assert read(tmp_path) == before
    assert not capsys.readouterr().out


def test_files_of_another_configuration_are_refused(tmp_path, capsys):
    run(tmp_path)
    with pytest.raises(SystemExit):
        run(tmp_path, "--set", "hyper_lr=0.5")
    assert "got a different hyper_lr; set another `--label`" in capsys.readouterr().err


def test_record_has_configuration_machine_and_curve(tmp_path):
    run(tmp_path, "--label", "mine", "--seed", "2")
    record = read(tmp_path, "mine-s2")
    assert record["config"]["batch_size"] == 16
    assert record["hardware"] == "cpu"
    assert {"python", "torch", "ray_deltastn", "threads"} <= record.keys()
    assert {"valid_loss", "test_accuracy", "hyperparameters/dropout", "scale/decay", "seconds/train"} <= record[
        "curve"
    ][0].keys()


def test_fixed_follows_the_schedule_of_another_run(tmp_path):
    run(tmp_path, "--set", "hyper_lr=0.2")
    found = [point["hyperparameters/dropout"] for point in read(tmp_path)["curve"]]
    assert len(set(found)) == 4
    for form in images.FORMS:
        run(
            tmp_path,
            "--method",
            "fixed",
            "--label",
            form,
            "--schedule-of",
            str(tmp_path / "delta-stn-s0.json"),
            "--schedule-form",
            form,
        )
    used = {
        form: [p["hyperparameters/dropout"] for p in read(tmp_path, f"{form}-s0")["curve"]] for form in images.FORMS
    }
    assert used["schedule"] == pytest.approx(found, rel=1e-5)
    assert used["final"] == pytest.approx([found[-1]] * 4, rel=1e-5)


@pytest.mark.parametrize("text", ["images", "=3"])
def test_changes_need_a_key_and_a_value(text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--set", text)
    assert f"must be KEY=VALUE, got '{text}'" in capsys.readouterr().err


def test_table_is_at_the_best_validation_epoch():
    records = [
        finished("a", 0, [3.0, 1.0, 2.0], [3.5, 1.5, 0.5]),
        finished("a", 1, [3.0, 2.0, 2.5], [3.5, 2.5, 0.5]),
        finished("b", 0, [1.0, None, None], [2.0, None, None]),
    ]
    a, b = sorted(images_report.summarise(records), key=lambda entry: entry["label"])
    assert (a["n"], a["seeds"]) == (2, [0, 1])
    assert a["best_valid_loss"] == {"mean": 1.5, "std": pytest.approx(math.sqrt(0.5), rel=1e-5)}
    assert a["test_loss_there"]["mean"] == 2.0
    assert a["final_test_loss"]["mean"] == 0.5
    assert (a["valid_accuracy_there"]["mean"], a["test_accuracy_there"]["mean"]) == (0.925, 0.8)
    assert (a["final_valid_accuracy"]["mean"], a["final_test_accuracy"]["mean"]) == (0.8875, 0.95)
    assert a["seconds"]["mean"] == 5.0
    assert b["best_valid_loss"] == {"mean": 1.0, "std": None}
    assert b["final_valid_loss"]["mean"] is None
    text = images_report.table([b, a])
    assert text.index("| b | 1 | 1.0000 | 2.0000 |") < text.index("| a | 2 | 1.5000 ± 0.7071 |")
    assert "diverged" in text


def test_best_run_of_a_random_search_counts():
    records = []
    for seed, losses in ((0, (3.0, 1.0, 2.0)), (1, (5.0, 4.0, 6.0)), (2, (0.1,))):  # the last search is not complete
        for i, loss in enumerate(losses):
            record = finished(f"random-{i}", seed, [loss, loss + 1], [1.0, 1.0])
            record["config"]["hyperparameters"] = {"dropout": 0.1 * i}
            records.append(record)
    records.reverse()  # as in sorted file names, where random-10 comes before random-9
    records += [finished("a", seed, [2.0, 3.0], [1.0, 1.0]) for seed in (0, 1)]
    entries = {entry["label"]: entry for entry in images_report.summarise(records)}
    assert set(entries) == {"random-best-of-3", "a"}
    found = entries["random-best-of-3"]
    assert (found["n"], found["seeds"]) == (2, [0, 1])
    assert found["best_valid_loss"]["mean"] == 2.5
    assert [run["drawn"] for run in found["runs"]] == [[3.0, 1.0, 2.0], [5.0, 4.0, 6.0]]
    assert [run["hyperparameters"] for run in found["runs"]] == [{"dropout": 0.1}, {"dropout": 0.1}]
    lines = images_report.paired(list(entries.values()), "a")
    assert lines == [
        "random-best-of-3 − a, 2 seeds: best validation loss +0.5000 ± 1.5000, final validation loss +0.5000 ± 1.5000, "
        "test loss at the best epoch +0.0000 ± 0.0000"
    ]
    with pytest.raises(ValueError, match=r"`--against` must be one of .*, got 'b'"):
        images_report.paired(list(entries.values()), "b")


@pytest.mark.parametrize("epochs", [1, 7, 60, 300])
def test_thinned_curve_ends_with_the_run(epochs):
    curve = finished("a", 0, [float(epochs - i) for i in range(epochs)], [1.0] * epochs)["curve"]
    thinned = images_report.thin(curve)
    assert thinned["epoch"][-1] == epochs
    assert len(thinned["epoch"]) == min(epochs, images_report.POINTS)
    assert thinned["best_valid_loss"] == thinned["valid_loss"]


def test_report_of_real_runs(tmp_path, capsys):
    for seed in ("0", "1"):
        run(tmp_path / "runs", "--seed", seed)
        run(tmp_path / "runs", "--seed", seed, "--method", "fixed")
    with pytest.raises(SystemExit):
        run(tmp_path / "runs", "--seed", "2", "--minutes", "0")
    capsys.readouterr()
    images_report.main([str(tmp_path / "runs"), "--json", str(tmp_path / "record.json"), "--plot", str(tmp_path)])
    out = capsys.readouterr().out
    assert "left out because it is not finished: delta-stn-s2.json" in out
    assert {entry["label"]: entry["n"] for entry in json.loads((tmp_path / "record.json").read_text())} == {
        "delta-stn": 2,
        "fixed": 2,
    }
    for name in ("loss.png", "schedules.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_first_limits_runs_to_fewer_epochs(tmp_path):
    long = finished("a", 0, [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]) | {"done": False}
    short = finished("b", 0, [3.0], [3.0]) | {"done": False}
    for record in (long, short):
        (tmp_path / f"{record['label']}-s0.json").write_text(json.dumps(record))
    records, unfinished = images_report.load(tmp_path, 2)
    assert unfinished == ["b-s0.json"]
    (entry,) = images_report.summarise(records)
    assert (entry["best_valid_loss"]["mean"], entry["first_epochs"]) == (2.0, 2)
    with pytest.raises(FileNotFoundError):
        images_report.load(tmp_path)


def several_an_epoch():
    record = finished("a", 0, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [1.0] * 6)
    for point, epoch in zip(record["curve"], (0, 1, 1, 2, 2, 4), strict=True):
        point["epoch"] = epoch
    return record


def test_an_epoch_may_have_several_reports_or_none(tmp_path):
    record = several_an_epoch()
    assert [point["valid_loss"] for point in images.epoch_ends(record["curve"])] == [5.0, 3.0, 1.0, 1.0]
    (tmp_path / "a-s0.json").write_text(json.dumps(record))
    for first, left in ((1, [6.0, 5.0]), (2, [6.0, 5.0, 4.0, 3.0]), (4, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])):
        ((found,), _) = images_report.load(tmp_path, first)
        assert [point["valid_loss"] for point in found["curve"]] == left


def test_a_record_shorter_than_an_epoch_is_refused_as_a_schedule():
    record = several_an_epoch()
    del record["curve"][1:]
    space = rd.HyperSpace(p=rd.Bounded(0.1))
    with pytest.raises(
        ValueError, match="`--schedule-of` must be a record of at least one epoch, got a shorter record"
    ):
        images.schedule_of(record, "schedule", space)


def test_pictures_with_a_seed_that_ended_early(tmp_path, monkeypatch):
    entries = images_report.summarise(
        [finished("a", seed, [3.0, 2.0, 1.0][:length], [1.0] * length) for seed, length in ((0, 3), (1, 3), (2, 2))]
    )
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda self, x, y, *style, **how: drawn.append((list(x), list(y), *style))
    )
    for path in images_report.plot(entries, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert drawn[:2] == [([1, 2], [3.0, 2.0], ":"), ([1, 2, 3], [3.0, 2.0, 1.0])]


def test_report_of_an_empty_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        images_report.main([str(tmp_path)])
    assert "must contain finished records of `benchmarks.images`, got none" in capsys.readouterr().err


def test_schedule_runs_are_named_after_their_form_and_continue_only_with_equal_values(tmp_path, refusal):
    run(tmp_path)
    follow = ["--method", "fixed", "--schedule-of", str(tmp_path / "delta-stn-s0.json"), "--schedule-form"]
    for form in images.FORMS:
        run(tmp_path, *follow, form)
    for form in images.FORMS:
        record = read(tmp_path, f"fixed-{form}-s0")
        assert (record["schedule_of"], record["schedule_form"]) == ("delta-stn-s0", form)
        run(tmp_path, *follow, form)

    def refused(*more):
        return refusal(images.main, *TINY, "--out", str(tmp_path), *more)

    assert "got a different schedule_form, schedule_sha256;" in refused(*follow, "final", "--label", "fixed-schedule")
    assert "got a different schedule_of, schedule_form, schedule_sha256;" in refused(
        "--method", "fixed", "--label", "fixed-schedule"
    )
    other = read(tmp_path)
    other["curve"][-1]["hyperparameters/dropout"] += 0.01
    (tmp_path / "delta-stn-s0.json").write_text(json.dumps(other))
    assert "got a different schedule_sha256;" in refused(*follow, "final")
    (tmp_path / "none.json").write_text('{"curve": []}')
    follow[3] = str(tmp_path / "none.json")
    assert "must be a record of a run that tuned dropout, decay, got another record" in refused(*follow, "final")


def test_a_run_without_schedule_has_no_schedule_keys_and_can_continue(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, "--minutes", "0")
    assert not [key for key in read(tmp_path) if key.startswith("schedule")]
    run(tmp_path)
    assert read(tmp_path)["done"]


@pytest.mark.parametrize("key", ["method", "task", "seed", "epochs"])
def test_set_does_not_replace_flags(key, tmp_path, refusal):
    said = refusal(images.main, "--out", str(tmp_path), "--set", f"{key}=3")
    assert said == f"argument --set: must not set {key}, use the flag `--{key}`, got '{key}=3'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task nothing", "`task` must be one of"),
        ("--epochs 0", "argument --epochs: must be a whole number >= 1, got '0'"),
        ("--threads 0", "argument --threads: must be a whole number >= 1, got '0'"),
        ("--schedule-of nowhere.json --method fixed", "nowhere.json"),
        (
            "--schedule-of some.json --method fixed --set hyperparameters={}",
            "only one of `--schedule-of`, `--draw`",
        ),
        ("--draw 1 --method fixed --schedule-of some.json", "may set the hyperparameters, got several of them"),
        ("--draw 1 --method delta-stn", "`hyperparameters`"),
    ],
)
def test_wrong_arguments_end_with_one_error_line(arguments, message, tmp_path, refusal):
    assert message in refusal(images.main, *TINY, "--out", str(tmp_path), *arguments.split())


def test_proposals_are_within_their_ranges_and_reproducible():
    space = rd.HyperSpace(
        rate=rd.Bounded(0.05, low=0.0, high=0.95, search=(0.0, 0.85)),
        holes=rd.Integer(1, low=0, high=4),
        decay=rd.Positive(1e-4, search=(1e-6, 1e-2)),
    )
    drawn = [images.draw(space, number) for number in range(200)]
    assert drawn == [images.draw(space, number) for number in range(200)]
    column = {name: torch.tensor([values[name] for values in drawn]) for name in space.names}
    assert 0 <= column["rate"].min() < 0.05
    assert 0.8 < column["rate"].max() <= 0.85
    assert column["holes"].unique().tolist() == [0, 1, 2, 3, 4]
    assert 1e-6 <= column["decay"].min() < 2e-6
    assert 5e-3 < column["decay"].max() <= 1e-2
    assert 0.4 < (column["decay"] < 1e-4).float().mean() < 0.6  # uniform in the logarithm


def test_draw_trains_fixed_with_its_proposal(tmp_path):
    run(tmp_path, "--method", "fixed", "--draw", "3")
    record = read(tmp_path, "random-3-s0")
    values = record["config"]["hyperparameters"]
    space = images.build_task(record["config"]).space
    assert values == images.draw(space, 3)
    assert record["curve"][-1]["hyperparameters/dropout"] == pytest.approx(values["dropout"], rel=1e-3)
    run(tmp_path, "--method", "fixed", "--draw", "3")  # a finished run is not changed
