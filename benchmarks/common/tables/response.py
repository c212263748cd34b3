"""Tables of the response: its Jacobian, its hypergradient, its conditioning, the effect of centring, STN's spike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, fixed, grid, significant
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


def conditioning(record: Mapping[str, Any]) -> str:
    """Condition numbers of the first data set at two σ: measured (product), uncentred and centred."""

    def shown(value: float) -> str:
        return significant(value) if value < 1000 else f"{value:,.0f}"

    first = [row for row in record["rows"] if row["data"] == record["rows"][0]["data"] and row["sigma"] in (0.1, 1.0)]
    lines = []
    for (loss, sigma, lam), pair in sorted(cases(first, ("loss", "sigma", "lam"))):
        found = {row["centred"]: row for row in pair}
        cells = [f"{shown(found[c]['measured'])} ({shown(found[c]['product'])})" for c in (False, True)]
        ratio = found[False]["measured"] / found[True]["measured"]
        lines.append([loss, f"{sigma:g}", f"{lam:g}".replace("-", "−"), *cells, significant(ratio)])
    return grid(["loss", "σ", "λ₀", "uncentred", "centred", "ratio of the measured"], lines, left=1)


def spike(record: Mapping[str, Any]) -> str:
    """Median early excursion of λ (largest in brackets), final regret and final σ, by learning rate and method."""
    methods = list(dict.fromkeys(entry["method"] for entry in record["summary"]))
    names = {"hyper_lr": "α₂, σ fixed", "scale_lr": "α₃"}
    lines = []
    for (sweep, data, rate), entries in sorted(cases(record["summary"], ("sweep", "data", "rate"))):
        found = {entry["method"]: entry for entry in entries}
        away = [found[m]["early_excursion"] for m in methods]
        cells = [f"{e['median']:.2f} ({e['largest']:.2f})" for e in away]
        cells += [significant(100 * found[m]["regret_final"]["median"]) for m in methods]
        lines.append([names[sweep], data, f"{rate:g}", *cells, fixed(found["stn"]["scale_final"]["median"], 1)])
    heads = ["varied", "data", "rate", *(f"`{m}`" for m in methods), *(f"`{m}`: regret" for m in methods)]
    return grid([*heads, "`stn`: last σ"], lines, left=2)


TABLES = {
    "conditioning": Table(conditioning, ("toy/conditioning.json",)),
    "spike": Table(spike, ("toy/spike.json",)),
    "response-jacobian": Table(jacobian, ("toy/response_jacobian.json",)),
    "response-hypergradient": Table(hypergradient, ("toy/response_jacobian.json",)),
    "decoupling": Table(decoupling, ("toy/decoupling.json",)),
}
