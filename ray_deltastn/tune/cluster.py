"""Start Ray on this machine, or join a running cluster, and give the workers the code of the task."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from ray_deltastn.tasks.imports import home_of

#: Seconds within which a cluster must accept a connection, and within which it must answer.
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 15.0
_CLIENT = "ray://"
_AUTH_MODE = "RAY_AUTH_MODE"
#: Ray gives a submitted job its configuration in this variable.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def start(address: str | None, task: str, code: Sequence[Path] = ()) -> None:
    """Start Ray, unless it has been started; it logs nothing.

    Args:
        address: `host:port` of a running cluster, `auto` for one on this machine, or `local`. By default it is
            `$RAY_ADDRESS`; if that is not set, Ray starts on this machine.
        task: import string of the task's function, which has been imported, or name of a ready task.
        code: folders that may hold the task's module. On this machine, workers find modules there. On a cluster,
            workers get a copy of all Python files in the folder that holds the module.

    Raises:
        ValueError: if the address has no valid form.
        ConnectionError: if no cluster answers at the address, or it refuses the connection.
    """
    if ray.is_initialized():
        return
    # Without an address, Ray joins any cluster that it finds on this machine, even a dead one whose files remain.
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if where != "local":
        check_answers(where)
    with _environment(where, task, code) as environment:
        options: dict[str, Any] = {"runtime_env": environment} if environment else {}
        dashboard = False if where == "local" else None
        try:
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard, **options)
        except (RuntimeError, AuthenticationError) as error:
            raise ConnectionError(f"`--address` must be a cluster to join, got {where}: {_line(error)}") from error


def check_answers(address: str) -> None:
    """Check that a cluster answers at an address. `ray.init` itself would try for minutes.

    Args:
        address: `host:port`, `ray://host:port` or `auto`.

    Raises:
        ValueError: if the address has no valid form.
        ConnectionError: if nobody answers within 30 seconds, or the cluster asks for another token.
    """
    if address != "auto":
        _check_listens(address)
    if address.startswith(_CLIENT):
        return
    environment = dict(os.environ)
    error = _status(address, environment)
    if error is not None and "AuthenticationError" in error:
        mode = os.environ.get(_AUTH_MODE)
        told = f"{_AUTH_MODE}={mode}" if mode else f"{_AUTH_MODE} unset"
        if mode != "token" and _status(address, {**environment, _AUTH_MODE: "token"}) is None:
            if mode is None and address == "auto":
                return  # for this address, Ray itself uses the token that it finds
            raise ConnectionError(
                f"`{_AUTH_MODE}=token` must be set for the cluster at {address}, which asks for a token, got {told}"
            )
        raise ConnectionError(
            f"`{_AUTH_MODE}=token` and the token of the cluster, in `~/.ray/auth_token` or `RAY_AUTH_TOKEN`, must be "
            f"given for the cluster at {address}, got {told} and no token that it accepts"
        )
    if error is not None:
        raise ConnectionError(f"`--address` must be a running Ray cluster, got {address}: {error}")


def _check_listens(address: str) -> None:
    """Raise unless something accepts connections at an address."""
    host, colon, port = address.removeprefix(_CLIENT).partition("/")[0].rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"`--address` must be HOST:PORT, ray://HOST:PORT, auto or local, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"`--address` must be a running Ray cluster, got {address}, where nobody answers: {error}"
        ) from error


def _status(address: str, environment: dict[str, str]) -> str | None:
    """Ask a cluster for its status in a process of its own; return None, or the last line of the error."""
    line = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    started = time.monotonic()
    try:
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {time.monotonic() - started:.0f} s"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
    return last.strip()


@contextmanager
def _environment(where: str, task: str, code: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The runtime environment in which workers find the task's module; empty if they need none."""
    home = home_of(task, code)
    if home is None:
        yield {}
    elif where == "local" or _job_has_code():
        paths = [*dict.fromkeys(str(folder.resolve()) for folder in code), os.environ.get("PYTHONPATH")]
        yield {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}
    else:
        with tempfile.TemporaryDirectory(prefix="ray-deltastn-") as copied:
            copy_code(home, Path(copied))
            yield {"working_dir": copied}


def _job_has_code() -> bool:
    """Whether this process is a job whose working directory Ray has already copied to all machines."""
    job = json.loads(os.environ.get(_JOB) or "{}")
    return bool((job.get("runtime_env") or {}).get("working_dir"))


def copy_code(home: Path, to: Path) -> None:
    """Copy the Python files below a folder, without hidden folders and virtual environments.

    Args:
        home: the folder; it may also hold results and data, which stay.
        to: an existing folder.
    """
    for folder, folders, files in os.walk(home):
        inside = Path(folder)
        folders[:] = [
            name for name in folders if not name.startswith(".") and not (inside / name / "pyvenv.cfg").exists()
        ]
        for name in files:
            if name.endswith(".py") and (inside / name).is_file():
                target = to / inside.relative_to(home) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside / name, target)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
