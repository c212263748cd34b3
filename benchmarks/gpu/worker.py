"""The process that runs the pieces of one part: an error of the device, which spoils a process, ends no other part.

    python -m benchmarks.gpu.worker PART --device cuda --until CLOCK --record FILE --run N [--only TEXT]

It prints one line of JSON for each event, after a mark, so that other output does not disturb:

- `about`: names of all pieces of the part, hardware and versions;
- `begin`: a piece begins, with its limit in seconds;
- `row`: a piece has ended;
- `sick`: the device does not answer any more, so that the process ends;
- `problem`: no piece can run at all.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.arguments import number, whole
from benchmarks.common.machine import hardware, versions
from benchmarks.common.record import rounded
from benchmarks.gpu.items import Findings, Item, NoTime, Place
from benchmarks.gpu.kept import finished, rows_of
from benchmarks.gpu.parts import MARK, SHARES

#: File beside the record with the tracebacks of errors. They name files of the machine, so they are not in the record.
ERRORS = "errors.log"


def tell(**event: Any) -> None:
    """Print an event."""
    print(MARK + json.dumps(event), flush=True)


def run(part: str, item: Item, place: Place) -> tuple[dict[str, Any], str]:
    """Run a piece, and return its row and the traceback of an error.

    Raises:
        NoTime: if the piece needs more time than the part has.
    """
    findings = Findings()
    error, trace = "", ""
    started = time.perf_counter()
    try:
        item.run(place, findings)
        place.wait()
    except NoTime:
        raise
    except Exception as problem:
        error = (str(problem).strip().splitlines() or [""])[0]
        error = f"{type(problem).__name__}: {error}"
        trace = traceback.format_exc()
    row = {
        "part": part,
        "name": item.name,
        "passed": not (findings.broken or error),
        "seconds": time.perf_counter() - started,
        "figures": findings.figures,
        "limits": findings.limits,
        "error": error or "; ".join(findings.broken),
    }
    found: dict[str, Any] = rounded(row, 4)
    return found, trace


def clean(place: Place) -> bool:
    """Give memory back after a piece; whether the device still answers."""
    gc.collect()
    if not place.on_gpu:
        return True
    try:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_stream(torch.cuda.default_stream(place.device))
        torch.cuda.synchronize(place.device)
        torch.cuda.empty_cache()
        return float(torch.ones(8, device=place.device).sum()) == 8.0
    except Exception as problem:
        print(f"the device does not answer: {problem}", file=sys.stderr, flush=True)
        return False


def about(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    found: dict[str, Any] = {"hardware": hardware(device), **versions(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        cudnn: Any = torch.backends.cudnn
        found |= {"cuda": torch.version.cuda, "cudnn": cudnn.version(), "memory_bytes": memory}
    return found


def in_order(items: Sequence[Item], rows: Mapping[str, Mapping[str, Any]], now: int) -> list[Item]:
    """The pieces that are to run: those without a row, then those that an earlier command has seen fail."""
    missing = [item for item in items if item.name not in rows]
    failed = [item for item in items if item.name in rows and not finished(rows[item.name], now)]
    return missing + failed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pieces of a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=SHARES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--until", type=number(), required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--run", type=whole(), required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        tell(problem=f"`--device {options.device}` needs a GPU that PyTorch {torch.__version__} can use, got none")
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    rows = rows_of(options.record, options.part)
    place = Place(device, device.type == "cpu", options.until, rows)
    items: list[Item] = importlib.import_module(f"benchmarks.gpu.{options.part}").items(place.tiny)
    items = [item for item in items if options.only in item.name]
    tell(about=about(device), names=[item.name for item in items])
    for item in in_order(items, rows, options.run):
        if place.left < item.seconds * (0.0 if place.tiny else 1.0):
            continue
        tell(begin=item.name, limit=item.limit)
        try:
            found, trace = run(options.part, item, place)
        except NoTime:
            continue
        if trace:
            with (options.record.parent / ERRORS).open("a", encoding="utf-8") as file:
                file.write(f"{options.part}, {item.name}, run {options.run}\n{trace}\n")
        row = {**found, "run": options.run}
        rows[item.name] = row
        tell(row=row)
        if not clean(place):
            tell(sick=item.name)
            sys.exit(3)


if __name__ == "__main__":
    main()
