"""The requested comparison, as the results folder notes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ray_deltastn.compare.plan import CompareConfig, Planned, plan
from ray_deltastn.training.files import write_whole
from ray_deltastn.tune.folder.layout import COMPARISON_FILE, CONFIG_FILE, RUNS_FOLDER


@dataclass(frozen=True)
class Asked:
    """The requested comparison: the content of `comparison.json`."""

    config: CompareConfig
    methods: tuple[str, ...]
    seeds: int

    @classmethod
    def read(cls, out: Path) -> Asked:
        """Read `comparison.json` in the results folder.

        Raises:
            FileNotFoundError: if the folder holds no comparison.
        """
        path = out / COMPARISON_FILE
        if not path.exists():
            raise FileNotFoundError(f"`{out}` must hold a comparison, got no {COMPARISON_FILE}")
        noted = json.loads(path.read_text())
        return cls(CompareConfig.model_validate(noted["config"]), tuple(noted["methods"]), noted["seeds"])

    def write(self, out: Path) -> None:
        """Write `comparison.json` to the results folder, atomically."""
        noted = {"methods": self.methods, "seeds": self.seeds, "config": self.config.model_dump(exclude_unset=True)}
        write_whole(out / COMPARISON_FILE, json.dumps(noted, indent=2) + "\n")

    def planned(self, out: Path) -> list[Planned]:
        """The experiments of the comparison; experiments that have already started are unchanged."""
        begun = (folder.name for folder in (out / RUNS_FOLDER).glob("*") if (folder / CONFIG_FILE).exists())
        return plan(self.config, self.methods, self.seeds, begun)
