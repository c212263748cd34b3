"""Ratios of start-up times, from given times; no test measures time."""

import sys

from benchmarks import imports


def test_a_ratio_is_the_median_over_turns_and_not_the_ratio_of_medians():
    turns = [{imports.TORCH: (torch, 9.0), "x": (x, 2.0)} for torch, x in ((1.0, 3.0), (4.0, 4.0), (2.0, 1.0))]
    reference, row = imports.summary(turns)
    assert reference["ratio"] == 1.0
    assert (row["cpu_seconds"], row["wall_seconds"], row["ratio"], row["n"]) == (3.0, 2.0, 1.0, 3)
    assert "1.00 × `import torch`, within 1.5" in imports.line(row)
    assert "above 1.5" in imports.line({**row, "ratio": 1.51})


def test_the_time_of_a_process_is_its_own():
    cpu, wall = imports.seconds_of([sys.executable, "-c", "import time; time.sleep(0.3)"])
    assert wall > 0.3
    assert 0 < cpu < wall
