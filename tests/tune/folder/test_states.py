"""Complete copies of Tune's states, and the checkpoints that they refer to, are kept for a resume."""

import json
import os
import pickle
from types import SimpleNamespace

import pytest

from ray_deltastn.tune.folder import states
from ray_deltastn.tune.folder.pruning import PruneCheckpoints
from ray_deltastn.tune.folder.states import KeepStates, is_written, mend


def write(folder, run, number, written):
    """Write the files of a state as Tune does; the search generator's state is a pickle in spite of its name."""
    state = folder / f"experiment_state-{run}.json"
    state.write_text(json.dumps({"number": number}))
    (folder / f"searcher-state-{run}.json").write_text(json.dumps({"number": number}))
    (folder / f"search_gen_state-{run}.json").write_bytes(pickle.dumps({"number": number}))
    (folder / f"callback-state-{run}.pkl").write_bytes(pickle.dumps({"number": number}))
    os.utime(state, (written, written))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*-state*")) + sorted(folder.glob("*_state*"))}


@pytest.fixture
def folders(tmp_path):
    trials = tmp_path / "trials"
    trials.mkdir()
    return trials, tmp_path / "states"


PARTS = ["experiment_state-1.json", "searcher-state-1.json", "search_gen_state-1.json", "callback-state-1.pkl"]


@pytest.mark.parametrize("damaged", PARTS)
def test_an_incomplete_state_is_replaced_by_the_last_complete_one(damaged, folders):
    trials, kept = folders
    keep = KeepStates(trials, kept, every=0.0)
    write(trials, run=1, number=1, written=1)
    keep.on_step_end(0, [])
    whole = contents(trials)
    assert sorted(whole) == sorted(PARTS)
    assert contents(kept) == whole
    assert not mend(trials, kept)  # the state is complete
    write(trials, run=1, number=2, written=2)
    (trials / damaged).write_bytes((trials / damaged).read_bytes()[:-1])
    keep.on_step_end(1, [])
    assert contents(kept) == whole
    assert not is_written(trials)
    assert mend(trials, kept)
    assert contents(trials) == whole
    assert is_written(trials)


def test_a_later_run_without_a_complete_state_is_replaced_by_the_previous_run(folders):
    trials, kept = folders
    write(trials, run=1, number=1, written=1)
    KeepStates(trials, kept).keep()
    whole = contents(trials)
    write(trials, run=2, number=2, written=2)
    (trials / "experiment_state-2.json").write_text("")
    assert mend(trials, kept)
    assert contents(trials) == whole


def test_only_the_newest_run_is_kept_and_a_damaged_copy_is_not_used(folders):
    trials, kept = folders
    keep = KeepStates(trials, kept)
    write(trials, run=1, number=1, written=1)
    keep.keep()
    write(trials, run=2, number=2, written=2)
    keep.keep()
    assert sorted(path.name for path in kept.iterdir()) == sorted(name.replace("1", "2") for name in PARTS)
    for folder in folders:
        (folder / "searcher-state-2.json").write_text("{")
    before = contents(trials)
    assert not mend(trials, kept)
    assert contents(trials) == before


def test_the_previous_copy_stays_if_the_disk_is_full(folders, monkeypatch):
    trials, kept = folders
    keep = KeepStates(trials, kept)
    write(trials, run=1, number=1, written=1)
    keep.keep()
    whole = contents(kept)
    write(trials, run=1, number=2, written=2)

    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(states.Path, "write_bytes", full)
        keep.keep()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == whole
    keep.keep()
    assert contents(kept) == contents(trials)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints(folder, numbers):
    for number in numbers:
        path = folder / f"checkpoint_{number:06d}"
        path.mkdir(parents=True)
        os.utime(path, (0, 0))


def trial(name, folder, number):
    return SimpleNamespace(trial_id=name, checkpoint=SimpleNamespace(path=str(folder / f"checkpoint_{number:06d}")))


def left(folder):
    return sorted(int(path.name[-1]) for path in folder.iterdir())


def test_a_checkpoint_that_a_saved_state_may_refer_to_is_not_deleted(tmp_path):
    folder, state = tmp_path / "trial", tmp_path / "experiment_state-1.json"
    checkpoints(folder, range(9))  # 7 and 8 are from a killed run, and Tune does not know them yet
    prune = PruneCheckpoints(tmp_path, keep=2, every=0.0)
    oldest = []
    for written, known in ((1, 2), (2, 4), (2, 5), (3, 6), (4, 6)):
        state.write_text("{}")
        os.utime(state, (written, written))
        trials = [trial("a", folder, known), SimpleNamespace(trial_id="b", checkpoint=None)]
        prune.on_step_end(0, trials)
        oldest.append(left(folder)[0])
    # A state may refer to the newest checkpoint of two states earlier. One more checkpoint is kept.
    assert oldest == [0, 0, 0, 1, 3]
    prune.on_experiment_end(trials)
    assert left(folder) == [5, 6, 7, 8]


def test_no_checkpoint_is_deleted_at_the_end_until_the_last_state_is_written(tmp_path):
    folder, state = tmp_path / "trial", tmp_path / "experiment_state-1.json"
    checkpoints(folder, range(5))
    state.write_text("{}")
    os.utime(state, (1, 1))
    os.utime(folder / "checkpoint_000004", (2, 2))
    prune = PruneCheckpoints(tmp_path, keep=2)
    prune.on_experiment_end([trial("a", folder, 4)])
    assert left(folder) == [0, 1, 2, 3, 4]
    os.utime(state, (3, 3))
    prune.on_experiment_end([trial("a", folder, 4)])
    assert left(folder) == [3, 4]


def test_a_checkpoint_that_another_trial_has_copied_is_kept(tmp_path):
    good, bad, state = tmp_path / "good", tmp_path / "bad", tmp_path / "experiment_state-1.json"
    checkpoints(good, range(9))
    checkpoints(bad, range(2))
    prune = PruneCheckpoints(tmp_path, keep=2, every=0.0)
    for written, known in enumerate((2, 5, 8, 8, 8), start=1):
        state.write_text("{}")
        os.utime(state, (written, written))
        # Population-based training copied the state of `good` at the first step to `bad`.
        prune.on_step_end(0, [trial("good", good, known), trial("bad", good, 2)])
    assert left(good) == [2, 7, 8]
    assert left(bad) == [0, 1]
    prune.on_experiment_end([trial("good", good, 8), trial("bad", good, 2)])
    assert left(good) == [2, 7, 8]
