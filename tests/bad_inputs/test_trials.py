"""A mistake in a trial's config or checkpoint raises a one-line error with the rule, the value and the name."""

import io
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch

from tests.bad_inputs.made import assert_refused, build, build_nothing, more_hyperparameters, other_model

pytest.importorskip("ray")
from ray_deltastn.tune.trainable import DeltaSTNTrainable


def trial(**changes):
    return DeltaSTNTrainable({"task": build, "epochs": 2, "batch_size": 8, **changes})


RESOURCES = {
    "unknown-resource": ({"gpus": 1}, ["`resources`", "'cpu', 'gpu' and 'workers'", "'gpus'"]),
    "negative-resource": ({"cpu": -1}, ["`resources.cpu >= 0`", "-1"]),
    "negative-gpu": ({"gpu": -0.5}, ["`resources.gpu >= 0`", "-0.5"]),
    "resource-as-text": ({"cpu": "2"}, ["`resources.cpu >= 0`", "'2'"]),
    "resource-nan": ({"cpu": math.nan}, ["`resources.cpu >= 0`", "nan"]),
    "resources-of-a-wrong-type": (4, ["`resources`", "4"]),
}


@pytest.mark.parametrize("case", RESOURCES)
def test_bad_resources_are_refused_in_one_line(case):
    resources, words = RESOURCES[case]
    call = lambda: DeltaSTNTrainable.default_resource_request({"resources": resources})  # noqa: E731
    assert_refused(call, (ValueError, TypeError), words)


TRIALS = {
    "trial-without-task": ({"task": None}, (ValueError, TypeError), ["`task`", "None"]),
    "trial-of-an-unknown-task": ({"task": "digits"}, ValueError, ["`task` must be one of", "'digits'"]),
    "trial-that-builds-nothing": ({"task": build_nothing}, TypeError, ["`task` must build a Task", "NoneType"]),
    "trial-of-an-unknown-method": ({"method": "stm"}, ValueError, ["`method`", "'stm'", "did you mean 'stn'"]),
    "trial-with-a-bad-lr": ({"lr": -1.0}, ValueError, ["`lr > 0`", "lr=-1.0"]),
    "trial-with-a-bad-seed": ({"seed": "first"}, ValueError, ["`seed >= 0`", "seed='first'"]),
}


@pytest.mark.parametrize("case", TRIALS)
def test_bad_trial_is_refused_in_one_line(case):
    changes, error, words = TRIALS[case]
    assert_refused(lambda: trial(**changes), error, words)


MARK = Path(tempfile.gettempdir(), f"code_of_a_checkpoint_ran_{os.getpid()}")


class Code:
    """Creates the folder `MARK` if it is unpickled by an unsafe loader."""

    def __reduce__(self):
        return os.mkdir, (str(MARK),)


def truncated(good):
    return good[: len(good) // 2]


def with_code(good):
    file = io.BytesIO()
    torch.save({"identity": {}, "code": Code()}, file)
    return file.getvalue()


def other_content(good):
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, file)
    return file.getvalue()


DAMAGES = {
    "truncated": truncated,
    "truncated-at-the-end": lambda good: good[:-30],
    "truncated-to-one-byte": lambda good: good[:1],
    "empty": lambda good: b"",
    "garbage": lambda good: bytes(range(256)) * 8,
    "zeros": lambda good: bytes(2000),
    "text": lambda good: b"hello, world\n" * 20,
    "overwritten-in-the-middle": lambda good: good[:200] + b"\xff" * 400 + good[600:],
    "pickled-code": with_code,
    "missing": None,
}


@pytest.mark.parametrize("how", ["load_checkpoint", "restore"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_refused_in_one_line_and_changes_nothing(damage, how, tmp_path):
    trial().save(str(tmp_path))
    path = tmp_path / "deltastn.pt"
    if DAMAGES[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    own, undisturbed = trial(), trial()
    assert_refused(lambda: getattr(own, how)(str(tmp_path)), ValueError, ["checkpoint", str(path)])
    assert not MARK.exists()
    assert own.train()["valid_loss"] == undisturbed.train()["valid_loss"]


def test_checkpoint_with_other_content_is_refused(tmp_path):
    (tmp_path / "deltastn.pt").write_bytes(other_content(b""))
    assert_refused(lambda: trial().load_checkpoint(str(tmp_path)), ValueError, ["`state`", "SelfTuner", "dict"])


def task_of(used):
    """Release a tuner and return its task."""
    used.release()
    return used.task


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "stn"}, ["same method", "'stn'", "'delta-stn'"]),
        ({"optimizer": "adam"}, ["same optimizer", "'adam'", "'sgd'"]),
        ({"task": lambda config: task_of(more_hyperparameters())}, ["same space", "'decay'"]),
        ({"task": lambda config: task_of(other_model())}, ["same model", "'0.bias'", "'6'", "'5'"]),
    ],
)
def test_checkpoint_of_another_run_is_refused_and_changes_nothing(changes, words, tmp_path):
    trial(**changes).save(str(tmp_path))
    own, undisturbed = trial(), trial()
    assert_refused(lambda: own.load_checkpoint(str(tmp_path)), ValueError, words)
    assert own.train()["valid_loss"] == undisturbed.train()["valid_loss"]
