"""One command that shows what a GPU does: correct numbers first, then cost, then quality.

    python -m benchmarks.gpu --minutes 8 --out DIR
    python -m benchmarks.gpu --device cpu --out DIR

It needs PyTorch, torchvision, NumPy, Pydantic and this package, not Ray. Each part has its share of the time; what a
part does not use goes to the next one. `DIR/gpu.json` is written after each piece of a part. The same command continues
an interrupted run: it takes the pieces that are missing, and then those that have failed. The exit status is 1 if a
check of correctness has failed; tracebacks are in `DIR/errors.log`. On a CPU everything is so small that it only tests
the command.

- `correctness`: gradients against a dense oracle in float64, whole cycles against the CPU, captured steps against eager
  ones over 200 steps, resume, bfloat16 and TF32, the memory order of images, no waiting for the device, memory.
- `cost`: MLP, SimpleCNN, ResNet-18 and a transformer against a plain loop that is captured alike.
- `quality`: plain training, random search and Δ-STN on FashionMNIST (`RAY_DELTASTN_DATA`), or on made-up images.
- `streams`: several small runs in one process, on streams of their own, against one after the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.arguments import number, several
from benchmarks.gpu.command import Command, summary
from benchmarks.gpu.kept import read
from benchmarks.gpu.parts import ABOUT, SHARES

FAILED, ENDED = 1, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts; exit with 1 if a check of correctness has failed, with 2 if the process of a part ended early."""
    about = __doc__.splitlines()[0] if __doc__ else None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=about)
    parser.add_argument("--minutes", type=number(above=0), default=8.0, help="time for all parts (default: 8)")
    parser.add_argument("--out", type=Path, required=True, help="folder of `gpu.json`")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, … or cpu (default: cuda)")
    parser.add_argument("--parts", type=several(str), default=list(SHARES), help=f"from {', '.join(SHARES)}")
    parser.add_argument("--only", default="", help="pieces with this text in their name")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in SHARES]
    if unknown:
        parser.error(f"`--parts` must be names from {', '.join(SHARES)}, got {unknown[0]!r}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        record = read(options.out / "gpu.json")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    ends = time.time() + 60 * options.minutes
    command = Command(options.out / "gpu.json", record, options.device, options.only, arguments)
    chosen = [part for part in SHARES if part in options.parts]
    for index, part in enumerate(chosen):
        print(f"\n{part}: {ABOUT[part]}", flush=True)
        share = SHARES[part] / sum(SHARES[name] for name in chosen[index:])
        now = time.time()
        problem = command.run(part, until=now + share * max(0.0, ends - now), ends=ends)
        if problem:
            parser.error(problem)
    print(summary(command.path, record, command.names))
    failed = any(not row["passed"] for row in record["rows"] if row["part"] == "correctness")
    sys.exit(FAILED if failed else ENDED if command.ended else 0)


if __name__ == "__main__":
    main()
