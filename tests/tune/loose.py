"""A task in a module that is not installed, and the command as `pip` installs it."""

import subprocess
import sys

from tests.tune.commands import ENVIRONMENT, ROOT

YAML = """
task: mytask:build
train: {epochs: 2, batch_size: 16, warmup: 0}
search: {lr: "loguniform(0.01, 0.3)"}
tune: {searcher: random, num_samples: 1}
"""
#: The `sys.path` of an installed command does not hold the current folder.
COMMAND = "import sys; sys.path.pop(0); from ray_deltastn.cli import main; sys.exit(main())"


def write_task(folder):
    """Write the module `mytask`, which imports its neighbour."""
    folder.mkdir(exist_ok=True)
    (folder / "mytask.py").write_text("import mynetwork\n\n\ndef build(config):\n    return mynetwork.build(config)\n")
    (folder / "mynetwork.py").write_text((ROOT / "tests" / "tune" / "tiny.py").read_text())


def installed_command(*arguments, cwd, **environment):
    """Run a command in a folder; a variable of the environment that is None is removed."""
    variables = {**ENVIRONMENT, **environment}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
