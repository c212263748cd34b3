"""Names of the files of an experiment, in a module that imports the standard library only."""

from pathlib import Path

#: The configuration of an experiment, the hyperparameters of its task, and all reports of all trials.
CONFIG_FILE, SPACE_FILE, RESULTS_FILE, PARQUET_FILE = "config.json", "space.json", "results.csv", "results.parquet"


def experiments_in(folder: Path) -> str:
    """The end of an error about a folder that is no experiment: the experiments one level below it, if any."""
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    return f"; it holds {', '.join(f'`{path}`' for path in found)}" if found else ""
