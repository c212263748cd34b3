"""SIGTERM stops a command as Ctrl-C does: one line, the state saved, exit status 143."""

import os
import signal
import threading

import pytest

from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.results import read_results
from ray_deltastn.tune.stopping import Terminated, terminable
from tests.tune.commands import command, wait_for
from tests.tune.tiny import finish

STOPPED = "ray-deltastn: stopped; continue with --resume"
EXPERIMENT = """
task: tests.tune.tiny:build
train: {epochs: 16, batch_size: 4, warmup: 1, hyper_lr: 0.05, seed: 3}
options: {slow: 0.002}
search: {lr: "loguniform(0.01, 0.3)"}
tune: {searcher: bo, num_samples: 3, checkpoint_every: 2, max_concurrent: 2}
"""
COMPARISON = """
task: tests.tune.tiny:build
train: {epochs: 8, batch_size: 4, warmup: 1}
options: {slow: 0.002}
search: {lr: "loguniform(0.01, 0.3)"}
single: {lr: 0.1}
trials: 2
"""


@pytest.fixture
def before():
    """The handlers of this process, which must be the same after a test."""
    own = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield handlers
    found = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, own)
    assert found == handlers


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_raises_where_ctrl_c_would(before):
    with pytest.raises(Terminated), terminable():
        terminate()


def test_ctrl_c_stays_ctrl_c(before):
    with pytest.raises(KeyboardInterrupt) as caught, terminable():
        os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(caught.value, Terminated)


def test_nothing_is_raised_without_a_signal(before):
    with terminable() as rearm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does, with a handler of its own
        rearm()
        assert callable(signal.getsignal(signal.SIGTERM))


def test_the_handler_of_ctrl_c_acts_on_sigterm_once(before):
    calls = []

    def inner():
        with terminable():
            signal.signal(signal.SIGINT, lambda number, frame: calls.append("saved"))  # as Tune does
            terminate()
            terminate()
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        calls.append("the next experiment")

    with pytest.raises(Terminated), terminable():
        inner()
    assert calls == ["saved"]


def test_sigterm_acts_in_a_background_job_without_ctrl_c(before):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(Terminated), terminable():
        terminate()
    signal.signal(signal.SIGINT, before[signal.SIGINT])


def test_an_error_after_sigterm_stays_an_error(before):
    def inner():
        signal.signal(signal.SIGINT, lambda number, frame: None)
        terminate()
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        raise OSError("full")

    with pytest.raises(OSError, match="full"), terminable():
        inner()


def test_another_thread_changes_no_handler(before):
    found = []

    def run():
        with terminable() as rearm:
            rearm()
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before[signal.SIGTERM]]


def stop(arguments, out, **options):
    """Start a command, end it by SIGTERM once a trial has a checkpoint, and return its status and its errors."""
    process = command(*arguments, start_new_session=True)
    wait_for(lambda: list(out.rglob("checkpoint_*/deltastn.pt")), process)
    if options.get("group"):
        os.killpg(process.pid, signal.SIGTERM)  # Ray's processes too
    else:
        process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["command", "all-processes"])
def test_a_run_ended_by_sigterm_loses_nothing(tmp_path, group):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(EXPERIMENT)
    status, error = stop(("run", config, "--out", out), out, group=group)
    assert (status, error.splitlines()[-1]) == (143, STOPPED)
    assert group or error.splitlines() == [STOPPED]
    assert not (out / "results.csv").exists()
    seen = {name: reports[-1].iteration for name, reports in read_log(out).items()}
    process = command("run", config, "--out", out, "--resume")
    _, error = process.communicate()
    assert process.returncode == 0, error
    results = read_results(out / "results.csv")
    assert results["trial_id"].nunique() == 3
    if not group:
        assert set(seen) <= set(results["trial_id"])
    for name, trial in results.groupby("trial_id"):
        assert trial["training_iteration"].tolist() == list(range(1, 17))
        alone = finish(DeltaSTNTrainable(last_of_each(read_log(out)[str(name)])[-1].config))
        assert trial["valid_loss"].tolist() == [report["valid_loss"] for report in alone]


@pytest.mark.ray
@pytest.mark.slow
def test_a_comparison_ended_by_sigterm_starts_no_other_experiment_and_resumes(tmp_path):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(COMPARISON)
    arguments = ("compare", config, "--out", out, "--methods", "fixed,random", "--seeds", "1")
    status, error = stop(arguments, out)
    assert (status, error.splitlines()) == (143, [STOPPED])
    assert len(list((out / "runs").iterdir())) == 1
    process = command(*arguments, "--resume")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert read_results(out / "results.csv").groupby("method").size().to_dict() == {"fixed": 16, "random": 16}
