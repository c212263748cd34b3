"""Files that `--resume` refuses to unpickle, and experiments with other maps."""

import json
import os

import pytest

from ray_deltastn.tune.folder.layout import ResumeError
from ray_deltastn.tune.guards import check_maps, check_owner


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
