import json

import torch

from benchmarks import speed

ROW = {
    "net", "method", "response_fraction", "batch", "threads", "flop_ratio", "cpu_time_ratio", "wall_time_ratio",
    "saved_memory_ratio",
}  # fmt: skip


def test_rows_hold_the_figures_and_reach_them(tmp_path):
    threads = torch.get_num_threads()
    file = tmp_path / "speed.json"
    try:
        speed.main(["--nets", "mlp", "--methods", "stn,delta-stn", "--response-fraction", "0.25", "--pairs", "1",
                    "--json", str(file)])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows] == ["stn", "delta-stn"]
    assert all(row.keys() >= ROW for row in rows)
    assert [row["response_fraction"] for row in rows] == [1.0, 0.25]  # stn trains Θ with w₀, on whole minibatches
    assert all(row["batch"] == 128 and row["threads"] == 1 for row in rows)
    assert rows[1]["flop_ratio"] <= 1.7
    assert all(row["saved_memory_ratio"] <= 2.5 for row in rows)
    assert all(row["cpu_time_ratio"] > 0 and row["wall_time_ratio"] > 0 for row in rows)


def test_committed_record_holds_every_network_within_the_figures():
    rows = json.loads((speed.Path(speed.__file__).parent / "records" / "speed.json").read_text())
    assert {row["net"] for row in rows} == set(speed.NETS)
    for row in rows:
        assert row["flop_ratio"] <= (3.0 if row["response_fraction"] == 1.0 else 1.7)
        assert row["saved_memory_ratio"] <= 2.5
