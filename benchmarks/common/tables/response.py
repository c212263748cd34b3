"""Tables of the learned response: its Jacobian, its hypergradient, and the effect of centring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, fixed, grid
from benchmarks.common.pages import Table
from benchmarks.common.record import cases


def _by_scale(record: Mapping[str, Any], cell: Any) -> tuple[list[str], list[tuple[str, float, list[str], Any]]]:
    """Methods, and for each problem and σ one cell per method and the entry of Δ-STN."""
    methods = list(dict.fromkeys(entry["method"] for entry in record["summary"]))
    rows = []
    for (problem, sigma), entries in cases(record["summary"], ("problem", "sigma")):
        mine = {entry["method"]: entry for entry in entries}
        cells = [cell(mine[method]) if method in mine else MISSING for method in methods]
        rows.append((problem, sigma, cells, mine["delta-stn"]))
    return methods, rows


def jacobian(record: Mapping[str, Any]) -> str:
    """Median relative error at the end, of the learned Jacobian and of the best linear response."""
    methods, rows = _by_scale(record, lambda entry: fixed(entry["jacobian_error"]["median"], 3))
    header = ["problem", "σ", "limit of `delta-stn`", *(f"`{method}`" for method in methods)]
    lines = [
        [problem, f"{sigma:g}", fixed(entry["limit_error"]["median"], 3), *cells]
        for problem, sigma, cells, entry in rows
    ]
    return grid(header, lines, left=2)


def hypergradient(record: Mapping[str, Any]) -> str:
    """Median cosine of the learned and the exact hypergradient; in brackets the ratio ⟨q, d⟩/⟨d, d⟩."""

    def cell(entry: Mapping[str, Any]) -> str:
        cosine, ratio = (entry[f"hypergradient_{key}"]["median"] for key in ("cosine", "ratio"))
        return f"{cosine:.2f} ({ratio:.2f})".replace("-", "−")

    methods, rows = _by_scale(record, cell)
    header = ["problem", "σ", *(f"`{method}`" for method in methods)]
    return grid(header, [[problem, f"{sigma:g}", *cells] for problem, sigma, cells, _ in rows], left=2)


def decoupling(record: Mapping[str, Any]) -> str:
    """Median excursion of λ over the seeds (largest in brackets), by setting and variant."""
    variants = list(dict.fromkeys(entry["variant"] for entry in record["summary"]))
    starts = {row["data"]: row["lambda_initial"] for row in record["rows"]}
    lines = []
    for (lr, warmup, data), entries in cases(record["summary"], ("lr", "warmup", "data")):
        found = {entry["variant"]: entry["excursion"] for entry in entries}
        angle = entries[0]["angle_initial"]["median"]
        cells = [f"{found[v]['median']:.2f} ({found[v]['largest']:.2f})" for v in variants]
        lines.append([f"{lr:g}", f"{warmup}", data, f"{starts[data]:.1f}", f"{angle:.0f}°", *cells])
    header = ["lr", "warm-up steps", "data", "λ at the start", "angle at the start", *(f"`{v}`" for v in variants)]
    return grid(header, lines, left=3)


TABLES = {
    "response-jacobian": Table(jacobian, ("toy/response_jacobian.json",)),
    "response-hypergradient": Table(hypergradient, ("toy/response_jacobian.json",)),
    "decoupling": Table(decoupling, ("toy/decoupling.json",)),
}
