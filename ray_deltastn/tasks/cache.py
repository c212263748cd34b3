"""The folder of the user in which ready tasks keep their data."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder for downloads and generated data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_deltastn"
