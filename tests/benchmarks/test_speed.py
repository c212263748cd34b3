"""Rows of the speed benchmark, and the limits that the committed record keeps."""

import json
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import ray_deltastn as rd
from benchmarks import speed
from ray_deltastn.methods import get_method

ROW = {
    "net",
    "method",
    "response_fraction",
    "batch",
    "threads",
    "flop_ratio",
    "cpu_time_ratio",
    "wall_time_ratio",
    "saved_memory_ratio",
    "precision",
    "graph",
    "captured",
    "channels_last",
    "hardware",
    "images_per_second",
    "plain_images_per_second",
    "peak_memory_ratio",
    "peak_memory_bytes",
    "plain_peak_memory_bytes",
    "torch",
}


@pytest.mark.slow
def test_rows_have_all_keys_and_keep_the_limits(tmp_path):
    file = tmp_path / "new" / "speed.json"
    speed.main(
        [
            "--nets",
            "mlp",
            "--methods",
            "stn,delta-stn",
            "--response-fraction",
            "0.25",
            "--pairs",
            "1",
            "--json",
            str(file),
        ]
    )
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows] == ["stn", "delta-stn"]
    assert all(row.keys() >= ROW for row in rows)
    assert [row["response_fraction"] for row in rows] == [
        1.0,
        0.25,
    ]  # stn trains Θ and w₀ together, on whole minibatches
    assert all(row["batch"] == 128 and row["threads"] == 1 for row in rows)
    assert all(row["hardware"] == "cpu" and row["tuned"] == "dropout" for row in rows)
    assert rows[1]["flop_ratio"] <= 1.7
    assert all(row["saved_memory_ratio"] <= 2.5 for row in rows)
    assert all(row["cpu_time_ratio"] > 0 and row["wall_time_ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_options_apply_to_the_method_and_to_plain_training(tmp_path, monkeypatch):
    cycles, make = [], speed.Cycle.__init__

    def noted(cycle, *arguments, **options):
        make(cycle, *arguments, **options)
        cycles.append(cycle.tuner.settings)

    monkeypatch.setattr(speed.Cycle, "__init__", noted)
    speed.main(
        [
            "--nets",
            "mlp",
            "--methods",
            "delta-stn",
            "--pairs",
            "1",
            "--batch",
            "4",
            "--graph",
            "on",
            "--channels-last",
            "--precision",
            "bf16",
            "--json",
            str(tmp_path / "speed.json"),
        ]
    )
    (row,) = json.loads((tmp_path / "speed.json").read_text())
    assert row["captured"]
    assert (row["graph"], row["channels_last"], row["precision"]) == ("on", True, "bf16")
    assert row["images_per_second"] > 0 < row["plain_images_per_second"]
    assert all((s.channels_last, s.precision) == (True, "bf16") for s in cycles)
    assert [s.graph for s in cycles] == ["off", "off", "on", "on"]
    assert [s.method for s in cycles] == ["fixed", "delta-stn"] * 2


def test_committed_record_has_every_network_within_the_limits():
    rows = json.loads((speed.Path(speed.__file__).parent / "records" / "speed.json").read_text())
    assert {row["net"] for row in rows} == set(speed.NETS)
    for row in (row for row in rows if get_method(row["method"]).responds):
        # A decoder with the weight of the embedding responds per column, which takes one more product of matrices.
        whole = 3.02 if row["net"] == "language-tied" else 3.0
        assert row["flop_ratio"] <= (whole if row["response_fraction"] == 1.0 else 1.7)
        assert row["saved_memory_ratio"] <= 2.5


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least", "most"), [("ift", 8, 60), ("unrolled", 2.5, 4.5)])
def test_methods_without_response_tune_a_weight_decay(method, least, most):
    # ift: 20 products with the Hessian of five minibatches per 5 train steps. unrolled: the same 5 steps again, and a
    # backward pass through them.
    torch.set_num_threads(1)
    row = speed.measure("mlp", method, 1.0, 1, batch=4)
    assert (row["tuned"], row["response_fraction"]) == ("decay", 1.0)
    assert least < row["flop_ratio"] < most
    plain, tuned = (speed.Cycle("mlp", of, 1.0, 4, tuned="decay") for of in ("fixed", method))
    for cycle in (plain, tuned):
        assert cycle.tuner.space.names == ("decay",)
        assert not any(isinstance(m, rd.Dropout) for m in cycle.tuner.model.modules())
        assert [m.p for m in cycle.tuner.model.modules() if isinstance(m, nn.Dropout)] == [speed.RATE] * 3
    lam = tuned.tuner.space.lam.detach().clone()
    tuned()
    assert len(tuned.tuner.algorithm.window) == speed.TRAIN_INTERVAL
    assert (tuned.tuner.space.lam != lam).all()


def test_cycles_run_in_their_precision(monkeypatch):
    cycle, events = speed.Cycle("mlp", "delta-stn", 1.0, 2), []

    @contextmanager
    def arithmetic():
        events.append("in")
        yield
        events.append("out")

    monkeypatch.setattr(cycle.tuner, "arithmetic", arithmetic)
    for name in ("train_step", "hyper_step"):
        monkeypatch.setattr(cycle.tuner.algorithm, name, lambda *_, name=name: events.append(name))
    cycle()
    train, hyper = ["train_step"] * speed.TRAIN_INTERVAL, ["hyper_step"] * speed.VALID_INTERVAL
    assert events == ["in", *train, *hyper, "out"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hardware_is_the_name_of_the_gpu():
    assert speed.hardware(torch.device("cuda")) == torch.cuda.get_device_name()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods stn,fxed", "`method` must be one of"),
        ("--nets mpl", "`--nets` must be names from mlp,"),
        ("--threads 0", "argument --threads: must be a whole number >= 1, got '0'"),
        ("--pairs 0", "argument --pairs: must be a whole number >= 1, got '0'"),
        ("--batch 0", "argument --batch: must be a whole number >= 1, got '0'"),
        ("--response-fraction 1.5", "argument --response-fraction: must be a finite number > 0 and <= 1, got '1.5'"),
        ("--json {folder}", "`{folder}` must be a file to write, got a folder"),
    ],
)
def test_wrong_arguments_end_with_one_error_line(arguments, message, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *_, **__: pytest.fail("a measurement ran"))
    given = [word.format(folder=tmp_path) for word in arguments.split()]
    assert message.format(folder=tmp_path) in refusal(speed.main, *given)


def test_warnings_about_captures_are_shown():
    with warnings.catch_warnings(record=True) as shown:
        speed.quiet()
        for text in (
            "`hyper steps × mean hyper_lr >= 4` should hold",
            "`graph` is off: train steps cannot be captured",
        ):
            warnings.warn(text, rd.RunWarning, stacklevel=1)
    assert [str(warning.message)[:14] for warning in shown] == ["`graph` is off"]
