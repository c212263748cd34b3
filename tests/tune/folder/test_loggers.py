"""Loggers write a report after its trial has been told to continue, and they lose no report."""

import pytest
from ray.tune.logger import LoggerCallback

from ray_deltastn.tune.folder import loggers


class Recorder(LoggerCallback):
    def __init__(self):
        self.written = []

    def log_trial_result(self, iteration, trial, result):
        self.written.append((trial, result["loss"]))

    def log_trial_end(self, trial, failed=False):
        self.written.append((trial, "end"))


class LaterRecorder(loggers._Later, Recorder):
    pass


@pytest.fixture
def logger():
    return LaterRecorder()


def report(logger, trial, loss):
    result = {"loss": loss}
    logger.on_trial_result(iteration=0, trials=[], trial=trial, result=result)
    return result


def test_reports_are_written_unchanged_and_in_order_when_the_step_ends(logger):
    report(logger, "a", 1.0)["loss"] = 9.0
    report(logger, "b", 2.0)
    assert logger.written == []
    for _ in range(2):
        logger.on_step_end(iteration=1, trials=[])
    assert logger.written == [("a", 1.0), ("b", 2.0)]


def test_the_last_report_is_written_before_the_end_of_its_trial(logger):
    report(logger, "a", 1.0)
    logger.on_trial_complete(iteration=0, trials=[], trial="a")
    assert logger.written == [("a", 1.0), ("a", "end")]


def test_an_interrupted_step_loses_no_report(logger):
    report(logger, "a", 1.0)
    logger.on_experiment_end(trials=[])
    assert logger.written == [("a", 1.0)]


@pytest.mark.parametrize(("switch", "names"), [("1", ["CSV", "Json"]), ("0", ["CSV", "Json", "TensorBoard"])])
def test_tunes_environment_variable_disables_tensorboard(switch, names, monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", switch)
    assert [type(logger).__name__ for logger in loggers.loggers()] == [f"Later{name}" for name in names]
