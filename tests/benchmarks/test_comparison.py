"""Record of a comparison: a curve keeps the points where the best loss decreased, and the record is small."""

import json
import math

import pandas as pd

from benchmarks import comparison
from ray_deltastn.compare.contenders import CONTENDERS
from tests.reports.results import CONFIG, SPACE, made_up


def test_a_curve_keeps_the_points_where_the_best_loss_decreased():
    losses = [math.inf, 3.0, 2.0, 2.5, 2.0, 1.0, 1.5]
    reports = pd.DataFrame({"valid_loss": losses, "timestamp": range(7), "time_this_iter_s": 0.5})
    assert comparison.curve(reports) == {
        "epochs": [2, 3, 6, 7],
        "seconds": [1.0, 1.5, 3.0, 3.5],
        "best_valid_loss": [3.0, 2.0, 1.0, 1.0],
    }
    steep = pd.DataFrame(
        {"valid_loss": [1 / k for k in range(1, 500)], "timestamp": range(499), "time_this_iter_s": 1.0}
    )
    found = comparison.curve(steep, points=10)
    assert len(found["epochs"]) == 10
    assert (found["epochs"][0], found["epochs"][-1]) == (1, 499)


def test_record_of_a_folder_is_complete_and_small(tmp_path):
    folder, out = tmp_path / "results", tmp_path / "record"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"methods": list(CONTENDERS), "seeds": 2, "config": CONFIG}))
    (folder / "space.json").write_text(json.dumps(SPACE))
    made_up().to_csv(folder / "results.csv", index=False)
    comparison.main([str(folder), "--out", str(out), "--command", "ray-deltastn compare x.yaml"])
    record = json.loads((out / "record.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert (record["n"], record["config"], len(record["rows"]), len(record["summary"])) == (2, CONFIG, 20, 10)
    assert record["machine"]["cores"] >= 1
    assert {"torch", "ray", "scikit-optimize"} <= record["versions"].keys()
    assert [apart["verdict"] for apart in record["differences"] if apart["method"] == "hybrid"] == [
        "within the noise"
    ] * 2
    assert {path.name for path in out.iterdir()} == {
        "record.json",
        "table.md",
        "loss.png",
        "schedules.png",
        "validation_test.png",
        "outer_search.png",
    }
    assert sum(path.stat().st_size for path in out.iterdir()) < 600_000
