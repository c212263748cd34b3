"""What `benchmarks.faults` finds in the files of an experiment."""

import json

import pytest

from benchmarks import faults


@pytest.fixture
def folder(tmp_path):
    """Three trials, of which the results know two; one report was written twice, and the last line is torn."""

    def make(iterations=(1, 2, 2, 3), told=("a", "b"), known=("a", "b")):
        lines = ["trial_id,training_iteration"]
        for trial in ("a", "b", "c"):
            here = tmp_path / "trials" / trial
            here.mkdir(parents=True)
            rows = [{"training_iteration": i, "done": i == 3, "pid": 1} for i in iterations]
            (here / "result.json").write_text("\n".join(map(json.dumps, rows)) + '\n{"torn": ')
            if trial in known:
                lines += [f"{trial},{i}" for i in sorted(set(iterations))]
        (tmp_path / "results.csv").write_text("\n".join(lines))
        state = {"finished": [[trial, [], 0.0] for trial in told]}
        (tmp_path / "trials" / "searcher-state-x.json").write_text(json.dumps(state))
        return tmp_path

    return make


def test_a_clean_experiment_with_a_stray_trial(folder, monkeypatch):
    monkeypatch.setattr(faults, "replay", lambda parameters, last: [])
    found = faults.check(folder(), planned=2, every=1)
    assert found == {
        "planned": 2, "trials": 2, "finished": 2, "restarted": 0, "told_once": True, "replayed": 2, "different": {},
        "strays": 1, "repeated_reports": 2,
    }  # fmt: skip


def test_whatever_is_lost_shows(folder, monkeypatch):
    monkeypatch.setattr(faults, "replay", lambda parameters, last: ["valid_loss"] * (parameters.parent.name == "a"))
    found = faults.check(folder(iterations=(1, 2, 1, 2), told=("a", "a", "b")), planned=2, every=1)
    assert (found["finished"], found["restarted"], found["told_once"]) == (0, 2, False)
    assert (found["replayed"], found["different"]) == (1, {"a": ["valid_loss"]})


def test_a_restart_before_the_first_checkpoint_is_none(folder, monkeypatch):
    monkeypatch.setattr(faults, "replay", lambda parameters, last: [])
    assert faults.check(folder(iterations=(1, 1, 2, 3)), planned=2, every=1)["restarted"] == 0
