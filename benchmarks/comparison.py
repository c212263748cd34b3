"""Make the record of a comparison, small enough to commit, from the results folder of `ray-deltastn compare`.

    ray-deltastn compare configs/digits_compare.yaml --seeds 3 --out DIR
    python -m benchmarks.comparison DIR --out benchmarks/records/compare/digits \
        --command "ray-deltastn compare configs/digits_compare.yaml --seeds 3" --remark "2 cores, nothing else running"

`record.json` contains the configuration, the versions, the summary, the paired differences, and one row per method and
seed. A row has a curve: the best validation loss so far over epochs and device-seconds, at the points where it
decreased.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from benchmarks.common.machine import versions
from benchmarks.common.record import evenly, rounded, write
from ray_deltastn.compare.outcomes import spending
from ray_deltastn.reports import comparison_pictures as pictures
from ray_deltastn.reports.comparison import Comparison, write_comparison

#: Largest number of points of a curve, and of colours of a picture.
POINTS, COLOURS = 60, 128


def curve(reports: pd.DataFrame, points: int = POINTS) -> dict[str, list[float]]:
    """Points where the best validation loss of one method and seed decreased: epochs so far, seconds so far, and loss.

    Args:
        reports: reports of one method and seed.
        points: largest number of points; the first point, the last point and the last report are always kept.
    """
    spent = spending(reports).dropna(subset="best_so_far")
    fell = spent[spent["best_so_far"].diff().fillna(-1.0) < 0]
    kept = fell.iloc[evenly(len(fell) - 1, points - 1)] if len(fell) else fell
    kept = pd.concat([kept, spent.tail(1)])
    names = {"epochs": "spent_epochs", "seconds": "spent_seconds", "best_valid_loss": "best_so_far"}
    return {name: rounded(kept[column].tolist(), 4) for name, column in names.items()}


def record(found: Comparison, command: str, remark: str) -> dict[str, Any]:
    """The record of a comparison.

    Args:
        found: tables of the comparison.
        command: the command that ran it.
        remark: a remark about the machine.
    """
    groups = dict(list(found.results.groupby(["method", "seed"])))
    rows = [
        {**rounded(dict(row)), "curve": curve(groups[row["method"], row["seed"]])}
        for row in found.per_seed.astype(object).to_dict("records")
    ]
    return {
        "command": command,
        "remark": remark,
        "n": found.asked.seeds,
        "seeds": list(range(found.asked.seeds)),
        "config": found.asked.config.model_dump(exclude_unset=True),
        "versions": {**versions(), **{name: version(name) for name in ("ray", "scikit-optimize", "numpy")}},
        "machine": {"processor": _processor(), "cores": os.cpu_count()},
        "summary": [rounded(row) for row in found.summary.astype(object).to_dict("records")],
        "notes": found.notes(),
        "differences": [
            {**rounded(asdict(difference)), "verdict": difference.verdict} for difference in found.differences
        ],
        "rows": rows,
    }


def _processor() -> str:
    """Name of the processor, from `/proc/cpuinfo` if it exists."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `record.json`, `table.md` and the pictures to a folder of records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="results folder of `ray-deltastn compare`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the record, created if it does not exist")
    parser.add_argument("--command", required=True, help="the command that made the results")
    parser.add_argument("--remark", default="", help="a remark about the machine")
    options = parser.parse_args(arguments)
    try:
        found = write_comparison(options.folder)
    except FileNotFoundError as error:
        parser.error(str(error))
    made = record(found, options.command, options.remark)
    write(options.out / "record.json", json.loads(json.dumps(made)))
    (options.out / "table.md").write_text((options.folder / "table.md").read_text())
    for name in (pictures.LOSS, pictures.SCHEDULES, pictures.SCATTER, pictures.OUTER):
        if (options.folder / name).exists():
            with Image.open(options.folder / name) as image:
                image.convert("RGB").quantize(COLOURS).save(options.out / name, optimize=True)
    print(f"wrote {options.out}, {sum(path.stat().st_size for path in options.out.iterdir()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
