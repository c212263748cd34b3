"""The loop of the command: it starts the process of each part, watches it, and keeps its rows."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.record import command_line, write
from benchmarks.gpu.kept import add, require_same, rows_of
from benchmarks.gpu.parts import MARK

#: Seconds after the end of a part in which its last piece may still end, if the whole command has so much time.
GRACE = 20.0
#: Seconds in which a process must tell its first event: libraries load, and the device starts.
START = 120.0
WIDTH = 34


class Command:
    """The parts of one command.

    Args:
        path: file of the record.
        record: its content so far.
        device: the device.
        only: text in the names of the pieces to run.
        arguments: arguments of the command.

    Attributes:
        names: names of all pieces, by part.
        ended: parts whose process has ended too early.
    """

    def __init__(
        self, path: Path, record: dict[str, Any], device: str, only: str, arguments: Sequence[str] | None
    ) -> None:
        self.path, self.record, self.device, self.only = path, record, device, only
        record["command"] = command_line("benchmarks.gpu", arguments)
        record["runs"] += 1
        self.names: dict[str, list[str]] = {}
        self.ended: list[str] = []

    def run(self, part: str, until: float, ends: float) -> str:
        """Run the pieces of a part.

        Args:
            part: name of the part.
            until: clock time at which no piece begins any more.
            ends: clock time at which the command ends.

        Returns:
            Why the command cannot run at all; empty if it can.
        """
        broken = 0
        while time.time() < until and broken < 5:
            with _Process(part, self, until) as process:
                begun, problem = self._follow(part, process, min(until + GRACE, max(ends, until)), ends)
            if problem:
                return problem
            if begun is None:
                return ""
            broken += 1
        return ""

    def _follow(self, part: str, process: _Process, stop: float, ends: float) -> tuple[str | None, str]:
        """Keep the rows of a process until it ends.

        Returns:
            The piece after which the process could not continue, or None; and why the command cannot run.
        """
        begun, since, limit = "", time.time(), START
        for event in process.events():
            if event is None:  # nothing for a while
                late = time.time() - since > limit
                if late and begun:
                    self._keep(part, begun, ends, f"it must end within {limit:g} seconds, got no end", limit)
                    return begun, ""
                if late:
                    self._tell_end(part, f"answer within {START:g} seconds, got no answer")
                    return None, ""
                if time.time() > stop:
                    print(f"{'':10}{begun:{WIDTH}} stopped: the time of this part is over", flush=True)
                    return None, ""
            elif "about" in event:
                try:
                    require_same(self.record, event["about"])
                except ValueError as error:
                    return None, str(error)
                self.record |= event["about"]
                self.names[part] = event["names"]
                since, limit = time.time(), START
            elif "begin" in event:
                begun, since, limit = event["begin"], time.time(), event["limit"]
            elif "row" in event:
                begun, since, limit = "", time.time(), START
                add(self.record, event["row"])
                self._write()
                print(line(event["row"], ends), flush=True)
            elif "problem" in event:
                return None, event["problem"]
            else:
                return event["sick"], ""
        if process.status and begun:
            self._keep(part, begun, ends, f"the process must continue, got exit status {process.status}", 0.0)
            return begun, ""
        if process.status:  # between two pieces, or while libraries load; the other parts may still run
            self._tell_end(part, f"end with status 0, got {process.status}")
        return None, ""

    def _tell_end(self, part: str, rule: str) -> None:
        self.ended.append(part)
        print(f"{part}: the process must {rule}", flush=True)

    def _keep(self, part: str, name: str, ends: float, error: str, seconds: float) -> None:
        row = {"part": part, "name": name, "passed": False, "seconds": seconds, "figures": {}, "limits": {}}
        add(self.record, {**row, "error": error, "run": self.record["runs"]})
        self._write()
        print(line(self.record["rows"][-1], ends), flush=True)

    def _write(self) -> None:
        head = {name: value for name, value in self.record.items() if name != "rows"}
        write(self.path, {**head, "rows": self.record["rows"]})


class _Process:
    """The process of a part, in a session of its own, so that its end is also that of the workers of its loaders."""

    def __init__(self, part: str, command: Command, until: float) -> None:
        arguments = ["--device", command.device, "--until", str(until), "--record", str(command.path)]
        arguments += ["--run", str(command.record["runs"]), "--only", command.only]
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker", part, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self._lines.put(text)
        self._lines.put(None)

    def events(self) -> Iterator[dict[str, Any] | None]:
        """The events of the process until it ends; None after each second without one."""
        while True:
            try:
                text = self._lines.get(timeout=1.0)
            except queue.Empty:
                yield None
                continue
            if text is None:
                self._process.wait()
                return
            if text.startswith(MARK):
                yield json.loads(text[len(MARK) :])
            else:
                print(text, end="", file=sys.stderr)

    @property
    def status(self) -> int:
        """Exit status of a process that has ended."""
        return self._process.returncode or 0

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def line(row: Mapping[str, Any], ends: float) -> str:
    """A row as text, with the seconds that the command has left."""
    left = f"{max(0.0, ends - time.time()):5.0f} s left"
    state = "ok" if row["passed"] else "FAILED"
    said = row["error"] or row["figures"].get("text") or _closest(row)
    return f"{left}  {row['name']:{WIDTH}} {state:6} {row['seconds']:6.1f} s  {said}"


def _closest(row: Mapping[str, Any]) -> str:
    """The figure of a row that is closest to its limit."""
    shares = {n: row["figures"][n] / limit for n, limit in row["limits"].items() if limit and row["figures"][n]}
    if not shares:
        return ", ".join(f"{n}: {v}" for n, v in row["figures"].items() if isinstance(v, str | bool))
    name = max(shares, key=shares.__getitem__)
    return f"{name}: {row['figures'][name]:.2g}, limit {row['limits'][name]:.2g}"


def summary(path: Path, record: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> str:
    """How many pieces of each part have passed, have failed, and are missing."""
    lines, open_pieces = ["", f"{record.get('hardware', 'no device')}, record: {path}"], 0
    for part, every in names.items():
        rows = rows_of(path, part)
        passed = [name for name in every if name in rows and rows[name]["passed"]]
        failed = [name for name in every if name in rows and not rows[name]["passed"]]
        missing = len(every) - len(passed) - len(failed)
        found = f"{part}: {len(passed)} ok, {len(failed)} failed, {missing} not run"
        lines.append(found + (f" ({', '.join(failed)})" if failed else ""))
        open_pieces += missing + len(failed)
    if open_pieces:
        lines.append("The same command continues: it takes what is missing, then what has failed.")
    return "\n".join(lines)
