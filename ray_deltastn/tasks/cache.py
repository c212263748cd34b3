"""Where ready tasks find data: the data root, the folder of the user that takes its place, and relative paths."""

import os
from pathlib import Path

#: Environment variable for the data root.
ROOT_VARIABLE = "RAY_DELTASTN_DATA"
#: Environment variable in which Tune keeps the working folder of a process before it goes to the folder of its trial.
_START_VARIABLE = "TUNE_ORIG_WORKING_DIR"


def absolute(path: str | os.PathLike[str]) -> Path:
    """An absolute path; a relative one begins at the folder in which the program was started, in a trial too."""
    return Path(os.environ.get(_START_VARIABLE) or Path.cwd(), Path(path).expanduser())


def user_cache() -> Path:
    """The folder for downloads and generated data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_deltastn"
