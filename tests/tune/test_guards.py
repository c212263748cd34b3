"""Files that `--resume` refuses to unpickle, and experiments with other maps or other data."""

import json
import os

import pytest

from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.experiment import run_experiment
from ray_deltastn.tune.folder.layout import ResumeError
from ray_deltastn.tune.guards import check_identity, check_maps, check_owner
from ray_deltastn.tune.task_check import check_task
from tests.tasks import grammar


@pytest.fixture
def out(tmp_path):
    for part in ("trials/a_00000/checkpoint_000000", "states"):
        (tmp_path / part).mkdir(parents=True)
    return tmp_path


def test_own_states_are_accepted(out):
    (out / "states" / "tuner.pkl").touch()
    check_owner(out)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("file", ["states/searcher-state.pkl", "trials/a_00000/checkpoint_000000/deltastn.pt"])
def test_a_file_of_another_user_is_refused_in_every_folder(file, out):
    (out / file).touch()
    os.chown(out / file, 12345, -1)
    with pytest.raises(ResumeError, match=f"`{out / file}` must belong to you, got user 12345"):
        check_owner(out)


def test_a_checkpoint_that_ray_would_unpickle_is_refused(out):
    path = out / "trials" / "a_00000" / "checkpoint_000000" / "_dict_checkpoint.pkl"
    path.touch()
    with pytest.raises(ResumeError, match=r"_dict_checkpoint.pkl` must not exist: Tune would unpickle it"):
        check_owner(out)


@pytest.mark.parametrize(("saved", "shown"), [({"kind": "Bounded"}, "no map"), ({"map": "sigmoid"}, "sigmoid")])
def test_an_experiment_with_other_maps_is_not_resumed(saved, shown, out):
    (out / "space.json").write_text(json.dumps({"decay": {"map": "exp"}, "rate": saved}))
    check_maps(out, {"decay": {"map": "exp"}})
    with pytest.raises(
        ResumeError, match=f"must hold an experiment with the same maps, got {shown} for 'rate', here line"
    ):
        check_maps(out, {"decay": {"map": "exp"}, "rate": {"map": "line"}})


def test_an_experiment_with_another_vocabulary_is_refused_before_ray_starts(out, monkeypatch):
    texts = grammar.folder(out / "texts")
    options = {"path": str(texts), "units": 4, "embedding": 4, "batch": 2, "length": 5}
    config = ExperimentConfig(task="ptb-lstm", options=options, train={"epochs": 2, "momentum": 0.0})
    checked = check_task(config)
    for name, content in (("config", config.model_dump()), ("space", checked.space), ("identity", checked.identity)):
        (out / f"{name}.json").write_text(json.dumps(content))
    check_identity(out, checked.identity)
    for path in texts.iterdir():
        path.write_text(path.read_text().replace("cat", "cow"))
    monkeypatch.setattr("ray_deltastn.tune.cluster.start", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(ResumeError, match=r"must hold an experiment with the same vocabulary, got \w+, here \w+"):
        run_experiment(config, out, resume=True)


def test_an_experiment_of_an_earlier_version_has_no_identity(out):
    check_identity(out, {"vocabulary": "0123"})
