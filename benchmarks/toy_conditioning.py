"""Condition number of the hypernetwork's Gauss-Newton Hessian on ridge regression (Observations 1 and 2).

    python -m benchmarks.toy_conditioning --data diabetes,concrete --json FILE --plot FILE.png

Nothing is trained. The network is y = wᵀx, and a dense linear hypernetwork gives its weights, w = φ₀ + Φ·u with the
input u = λ₀ + ε (uncentred, 2.6) or u = ε (centred, 3.1), ε ~ N(0, σ²). With λ̂ = (u, 1), C = XᵀX/n and
g(λ) = e^λ/n, the Hessian of E_ε L_T(λ₀ + ε, w) in φ = (Φ, φ₀) is

    G_φ = E[λ̂λ̂ᵀ ⊗ (C + g(λ₀ + ε)·I)].

It is equal to the Gauss-Newton Hessian, because L_T is quadratic in w and w is linear in φ.

| loss            | what holds                                                                                    |
|-----------------|-----------------------------------------------------------------------------------------------|
| `squared error` | G_φ = P ⊗ C with P = E[λ̂λ̂ᵀ], because J_yw and H_y do not depend on λ. So κ(G_φ) = κ(P)·κ(C). |
| `with penalty`  | (3.4) is an approximation, because g depends on ε. With Q = E[g(λ₀ + ε)·λ̂λ̂ᵀ] the Hessian is   |
|                 | P ⊗ C + Q ⊗ I, and κ(G_φ) ≤ max(κ(P)·κ(C), κ(Q)).                                             |

The bound follows from λ_max(G_φ) ≤ λ_max(P)·λ_max(C) + λ_max(Q), the same for λ_min with ≥, and the fact that
(a + b)/(c + d) is at most max(a/c, b/d).

One row per data set, loss, λ₀, σ and parameterisation:

- `measured`: κ of the dense Hessian (2d, 2d), which autograd computes in float64 from L_T. The expectation over ε is a
  Gauss-Hermite sum.
- `inputs`: κ(E[λ̂λ̂ᵀ]). `network`: κ(G_w) with G_w = C, or C + E[g(λ₀ + ε)]·I with the penalty.
- `product`: κ(E[λ̂λ̂ᵀ])·κ(G_w), which Observation 2 gives for the Kronecker product of (3.4).
- `bound`: the upper bound above; for `squared error` it is the product.

λ₀ is on the unconstrained axis. 3.9 = ln 50 is the initial value of the paper's larger sets (H.1).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import record
from benchmarks.common.arguments import number, prepare, several
from benchmarks.common.machine import versions
from benchmarks.common.record import rounded
from benchmarks.common.toy_data import load, split
from benchmarks.common.toy_problems import Problem

LOSSES = ("squared error", "with penalty")
#: Gauss-Hermite nodes. 60 nodes integrate polynomials times e^ε to rounding for σ ≤ 3.
NODES = 60
KEYS = ("data", "loss", "lam", "sigma", "centred", "measured", "inputs", "network", "product", "bound")


def nodes(sigma: float) -> tuple[Tensor, Tensor]:
    """Points ε (k,) and weights (k,) with Σ weight·f(ε) = E f(ε) for ε ~ N(0, σ²)."""
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return sigma * torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def condition(matrix: Tensor) -> float:
    """κ of a symmetric positive definite matrix."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])


def inputs(lam: float, eps: Tensor, centred: bool) -> Tensor:
    """λ̂ (k, 2): the input of the hypernetwork and the constant 1, for perturbations ε (k,)."""
    return torch.stack([eps if centred else lam + eps, torch.ones_like(eps)], -1)


def hessian(problem: Problem, lam: float, sigma: float, centred: bool, penalty: bool) -> Tensor:
    """Dense Hessian (2d, 2d) of E_ε L_T(λ₀ + ε, φ₀ + Φu) in (Φ, φ₀), by autograd.

    Args:
        problem: a ridge problem, with its data.
        lam: λ₀.
        sigma: σ.
        centred: whether u is ε instead of λ₀ + ε.
        penalty: whether L_T includes the penalty.
    """
    eps, weights = nodes(sigma)
    given, data = inputs(lam, eps, centred), problem.data

    def loss(phi: Tensor) -> Tensor:
        w = given @ phi.view(2, -1)  # (k, d)
        if penalty:
            return weights @ problem.train_loss(lam + eps, w)
        return weights @ (0.5 * (w @ data.x.T - data.t).square().mean(-1))

    found: Tensor = torch.func.hessian(loss)(torch.zeros(2 * problem.dimension, dtype=torch.float64))
    return found


def measure(problem: Problem, lam: float, sigma: float, centred: bool, penalty: bool) -> dict[str, Any]:
    """The row of one case; see `hessian` for the arguments."""
    eps, weights = nodes(sigma)
    given = inputs(lam, eps, centred)
    strength = problem.strength(lam + eps)[0]
    second = (weights[:, None] * given).T @ given
    weighted = ((weights * strength)[:, None] * given).T @ given
    network = problem.covariance
    if penalty:
        network = network + (weights @ strength) * torch.eye(problem.dimension, dtype=torch.float64)
    product = condition(second) * condition(network)
    bound = max(condition(second) * condition(problem.covariance), condition(weighted)) if penalty else product
    row = {
        "data": problem.data.name,
        "loss": LOSSES[penalty],
        "lam": lam,
        "sigma": sigma,
        "centred": centred,
        "measured": condition(hessian(problem, lam, sigma, centred, penalty)),
        "inputs": condition(second),
        "network": condition(network),
        "product": product,
        "bound": bound,
        "dimension": problem.dimension,
        "training_rows": len(problem.data.x),
        **versions(),
    }
    return {key: rounded(value) for key, value in row.items()}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw κ(G_φ) over λ₀: one row of panels per data set, one column per loss, one colour per σ.

    Marks are measured: filled for the uncentred response, open for the centred one. Lines are the products.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    sets = list(dict.fromkeys(row["data"] for row in rows))
    sigmas = sorted({row["sigma"] for row in rows})
    figure, axes = plt.subplots(
        len(sets),
        2,
        figsize=(9.5, 1.5 + 3.1 * len(sets)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(sigmas)))
    for line, name in zip(axes, sets, strict=True):
        for axis, loss in zip(line, LOSSES, strict=True):
            for sigma, shade in zip(sigmas, shades, strict=True):
                for centred in (False, True):
                    case = (name, loss, sigma, centred)
                    mine = [r for r in rows if (r["data"], r["loss"], r["sigma"], r["centred"]) == case]
                    lams = [row["lam"] for row in mine]
                    axis.plot(lams, [r["product"] for r in mine], "--" if centred else "-", color=shade, linewidth=1.2)
                    axis.plot(
                        lams, [r["measured"] for r in mine], "o", color=shade, ms=5, mfc="none" if centred else shade
                    )
            axis.set_yscale("log")
            axis.set_title(f"{name}: {loss}", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.2)
        line[0].set_ylabel(r"$\kappa(G_\phi)$")
    for axis in axes[-1]:
        axis.set_xlabel("λ₀ (unconstrained)")
    handles = [Line2D([], [], color=shade, label=f"σ = {sigma:g}") for sigma, shade in zip(sigmas, shades, strict=True)]
    handles += [
        Line2D([], [], color="black", marker="o", ls="-", lw=1.2, ms=5, label="uncentred: measured, product"),
        Line2D(
            [], [], color="black", marker="o", mfc="none", ls="--", lw=1.2, ms=5, label="centred: measured, product"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Smallest and largest ratio of measured κ to the product, and of uncentred to centred κ, per data set and loss."""
    entries = []
    for (name, loss), mine in record.cases(rows, ("data", "loss")):
        ratios = [row["measured"] / row["product"] for row in mine]
        pairs = [{row["centred"]: row["measured"] for row in pair} for _, pair in record.cases(mine, ("lam", "sigma"))]
        gains = [pair[False] / pair[True] for pair in pairs]
        entry = {"data": name, "loss": loss, "measured_over_product": [min(ratios), max(ratios)]}
        entries.append({key: rounded(value) for key, value in (entry | {"gain": [min(gains), max(gains)]}).items()})
    return entries


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per row."""
    return [
        f"{row['data']}  {row['loss']:13}  λ₀ {row['lam']:4.1f}  σ {row['sigma']:<4g} "
        f"{'centred' if row['centred'] else 'uncentred':9}  κ {row['measured']:.4g}  product {row['product']:.4g}  "
        f"bound {row['bound']:.4g}"
        for row in rows
    ]


RECORD = record.Kind("benchmarks.toy_conditioning", KEYS, (), 1, tuple(versions()), summary, lines, plot)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per case, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="diabetes", help="comma-separated, as for benchmarks.toy")
    parser.add_argument("--data-root", type=Path, help="default: the environment variable RAY_DELTASTN_DATA")
    parser.add_argument("--lams", type=several(number()), default="-4,-2,0,2,3.9", help="values of λ₀")
    parser.add_argument("--sigmas", type=several(number(above=0)), default="0.1,0.3,1,2", help="values of σ")
    RECORD.add_arguments(parser)
    options = parser.parse_args(arguments)
    command = RECORD.command(arguments)
    if options.rows:
        RECORD.redraw(parser, options, command)
        return
    try:
        found = [load(name, options.data_root) for name in options.data.split(",")]
        problems = [Problem("ridge", split(*loaded, 0)) for loaded in found]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    torch.set_num_threads(options.threads)
    rows = [
        measure(problem, lam, sigma, centred, penalty)
        for problem in problems
        for penalty in (False, True)
        for lam in options.lams
        for sigma in options.sigmas
        for centred in (False, True)
    ]
    print("\n".join(lines(rows)))
    if options.json:
        RECORD.save(options.json, command, rows)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
