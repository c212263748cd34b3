"""The data root of ready tasks: its environment variable, and the folder of the user that takes its place."""

import os
from pathlib import Path

#: Environment variable for the data root.
ROOT_VARIABLE = "RAY_DELTASTN_DATA"


def user_cache() -> Path:
    """The folder for downloads and generated data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_deltastn"
