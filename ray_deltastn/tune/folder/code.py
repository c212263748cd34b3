"""The folders in which a command looked for the module of its task, so that later commands look there too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ray_deltastn.training.files import write_whole
from ray_deltastn.tune.folder.layout import CODE_FILE


def write_code(out: Path, folders: Sequence[Path]) -> None:
    """Note the folders in a results folder, atomically.

    Args:
        out: results folder of an experiment.
        folders: folders of code.
    """
    write_whole(out / CODE_FILE, json.dumps([str(folder.resolve()) for folder in folders]) + "\n")


def read_code(out: Path) -> list[Path]:
    """The folders noted for an experiment, or for the experiments of a comparison; none if none were noted.

    Args:
        out: results folder.
    """
    found = [path for pattern in (CODE_FILE, f"*/*/{CODE_FILE}") for path in sorted(out.glob(pattern))]
    return [Path(folder) for folder in json.loads(found[0].read_text())] if found else []
