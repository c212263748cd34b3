"""Tables of hypergradients: their noise, their agreement with other estimates, and the noise of Θ's gradient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import Table
from benchmarks.common.record import cases
from benchmarks.images_hypergradient import agreement
from benchmarks.response_noise import summary

_NOISE = re.compile(r"median signal to noise (?:on minibatches of )?(?P<what>.+): (?P<value>[0-9.]+)")
_SIGNS = re.compile(
    r"(?P<one>\w+)(?: \d+ steps)? and (?P<other>\w+)(?: (?P<ahead>\d+) steps)?: .* (\d+) of (\d+) clear"
)
#: Name of each gradient on the pages.
GRADIENTS = {
    "learned": "learned, at one moment",
    "steady": "learned, mean over moments",
    "implicit": "implicit, at one moment",
    "averaged": "implicit, at averaged weights",
    "retrained": "re-training",
}


def _noise(record: Mapping[str, Any]) -> dict[str, str]:
    """Median signal-to-noise ratio by hyper batch size, and over time."""
    found = map(_NOISE.fullmatch, agreement(record["rows"]))
    return {match["what"]: match["value"] for match in found if match}


def by_share(*records: Mapping[str, Any]) -> str:
    """Median signal-to-noise ratio by the share of the minibatch that trains Θ."""
    rows = []
    for record in records:
        config = record["config"]
        share = {1.0: "all", 0.5: "½", 0.25: "¼"}[config.get("response_fraction", 1.0)]
        found = _noise(record)
        batches = ", ".join(f"{size}: {value}" for size, value in found.items() if size != "over time")
        pairs = "yes" if config.get("antithetic") else "no"
        rows.append([config["task"], share, pairs, f"{len(record['rows'])}", batches, found["over time"]])
    heads = [
        "task",
        "Θ on",
        "`antithetic`",
        "cases",
        "signal to noise, by hyper batch size",
        "signal to noise, over time",
    ]
    return grid(heads, rows, left=3)


def signs(record: Mapping[str, Any]) -> str:
    """Number of cases with equal signs among the cases where both signs are clear, by number of steps ahead."""
    counts: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for match in filter(None, map(_SIGNS.match, agreement(record["rows"]))):
        ahead = "no steps ahead" if match["ahead"] is None else f"{match['ahead']} steps ahead"
        counts.setdefault((match["one"], match["other"]), {})[ahead] = (int(match[4]), int(match[5]))
    horizons = [f"{steps} steps ahead" for steps in record["rows"][0]["retrained"]]
    columns = ["no steps ahead", *horizons]
    rows = []
    for (one, other), found in counts.items():
        if one == other:
            continue
        cells = [f"{found[c][0]} of {found[c][1]}" if c in found else MISSING for c in columns]
        same, clear = (sum(pair[k] for pair in found.values()) for k in (0, 1))
        rows.append([GRADIENTS[one], GRADIENTS[other], *cells, f"{same} of {clear}"])
    return grid(["gradient", "compared with", *columns, "all"], rows, left=2)


def response(*records: Mapping[str, Any]) -> str:
    """Noise of Θ's gradient with antithetic pairs, divided by the noise without them: median (smallest – largest)."""
    rows, shares = [], {0.25: "Θ on ¼", 1.0: "Θ on all"}
    for record in records:
        for (epoch,), entries in cases(summary(record["rows"]), ("epoch",)):
            found = {entry["fraction"]: entry for entry in entries}
            cells = ["{ratio:.2f} ({least:.2f} – {most:.2f})".format(**found[share]) for share in shares]
            rows.append([record["config"]["task"], f"{epoch}", *cells])
    return grid(["task", "after epoch", *shares.values()], rows, left=2)


_SHARES = [
    f"images/hypergradient_noise/digits_{share}.json" for share in ("whole", "half", "quarter", "quarter_antithetic")
]
_FASHION = ("images/hypergradient_fashion.json", "images/hypergradient_noise/fashion_quarter.json")
TABLES = {
    "noise-runs": Table(by_share, ("images/hypergradient_digits.json", "images/hypergradient_fashion.json")),
    "noise-signs-digits": Table(signs, ("images/hypergradient_digits.json",)),
    "noise-signs-fashion": Table(signs, ("images/hypergradient_fashion.json",)),
    "noise-shares": Table(by_share, (*_SHARES, *_FASHION)),
    "noise-response": Table(response, ("images/response_noise.json", "images/response_noise_digits.json")),
}
