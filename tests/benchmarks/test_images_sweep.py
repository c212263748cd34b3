"""Results against an option: grouping of runs, tables and pictures."""

import json

import pytest

from benchmarks import images_sweep
from tests.benchmarks.image_records import finished


def swept(method, seed, valid, **config):
    record = finished("some label", seed, valid, [v + 1 for v in valid])
    record["config"] |= {"method": method, "task": "some task", **config}
    return record


def test_runs_with_equal_method_and_option_are_seeds_of_one_setting():
    records = [
        swept("stn", 0, [3.0, 1.0], entropy_weight=1e-2),
        swept("stn", 1, [3.0, 2.0], entropy_weight=0.01),
        swept("stn", 0, [4.0, 5.0]),  # the default, 1e-3
        swept("delta-stn", 0, [0.5, 0.6], entropy_weight=1e-1),
    ]
    entries = images_sweep.sweep(records, ["entropy_weight"])
    assert [(e["method"], e["value"], e["n"], e["best_valid_loss"]["mean"]) for e in entries] == [
        ("delta-stn", 0.1, 1, 0.5),
        ("stn", 0.001, 1, 4.0),
        ("stn", 0.01, 2, 1.5),
    ]
    assert entries[2]["runs"][0]["curve"] == {"epoch": [1, 2], "hyperparameters/p": [0.1, 0.2]}
    assert "| stn | 0.01 | 2 | 1.5000 ± 0.7071 | 2.5000 ± 0.7071 |" in images_sweep.table(entries, ["entropy_weight"])


def test_runs_that_differ_in_another_option_are_refused():
    runs = [swept("stn", 0, [1.0], perturbation_scale=1), swept("stn", 1, [1.0], perturbation_scale=2)]
    with pytest.raises(ValueError, match=r"got different values of perturbation_scale in stn, lr 0\.01"):
        images_sweep.sweep(runs, ["lr"])
    with pytest.raises(ValueError, match=r"must differ in their seed only, got the seeds \[0, 0\]"):
        images_sweep.sweep([swept("stn", 0, [1.0]), swept("stn", 0, [2.0])], ["lr"])
    with pytest.raises(ValueError, match="all runs must have the same task, got other, some task"):
        images_sweep.sweep([swept("stn", 0, [1.0]), swept("stn", 1, [2.0], task="other")], ["lr"])


def test_nested_options_and_several_options():
    options = {"initial_values": {"p": 0.3}, "train_interval": 2}
    config = {**options, "method": "stn", "seed": 4}
    assert images_sweep.option_of(config, "initial_values.p") == 0.3
    entries = images_sweep.sweep([swept("stn", 0, [1.0], **options)], ["train_interval", "valid_interval"])
    assert entries[0]["value"] == [2, 1]
    assert "| stn | 2, 1 |" in images_sweep.table(entries, ["train_interval", "valid_interval"])
    for name in ("initial_values.q", "initial_values", "nothing", "train_interval.p", "hyperparameters"):
        with pytest.raises(ValueError, match=rf"number or a name .* got '{name}' with .* in 'stn', seed 4"):
            images_sweep.option_of(config, name)


def test_options_that_are_not_set_have_the_value_of_the_preset():
    config = {"method": "delta-stn", "seed": 0}
    assert images_sweep.option_of(config, "response_fraction") == 1.0
    assert images_sweep.option_of(config, "hyper_lr") == 0.01  # records that name no preset are of `paper`
    assert images_sweep.option_of({**config, "preset": "recommended"}, "hyper_lr") == "auto"
    assert images_sweep.option_of(config, "warmup_steps") == "none"
    assert images_sweep.option_of({**config, "batch_size": 64}, "valid_batch_size") == 64
    assert images_sweep.option_of({**config, "lr": 0.2, "response_fraction": 0.5}, "response_lr") == 0.1
    runs = [
        swept("delta-stn", 0, [1.0]),
        swept("delta-stn", 1, [1.0], preset="recommended"),
        swept("delta-stn", 2, [1.0], hyper_lr=0.05),
    ]
    assert [entry["value"] for entry in images_sweep.sweep(runs, ["hyper_lr"])] == [0.01, 0.05, "auto"]


@pytest.mark.parametrize(
    ("values", "places", "logarithmic"),
    [
        ([0.1, 1, 10], [0.1, 1.0, 10.0], True),
        ([0, 1, 10], [0.0, 1.0, 10.0], False),
        ([0, 1e-4, 1e-3, 1e-2], [0.0, 1.0, 2.0, 3.0], False),
        ([1, 2], [1.0, 2.0], False),
        ([3], [3.0], False),
        ([0.01, "auto"], [0.0, 1.0], False),
        ([[1, 1], [5, 1]], [0.0, 1.0], False),
    ],
)
def test_axis_has_numbers_or_categories(values, places, logarithmic):
    assert images_sweep._places(values) == (places, logarithmic)


def test_command_writes_record_and_pictures(tmp_path, capsys):
    for i, (method, scale) in enumerate([("stn", 0.1), ("stn", 1.0), ("stn", 10.0), ("delta-stn", 1.0)]):
        valid = [2.0, None] if scale == 10.0 else [2.0, 1.0]
        record = swept(method, 0, [1.0, 1.0], perturbation_scale=scale)
        for point, loss in zip(record["curve"], valid, strict=True):
            point["valid_loss"] = loss
            point["hyperparameters/p"] = None if loss is None else point["hyperparameters/p"]
        (tmp_path / f"{i}-s0.json").write_text(json.dumps(record))
    files = {name: tmp_path / name for name in ("sweep.json", "losses.png", "schedules.png")}
    flags = [
        word
        for flag, path in zip(("--json", "--plot", "--schedules"), files.values(), strict=True)
        for word in (flag, str(path))
    ]
    images_sweep.main([str(tmp_path), "--option", "perturbation_scale", *flags])
    assert "| stn | 10 | 1 | 2.0000 |" in capsys.readouterr().out
    assert [entry["value"] for entry in json.loads(files["sweep.json"].read_text())] == [1.0, 0.1, 1.0, 10.0]
    for name in ("losses.png", "schedules.png"):
        assert files[name].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("option", "message"), [("nothing", "got 'nothing'"), ("lr", "must contain finished records")])
def test_wrong_options_and_empty_folders_end_with_one_error_line(option, message, tmp_path, refusal):
    if option == "nothing":
        (tmp_path / "a-s0.json").write_text(json.dumps(swept("stn", 0, [1.0])))
    assert message in refusal(images_sweep.main, str(tmp_path), "--option", option)
