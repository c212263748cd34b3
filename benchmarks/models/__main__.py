"""Networks of libraries as they are: does a self-tuned run train them, do their weights respond, and exactly?

    python -m benchmarks.models --json benchmarks/records/models.json
    python -m benchmarks.models --only Llama,T5

Each network is small and has random weights in float64. `measure.py` says how its response is compared. It needs
`pip install 'ray-deltastn[models]'`.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common import record
from benchmarks.common.arguments import prepare, several, whole
from benchmarks.common.machine import hardware, versions
from benchmarks.models.measure import measure, row
from benchmarks.models.peft_models import PEFT
from benchmarks.models.pyg_models import PYG
from benchmarks.models.rtdl_models import RTDL
from benchmarks.models.timm_models import TIMM
from benchmarks.models.torch_models import TORCH
from benchmarks.models.torchvision_models import TORCHVISION
from benchmarks.models.transformers_models import TRANSFORMERS

ENTRIES = [*TORCH, *TORCHVISION, *TIMM, *TRANSFORMERS, *PEFT, *RTDL, *PYG]
LIBRARIES = ("torchvision", "timm", "transformers", "peft", "rtdl_revisiting_models", "torch_geometric")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all networks, or some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", type=several(str), help="names of networks; all with such a name are measured")
    parser.add_argument("--threads", type=whole(), default=1)
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    chosen = [entry for entry in ENTRIES if options.only is None or entry.name in options.only]
    if not chosen:
        names = ", ".join(dict.fromkeys(entry.name for entry in ENTRIES))
        parser.error(f"`--only` must name networks, got {','.join(options.only)}; they are: {names}")
    prepare(parser, options.json)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = []
    for entry in chosen:
        found = measure(entry)
        rows.append(row(found))
        how = f"{found.share:.1%} respond" if found.works else found.reason
        print(f"{found.library:16} {found.name:20} {how}", flush=True)
    if options.json:
        head = {
            "command": record.command_line("benchmarks.models", arguments),
            "hardware": hardware(torch.device("cpu")),
            **versions(),
            "libraries": {name: version(name) for name in LIBRARIES},
        }
        record.write(options.json, {**head, "rows": record.rounded(rows)})


if __name__ == "__main__":
    main()
