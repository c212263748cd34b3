"""Tables of trials under Ray Tune: overhead, scaling, kills and warm starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, around, grid
from benchmarks.common.pages import Table
from benchmarks.images_report import cell
from benchmarks.warm_start import summary


def overhead(record: Mapping[str, Any]) -> str:
    """Parts of a trial's time, by number of epochs between reports."""
    rows = []
    for row in record["rows"]:
        own = row["report"] + row["checkpoint"]
        many = row["epochs_per_report"]
        seconds = [f"{row[key]:.1f} s" for key in ("train", "evaluate")]
        seconds += [f"{row[key]:.2f} s" for key in ("report", "checkpoint")]
        shares = [f"{100 * own / row['seconds']:.1f} %", f"{row['round_trip']:.1f} s"]
        shares += [f"{100 * row['round_trip'] / row['seconds']:.1f} %", f"{100 * row['share']:.1f} %"]
        rows.append([f"{many} epoch" + "s" * (many > 1), f"{row['seconds_per_report']:.2f} s", *seconds, *shares])
    heads = ["a report every", "between reports", "train", "evaluate", "make reports", "save checkpoints"]
    heads += ["reports and checkpoints, share", "round trips to the driver", "round trips, share", "all three, share"]
    return grid(heads, rows)


def real(record: Mapping[str, Any]) -> str:
    """Real trials, each on a worker with one CPU."""
    rows = []
    for row in record["real"]:
        every = ", ".join(f"{seconds:.1f}" for seconds in row["every"])
        rows.append([f"{row['trials']}", f"{row['workers']}", every, f"{100 * row['efficiency']:.0f} %"])
    return grid(["trials", "workers", "seconds of each repetition", "efficiency of the fastest"], rows)


def simulated(record: Mapping[str, Any]) -> str:
    """Trials that only sleep."""
    rows = []
    for row in record["simulated"]:
        seconds = [f"{row[key]:.1f} s" for key in ("start", "ideal", "seconds")]
        waits = [MISSING if row[key] is None else f"{row[key]:.0f} ms" for key in ("report_ms", "trial_ms")]
        rows.append([f"{row['trials']}", *seconds, *waits, f"{100 * row['overhead']:.1f} %"])
    heads = ["trials", "start of the processes", "ideal", "first to last nap", "between reports", "between trials"]
    return grid([*heads, "overhead"], rows)


def kills(record: Mapping[str, Any]) -> str:
    """Number of kills of each kind, and results of the checks."""
    (row,) = record["rows"]
    killed, planned = row["killed"], row["planned"]
    different = sum(map(bool, row["different"].values()))
    facts = {
        "drivers killed": f"{killed['driver']}",
        "processes of trials killed": f"{killed['worker']}",
        "whole nodes killed": f"{killed['node']}",
        "trials that ended as planned": f"{row['finished']} of {planned}",
        "trials whose results contain each report once": f"{row['complete']} of {planned}",
        "restarts from zero although a checkpoint existed": f"{row['restarted']}",
        "the searcher was told each result exactly once": "yes" if row["told_once"] else "no",
        "trials with different numbers when trained again alone": f"{different} of {row['replayed']}",
        "reports that were made again after a kill": f"{row['repeated_reports']}",
        "seconds": f"{row['seconds']}",
    }
    return grid(["check", "result"], [[fact, value] for fact, value in facts.items()])


def warm(record: Mapping[str, Any]) -> str:
    """Cold and warm trials with the same seed, and cold trials with another seed."""
    entries = summary(record["rows"])

    def epochs(name: str) -> tuple[list[str], list[str]]:
        found = [(entry[f"{name}_epochs"], entry["n"]) for entry in entries]
        reached = [f"{about['reached']} of {n}" for about, n in found]
        return reached, [cell(about, 1) if about["reached"] else MISSING for about, _ in found]

    def apart(key: str, digits: int) -> list[str]:
        found = [entry[key] for entry in entries]
        return [f"{around(one['mean'], one['half_width'], digits)} ({one['n']} pairs)" for one in found]

    rows = [["cold: epochs to its best loss", *epochs("cold")[1]]]
    for name, what in (("warm", "warm"), ("other", "another seed")):
        reached, seconds = epochs(name)
        rows += [[f"{what}: trials that reached that loss", *reached], [f"{what}: epochs, if reached", *seconds]]
    rows.append(["warm − cold, epochs, if reached", *apart("difference", 1)])
    rows.append(["warm − cold, best validation loss", *apart("difference_best", 4)])
    rows.append(["warm − cold, test loss at the best epoch", *apart("difference_test", 4)])
    lengths = [f"`{entry['task']}`, {entry['epochs']} epochs" for entry in entries]
    return grid([f"{entries[0]['n']} seeds", *lengths], rows)


TABLES = {
    "overhead": Table(overhead, ("overhead.json",)),
    "scaling-real": Table(real, ("scaling.json",)),
    "scaling-simulated": Table(simulated, ("scaling.json",)),
    "kills": Table(kills, ("faults.json",)),
    "warm-starts": Table(warm, ("warm_start.json",)),
}
