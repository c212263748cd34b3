"""Records of benchmarks: their content, and how they are written and read.

A record of the toy problems is `{"command", "summary", "versions", "rows"}` with one row per line. While rows of the
command are missing, `missing` is their number. Older records are a plain list of rows.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import prepare, whole
from ray_deltastn.training.files import write_whole

#: Options that name files. They do not change what is run.
FILES = ("--rows", "--json", "--plot")


def rounded(value: Any, digits: int = 6) -> Any:
    """Round floats to `digits` significant digits, also in lists and mappings. NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {key: rounded(v, digits) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def grown(
    earlier: Mapping[str, Any] | None,
    rows: Iterable[dict[str, Any]],
    of: Callable[[Mapping[str, Any]], Any],
    command: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """A record of new rows and of those rows of an earlier record that are not among them.

    Args:
        earlier: the earlier record, or None.
        rows: the new rows.
        of: function from a row to what it is about; two rows about the same are the same row.
        command: the command that makes the new rows.
        versions: the versions that made them.

    Returns:
        The record. If rows of the earlier one are kept, `earlier` is a list with its command and versions, and with
        those of the records before it, each once.
    """
    found = {of(row): row for row in rows}
    kept = {of(row): row for row in (earlier["rows"] if earlier else ())}
    record: dict[str, Any] = {"command": command, "versions": dict(versions)}
    if earlier is not None and not kept.keys() <= found.keys():
        last = {key: earlier.get(key) for key in ("command", "versions")}
        before = [one for one in earlier.get("earlier", ()) if one != last]
        record["earlier"] = [one for one in (*before, last) if one != record]
    return {**record, "rows": list({**kept, **found}.values())}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--add`: keep the rows of the record in `--json`, so that a record can grow."""
    parser.add_argument("--add", action="store_true", help="keep the rows of the record in `--json` that are not new")


def earlier_record(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any] | None:
    """The record in `--json` if `--add` is given; end the command with one line if there is none."""
    if not options.add:
        return None
    if options.json is None or not options.json.exists():
        parser.error(f"`--json` must be a record for `--add`, got {options.json}")
    found: dict[str, Any] = json.loads(options.json.read_text())
    return found


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (n − 1 in the denominator); the deviation of a single value is None."""
    finite = all(map(math.isfinite, values))
    deviation = statistics.stdev(values) if len(values) > 1 and finite else None
    found: dict[str, float | None] = rounded({"mean": statistics.fmean(values), "std": deviation})
    return found


def figures(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and median of a column; null means that the run diverged and counts as infinite."""
    known = [math.inf if value is None else value for value in values]
    if not known:
        return {"mean": None, "std": None, "median": None}
    return {**spread(known), "median": rounded(statistics.median(known))}


def cases(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Group rows by their values of some keys, in order of first appearance."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.items())


def off(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """λ_final − λ_optimal over the rows whose optimum is not at the edge, and the number of the other rows."""
    edge, errors = 0, []
    for row in rows:
        if row["optimum_at_edge"]:
            edge += 1
        else:
            errors.append(None if row["lambda_final"] is None else row["lambda_final"] - row["lambda_optimal"])
    return {"optimum_at_edge": edge, "lambda_error": figures(errors)}


def evenly(last: int, points: int) -> list[int]:
    """At most `points` evenly spaced whole numbers from 0 to `last`, including both ends."""
    return sorted({round(i * last / (points - 1)) for i in range(points)})


def _without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Words of a command line without some options and their values."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in flags and before not in flags and word.partition("=")[0] not in flags
    ]


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """The command that runs a benchmark, with the arguments of the process or of `main`."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def read(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read a record of either form, as a mapping with `rows` and optionally `command` and `missing`.

    Args:
        path: the file.
        keys: keys that every row must have.

    Raises:
        ValueError: if the file cannot be read, or has no rows with these keys.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"`{path}` must contain a record in JSON, got: {error}") from None
    found = {"rows": found} if isinstance(found, list) else found
    rows = found.get("rows") if isinstance(found, dict) else None
    if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"`{path}` must contain a list of rows, or a record with `rows`, got neither")
    missing = sorted({key for row in rows for key in keys if key not in row})
    if missing:
        raise ValueError(
            f"each row of `{path}` must have the keys of this benchmark, got rows without {', '.join(missing)}"
        )
    return dict(found)


def write(path: Path, record: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write a record, or a plain list of rows, in one piece, with one row per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _text(record) + "\n")


def _text(value: Any, deep: bool = True) -> str:
    if isinstance(value, Mapping) and deep:
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {_text(v, deep=False)}" for k, v in value.items()) + "\n}"
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in value) + "\n]"
    return json.dumps(value, allow_nan=False)


@dataclass(frozen=True)
class Kind:
    """Common properties of the records of one benchmark.

    Args:
        module: name of the benchmark after `python -m`.
        keys: keys of every row.
        curves: keys whose values are lists with one value per point.
        points: largest number of points of a curve.
        versions: keys with the same value in all rows, which go to the head of the record.
        summary: function from rows to statistics over the seeds.
        lines: function from rows to the same statistics as text.
        plot: function that draws the picture.
    """

    module: str
    keys: Sequence[str]
    curves: Sequence[str]
    points: int
    versions: Iterable[str]
    summary: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]
    lines: Callable[[Sequence[dict[str, Any]]], list[str]]
    plot: Callable[[Sequence[dict[str, Any]], Path], None]

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the common options: number of threads, and files to read and write."""
        parser.add_argument("--threads", type=whole(), default=1)
        parser.add_argument("--rows", type=Path, metavar="FILE.json", help="draw this record again; nothing is run")
        parser.add_argument("--json", type=Path, help="file for the record")
        parser.add_argument("--plot", type=Path, help="file for the picture")

    def command(self, arguments: Sequence[str] | None) -> str | None:
        """The command line of a run; None if the command only draws a record again."""
        given = list(sys.argv[1:] if arguments is None else arguments)
        if _without(given, FILES[:1]) != given:
            if not _without(given, FILES):
                return None
            given = _without(given, FILES[:1])
        return command_line(self.module, given)

    def save(self, path: Path, command: str | None, rows: list[dict[str, Any]], missing: int = 0) -> None:
        """Write a record; `missing` is the number of rows that are not measured yet."""
        found: dict[str, Any] = {
            "command": command,
            "summary": self.summary(rows),
            "versions": {key: rows[0][key] for key in self.versions if key in rows[0]},
        }
        write(path, {**found, **({"missing": missing} if missing else {}), "rows": rows})

    def redraw(self, parser: argparse.ArgumentParser, options: argparse.Namespace, command: str | None) -> None:
        """Summarise the record `--rows` again, write it to `--json`, and draw it to `--plot`."""
        try:
            found = read(options.rows, self.keys)
        except ValueError as error:
            parser.error(str(error))
        prepare(parser, options.json, options.plot)
        rows = [self._thin(row) for row in found["rows"]]
        print("\n".join(self.lines(rows)))
        if options.json:
            self.save(options.json, found.get("command") or command, rows, found.get("missing", 0))
        if options.plot:
            self.plot(rows, options.plot)

    def _thin(self, row: Mapping[str, Any]) -> dict[str, Any]:
        curves = {key: row[key] for key in self.curves if key in row}
        short = {key: [v[i] for i in evenly(len(v) - 1, self.points)] for key, v in curves.items()}
        thinned: dict[str, Any] = rounded({**row, **short})
        return thinned
