"""A trial saves and restores bit-identically, can be reused, and reports faults."""

import gc
import math
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pyarrow import fs
from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX
from ray.tune.utils import validate_save_restore

import ray_deltastn as rd
from ray_deltastn import DeltaSTNTrainable
from tests.tune.tiny import CONFIG, finish, without_times

DAMAGED = "warning/damaged_checkpoints"


def stored(trial, folder, filesystem=None):
    """The trial, with the storage that Tune gives a real one."""
    trial._storage = SimpleNamespace(
        trial_fs_path=str(folder),
        storage_filesystem=filesystem or fs.LocalFileSystem(),
        persist_artifacts=lambda *_, **__: None,
    )
    return trial


@pytest.mark.parametrize("method", ["fixed", "stn", "delta-stn"])
@pytest.mark.parametrize("stop", [1, 3])
def test_saved_and_restored_trial_ends_bit_identically(method, stop, tmp_path):
    config = {**CONFIG, "method": method, "lr": 0.01}
    unbroken = finish(DeltaSTNTrainable(config))
    broken = DeltaSTNTrainable(config)
    for _ in range(stop):
        broken.train()
    broken.save(str(tmp_path))
    torch.manual_seed(99)
    resumed = DeltaSTNTrainable(config)
    resumed.restore(str(tmp_path))
    assert finish(resumed) == unbroken[stop:]


def test_tunes_own_check_of_save_and_restore_passes(ray_cluster):
    assert validate_save_restore(DeltaSTNTrainable, config=CONFIG)


def test_every_report_has_the_keys_of_the_first_and_the_metric():
    trial = DeltaSTNTrainable(CONFIG)
    reports = [trial.train() for _ in range(5)]
    assert all(report.keys() == reports[0].keys() for report in reports)
    assert {"valid_loss", "best_valid_loss", "test_loss", "valid_accuracy"} <= reports[0].keys()
    assert [report["done"] for report in reports] == [False] * 4 + [True]


def test_time_between_steps_is_reported_and_saved_in_the_checkpoint(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def step(trial, before):
        now[0] += before
        return trial.train()["seconds/between"]

    trial = DeltaSTNTrainable(CONFIG)
    assert [step(trial, before=7.0), step(trial, before=2.0), step(trial, before=1.0)] == [0.0, 2.0, 3.0]
    trial.save(str(tmp_path))
    other = DeltaSTNTrainable(CONFIG)
    other.restore(str(tmp_path))
    assert [step(other, before=50.0), step(other, before=0.5)] == [3.0, 3.5]
    other.reset_config(CONFIG)
    assert step(other, before=9.0) == 0.0


def test_config_of_the_trial_takes_precedence_over_the_checkpoint(tmp_path):
    shared = {**CONFIG, "response_optimizer": "sgd"}
    donor = DeltaSTNTrainable({**shared, "schedule": {"name": "step", "step_size": 1, "gamma": 0.5}})
    donor.train()
    donor.train()
    donor.save(str(tmp_path))
    mutated = {**shared, "lr": 0.03, "momentum": 0.5, "hyper_lr": 0.2, "scale_lr": 0.4, "entropy_weight": 0.1}
    mutated["schedule"] = {"name": "step", "step_size": 1, "gamma": 0.5}
    trial = DeltaSTNTrainable(mutated)
    trial.restore(str(tmp_path))
    algorithm = trial.tuner.algorithm
    for optimizer in (algorithm.weights_optimizer, algorithm.response_optimizer):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * 0.25, rel=1e-12)
        assert optimizer.param_groups[0]["momentum"] == 0.5
    assert [group["lr"] for group in algorithm.hyper_optimizer.param_groups] == [0.2, 0.4]
    assert algorithm.options.entropy_weight == 0.1
    trial.train()
    assert algorithm.weights_optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * 0.125, rel=1e-12)


def test_a_reused_trial_gives_the_numbers_of_a_fresh_one(tmp_path):
    other = {**CONFIG, "lr": 0.03, "seed": 5, "width": 12, "method": "centered-stn"}
    fresh = DeltaSTNTrainable(other)
    expected = finish(fresh)
    reused = DeltaSTNTrainable(CONFIG)
    reused.train()
    assert reused.reset_config(other)
    assert finish(reused) == expected


def test_reset_then_load_continues_bit_identically(tmp_path):
    donor = DeltaSTNTrainable(CONFIG)
    donor.train()
    donor.train()
    donor.save(str(tmp_path))
    rest = finish(donor)
    reused = DeltaSTNTrainable({**CONFIG, "lr": 0.5, "seed": 9})
    reused.train()
    reused.reset_config(CONFIG)
    reused.restore(str(tmp_path))
    assert finish(reused) == rest


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_trial_with_a_damaged_checkpoint_continues_from_the_previous_one(damaged, tmp_path, caplog, monkeypatch):
    donor = DeltaSTNTrainable(CONFIG)
    expected = []
    for number in range(3):
        expected.append(without_times(donor.train()))
        donor.save(str(tmp_path / f"checkpoint_{number:06}"))
    expected += finish(donor)
    for number in range(3 - damaged, 3):
        state = tmp_path / f"checkpoint_{number:06}" / "deltastn.pt"
        state.write_bytes(state.read_bytes()[:1000])
    trial = stored(DeltaSTNTrainable(CONFIG), tmp_path)
    trial.restore(str(tmp_path / "checkpoint_000002"))
    assert f"continuing from 'checkpoint_{2 - damaged:06}'" in caplog.text
    assert trial.iteration == 3 - damaged
    reports = finish(trial)
    assert {report.pop(DAMAGED) for report in reports} == {damaged}
    assert all(report.pop(DAMAGED) == 0 for report in expected)
    assert reports == expected[3 - damaged :]
    # The trial saves the count in later checkpoints. A trial that copies its state starts at zero.
    trial._storage = None
    trial.save(str(tmp_path / "later"))
    for own, count in ((True, damaged), (False, 0)):
        heir = DeltaSTNTrainable(CONFIG)
        with monkeypatch.context() as patch:
            if not own:
                patch.setattr(DeltaSTNTrainable, "trial_id", "another")
            heir.restore(str(tmp_path / "later"))
        assert heir.train()[DAMAGED] == count


def test_a_damaged_checkpoint_elsewhere_is_replaced_by_one_of_the_trial_itself(tmp_path, monkeypatch):
    """Tune unpacks a checkpoint of remote storage to the temporary folder, beside those of other trials."""
    remote, unpacked = tmp_path / "remote", tmp_path / "unpacked"
    filesystem = fs.SubTreeFileSystem(str(remote), fs.LocalFileSystem())
    unpacked.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(unpacked))
    donor, other = DeltaSTNTrainable(CONFIG), DeltaSTNTrainable({**CONFIG, "seed": 9})
    expected = []
    for number in range(2):
        expected.append(without_times(donor.train()))
        donor.save(str(remote / "exp" / "trial" / f"checkpoint_{number:06}"))
    expected += finish(donor)
    (remote / "exp" / "trial" / "checkpoint_000001" / "deltastn.pt").write_bytes(b"torn")
    monkeypatch.setattr(DeltaSTNTrainable, "trial_id", property(lambda self: "b" if self is other else "default"))
    other.train()
    for name in ("checkpoint_000000", "checkpoint_tmp_0", "checkpoint_00"):
        other.save(str(unpacked / name))
    trial = stored(DeltaSTNTrainable(CONFIG), "exp/trial", filesystem)
    trial.restore(tune.Checkpoint("exp/trial/checkpoint_000001", filesystem))
    assert trial.iteration == 1
    rest = finish(trial)
    assert {report.pop(DAMAGED) for report in rest} == {1}
    assert all(report.pop(DAMAGED) == 0 for report in expected)
    assert rest == expected[1:]
    nothing = stored(DeltaSTNTrainable(CONFIG), "exp/nothing", filesystem)
    with pytest.raises(ValueError, match="must be a readable checkpoint"):
        nothing.restore(tune.Checkpoint("exp/trial/checkpoint_000001", filesystem))


def test_a_trial_with_remote_storage_continues_from_its_own_checkpoints(tmp_path):
    filesystem = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    donor = DeltaSTNTrainable(CONFIG)
    donor.train()
    donor.save(str(tmp_path / "exp" / "checkpoint_000000"))
    rest = finish(donor)
    assert finish(stored(DeltaSTNTrainable(CONFIG), "exp", filesystem)) == rest


def test_a_restarted_trial_continues_from_its_own_checkpoints(tmp_path, monkeypatch):
    donor = DeltaSTNTrainable(CONFIG)
    reports = []
    for number in range(3):
        reports.append(without_times(donor.train()))
        donor.save(str(tmp_path / f"checkpoint_{number:06}"))
    reports += finish(donor)
    trial = DeltaSTNTrainable(CONFIG)
    stored(trial, tmp_path)
    stranger = DeltaSTNTrainable(CONFIG)
    stranger._storage = trial._storage
    monkeypatch.setattr(DeltaSTNTrainable, "trial_id", property(lambda self: "b" if self is stranger else "default"))
    assert without_times(stranger.train()) == reports[0]
    (tmp_path / "checkpoint_000002" / "deltastn.pt").write_bytes(b"torn")
    rest = finish(trial)
    assert {report.pop(DAMAGED) for report in rest} == {1}
    assert {report.pop(DAMAGED) for report in reports} == {0}
    assert rest == reports[2:]
    assert trial.iteration == len(reports)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_raises_and_keeps_earlier_checkpoints(error, tmp_path, monkeypatch):
    trial = DeltaSTNTrainable(CONFIG)
    trial.train()
    trial.save(str(tmp_path / "checkpoint_000000"))
    expected = finish(trial)
    again = DeltaSTNTrainable(CONFIG)
    again.restore(str(tmp_path / "checkpoint_000000"))

    def full(state, path):
        Path(path).write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"must have room for a checkpoint, got \d+ MiB free: "):
            again.save(str(tmp_path / "checkpoint_000001"))
    assert not list(tmp_path.glob("checkpoint_000001/deltastn*"))
    assert finish(again) == expected


def test_an_error_names_the_damaged_checkpoint_if_none_is_readable(tmp_path):
    donor = DeltaSTNTrainable(CONFIG)
    for number in range(2):
        donor.train()
        donor.save(str(tmp_path / f"checkpoint_{number:06}"))
        (tmp_path / f"checkpoint_{number:06}" / "deltastn.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"checkpoint_000001/deltastn\.pt` must be a readable checkpoint, got: "):
        stored(DeltaSTNTrainable(CONFIG), tmp_path).restore(str(tmp_path / "checkpoint_000001"))


def test_reset_frees_the_old_model():
    trial = DeltaSTNTrainable(CONFIG)
    trial.train()
    old = weakref.ref(trial.tuner.model)
    trial.reset_config({**CONFIG, "lr": 0.2})
    gc.collect()
    assert old() is None


def test_a_trial_restored_from_a_finished_one_repeats_its_last_report(tmp_path):
    donor = DeltaSTNTrainable(CONFIG)
    last = finish(donor)[-1]
    donor.save(str(tmp_path))
    copy = DeltaSTNTrainable(CONFIG)
    copy.restore(str(tmp_path))
    report = copy.train()
    assert report["done"]
    assert without_times(report) == last


def test_a_diverged_trial_ends_as_finished_with_infinite_loss_and_a_reason():
    trial = DeltaSTNTrainable({**CONFIG, "fault": "nan"})
    reports = finish(trial)
    assert len(reports) < CONFIG["epochs"]
    assert reports[-1]["diverged"] is True
    assert reports[-1]["valid_loss"] == math.inf
    assert reports[-1]["stop_reason"].startswith("diverged: train_loss=nan")


@pytest.mark.parametrize("before", [0, 2])
def test_out_of_memory_ends_the_trial_with_advice_and_leaves_the_worker_usable(before, monkeypatch, tmp_path):
    trial = DeltaSTNTrainable(CONFIG)
    reports = [trial.train() for _ in range(before)]

    def full(x, y):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trial.tuner.algorithm, "train_step", full)
    monkeypatch.setattr(trial.tuner.objective, "predict", full)  # there is no memory for another pass either
    report = trial.train()
    assert report["done"]
    assert report["response_size"] == (reports[-1]["response_size"] if reports else 0.0)
    assert (report["valid_loss"], report["test_loss"], report["epoch"]) == (math.inf, math.inf, before)
    assert report["best_valid_loss"] == min([math.inf, *(r["valid_loss"] for r in reports)])
    assert report["stop_reason"].startswith("out of device memory: lower `batch_size`")
    assert report["stop_reason"].endswith("Tried to allocate 2.00 GiB.")
    trial.save(str(tmp_path))
    assert trial.reset_config(CONFIG)
    assert finish(trial) == finish(DeltaSTNTrainable(CONFIG))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("Tried to allocate 2 GiB."), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when")],
    ids=["torch", "cublas"],
)
def test_a_task_too_large_for_the_device_fails_with_advice(error, monkeypatch):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("ray_deltastn.tune.crew.SelfTuner", full)
    with pytest.raises(torch.OutOfMemoryError, match=f"lower `batch_size`, .*; {error}"):
        DeltaSTNTrainable(CONFIG)


def test_other_errors_of_a_step_stay_errors(monkeypatch):
    trial = DeltaSTNTrainable(CONFIG)

    def broken(x, y):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(trial.tuner.algorithm, "train_step", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trial.train()


@pytest.mark.parametrize(
    ("resources", "bundle"),
    [(None, {"CPU": 1.0}), ({"cpu": 3}, {"CPU": 3.0}), ({"cpu": 2, "gpu": 0.25}, {"CPU": 2.0, "GPU": 0.25})],
)
def test_resources_come_from_the_config(resources, bundle):
    config = CONFIG if resources is None else {**CONFIG, "resources": resources}
    assert DeltaSTNTrainable.default_resource_request(config).bundles == [bundle]


def test_a_misspelt_option_is_warned_about_with_the_right_name():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        DeltaSTNTrainable({**CONFIG, "hyper_lrr": 0.3})
    # If hyper_lr is given too, hyper_lrr is a key of the user's task.
    assert not [w for w in said if "did you mean" in str(w.message)]
    config = {key: value for key, value in CONFIG.items() if key != "hyper_lr"}
    with pytest.warns(rd.RunWarning, match="'hyper_lrr' is not an option of a trial; did you mean 'hyper_lr'"):
        DeltaSTNTrainable({**config, "hyper_lrr": 0.3})


def test_repeats_of_a_config_have_their_own_seeds_and_resume_bit_identically(tmp_path):
    alone = finish(DeltaSTNTrainable(CONFIG))
    repeats = [{**CONFIG, TRIAL_INDEX: index} for index in range(3)]
    runs = [finish(DeltaSTNTrainable(config)) for config in repeats]
    assert runs[0] == alone
    assert len({run[-1]["valid_loss"] for run in runs}) == 3
    broken = DeltaSTNTrainable(repeats[1])
    broken.train()
    broken.save(str(tmp_path))
    resumed = DeltaSTNTrainable(repeats[1])
    resumed.restore(str(tmp_path))
    assert finish(resumed) == runs[1][1:]
    assert resumed.reset_config(repeats[2])
    assert finish(resumed) == runs[2]


def test_a_repeat_seeds_the_initial_weights_and_tells_the_task():
    seeds = []

    def build(config):
        seeds.append(config["seed"])
        return CONFIG["task"](config)

    weights = []
    for index in (0, 1, 1):
        trial = DeltaSTNTrainable({**CONFIG, "task": build, TRIAL_INDEX: index})
        weights.append(torch.nn.utils.parameters_to_vector(trial.tuner.model.parameters()))
    assert seeds[0] == CONFIG["seed"]
    assert seeds[1] == seeds[2] != seeds[0]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("index", [-1, 0.5, "1", True])
def test_a_wrong_index_of_a_repeat_is_refused(index):
    with pytest.raises(ValueError, match=f"`{TRIAL_INDEX}` must be a whole number >= 0, got {index!r}"):
        DeltaSTNTrainable({**CONFIG, TRIAL_INDEX: index})
