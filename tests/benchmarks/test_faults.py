"""Checks of `benchmarks.faults` on the files of an experiment."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import faults
from ray_deltastn.tune.folder.report_log import ReportLog


@pytest.fixture
def folder(tmp_path):
    """Function that writes three trials; the results have two of them, one report is repeated, the last line is cut."""

    def make(iterations=(1, 2, 2, 3), told=("a", "b"), known=("a", "b")):
        lines = ["trial_id,training_iteration"]
        log = ReportLog(tmp_path)
        (tmp_path / "trials").mkdir()
        for trial in ("a", "b", "c"):
            for i in iterations:
                result = {"training_iteration": i, "done": i == 3, "pid": 1}
                log.on_trial_result(0, [], SimpleNamespace(trial_id=trial, config={"name": trial}), result)
            if trial in known:
                lines += [f"{trial},{i}" for i in sorted(set(iterations))]
        with log.path.open("a") as file:
            file.write('{"cut": ')
        (tmp_path / "results.csv").write_text("\n".join(lines))
        state = {"finished": [[trial, [], 0.0] for trial in told]}
        (tmp_path / "trials" / "searcher-state-x.json").write_text(json.dumps(state))
        return tmp_path

    return make


def test_a_clean_experiment_with_a_stray_trial(folder, monkeypatch):
    monkeypatch.setattr(faults, "replay", lambda config, last: [])
    found = faults.check(folder(), planned=2, every=1)
    assert found == {
        "planned": 2,
        "trials": 2,
        "finished": 2,
        "restarted": 0,
        "told_once": True,
        "replayed": 2,
        "different": {},
        "complete": 2,
        "strays": 1,
        "repeated_reports": 2,
    }


def test_lost_and_repeated_results_are_found(folder, monkeypatch):
    monkeypatch.setattr(faults, "replay", lambda config, last: ["valid_loss"] * (config["name"] == "a"))
    found = faults.check(folder(iterations=(1, 2, 1, 2), told=("a", "a", "b")), planned=2, every=1)
    assert (found["finished"], found["restarted"], found["told_once"]) == (0, 2, False)
    assert (found["replayed"], found["different"]) == (1, {"a": ["valid_loss"]})


def test_a_restart_before_the_first_checkpoint_does_not_count(folder, monkeypatch):
    monkeypatch.setattr(faults, "replay", lambda config, last: [])
    assert faults.check(folder(iterations=(1, 1, 2, 3)), planned=2, every=1)["restarted"] == 0


GOOD = {"trials": 2, "finished": 2, "replayed": 2, "complete": 2, "told_once": True, "restarted": 0}


@pytest.mark.parametrize(
    ("killed", "found", "succeeds"),
    [
        (["driver", "node"], GOOD, True),
        (["driver"], GOOD, False),
        (["driver", "node"], {**GOOD, "replayed": 1}, False),
        (["driver", "node"], {**GOOD, "told_once": False}, False),
        (["driver", "node"], {**GOOD, "restarted": 1}, False),
    ],
    ids=["good", "too-few-kills", "other-numbers", "told-twice", "restarted"],
)
def test_command_fails_and_writes_no_record_if_a_check_fails(killed, found, succeeds, tmp_path, monkeypatch, capsys):
    stopped = []

    def driver(config, out, address, changes):
        out.mkdir()
        (out / "config.json").write_text(json.dumps({"tune": {"num_samples": 2}}))
        return SimpleNamespace(starts=2)

    monkeypatch.setattr(faults, "Cluster", lambda: SimpleNamespace(address="here", stop=lambda: stopped.append(True)))
    monkeypatch.setattr(faults, "Driver", driver)
    monkeypatch.setattr(faults, "disturb", lambda driver, cluster, kills, low, high: killed)
    monkeypatch.setattr(faults, "check", lambda out, planned, every: {"planned": planned, **found})
    line = ["--kills", "2", "--out", str(tmp_path), "--json", str(tmp_path / "record.json")]
    if succeeds:
        faults.main(line)
        (row,) = json.loads((tmp_path / "record.json").read_text())["rows"]
        assert row["killed"] == {"driver": 1, "worker": 0, "node": 1}
    else:
        with pytest.raises(SystemExit) as error:
            faults.main(line)
        assert error.value.code == 1
        assert not (tmp_path / "record.json").exists()
    assert ("must fit into this experiment, got 1" in capsys.readouterr().out) == (len(killed) < 2)
    assert stopped == [True]
