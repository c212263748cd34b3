"""Print pip constraints that set each dependency to the lowest version that pyproject.toml allows.

`torch>=2.5` becomes `torch==2.5`, which pip reads as 2.5.0. These are the dependencies of the project and of its
extras, except `dev`, `docs` and `models`: pip may take the newest tools for tests, checks and documentation, and the
newest networks that tests train.

    python .ci/lowest.py > constraints.txt
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # no reader of TOML in the standard library yet
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
TOOLS = ("dev", "docs", "models")  # extras without constraints


def lowest(requirement: str) -> str:
    """The constraint for one requirement: no extras, which pip refuses there, and `==` in place of `>=`."""
    plain, _, marker = requirement.partition(";")
    name = re.match(r"\s*[\w.-]+", plain)
    floor = re.search(r">=\s*([\w.]+)", plain)
    if name is None or floor is None:
        sys.exit(f"pyproject.toml: every dependency must give its lowest version, as in name>=1.0, got {requirement!r}")
    return f"{name[0].strip()}=={floor[1]}" + (f" ; {marker.strip()}" if marker else "")


def main() -> None:
    """Read pyproject.toml beside this script's folder and print one constraint a line."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    held = [*project["dependencies"], *(r for name, group in extras.items() if name not in TOOLS for r in group)]
    print("\n".join(dict.fromkeys(map(lowest, held))))


if __name__ == "__main__":
    main()
