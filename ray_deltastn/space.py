"""The space of tuned hyperparameters: λ, σ, the map s, perturbations and their entropy.

| symbol | code        | shape  | meaning                                          |
|--------|-------------|--------|--------------------------------------------------|
| λ      | `lam`       | (h,)   | current unconstrained hyperparameters            |
| s(λ)   | `values`    | (…, h) | hyperparameters in their own domains             |
| σ      | `scale`     | (h,)   | perturbation scale, softplus of `raw_scale`      |
| ε      | `eps`       | (B, h) | perturbation, one row per example                |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.domains import DomainsName, Hyperparameter
from ray_deltastn.maps import Map

#: Largest |λ| at which `start_from` and `use` start a hyperparameter whose map is flat on both sides.
_STEEP = 4.0
#: Largest σ of a hyperparameter whose λ has a box. On the line the loss of a wide perturbation does not always have a
#: best σ, and the entropy would then increase σ for ever.
MOST_SCALE = 2.0


class HyperSpace(nn.Module):
    """Named hyperparameters with their unconstrained values λ and perturbation scales σ.

    λ and σ are parameters of this module, so `state_dict`, `load_state_dict` and `to` work as for any module.
    `load_state_dict` refuses the state of another space, or of a space with other maps.

    Args:
        hyperparameters: one keyword argument per hyperparameter: its name, and a `Bounded`, `Positive`, `Integer`,
            `LowerBounded`, `UpperBounded` or `Unbounded`.

    Raises:
        ValueError: if there is no hyperparameter, one breaks a rule of its domain (initial value outside of the
            bounds, σ ≤ 0, …), or its name has a character that separates names.
        TypeError: if an argument is not a hyperparameter.

    Examples:
        >>> from ray_deltastn import Bounded, Positive
        >>> space = HyperSpace(dropout=Bounded(0.05, low=0.0, high=0.95), weight_decay=Positive(1e-4))
        >>> round(space.named(space.values())["dropout"].item(), 6)
        0.05
    """

    lam: nn.Parameter
    raw_scale: nn.Parameter
    _order: Tensor
    _inverse_order: Tensor
    _bounds: Tensor
    _shared_columns: Tensor
    _box: Tensor
    _most_raw_scale: Tensor

    def __init__(self, **hyperparameters: Hyperparameter) -> None:
        super().__init__()
        if not hyperparameters:
            raise ValueError("`HyperSpace` needs at least one hyperparameter, got none")
        for name, hyperparameter in hyperparameters.items():
            if not name or any(character in "./" or character.isspace() for character in name):
                advice = re.sub(r"[./\s]+", "_", name) or "dropout"
                raise ValueError(
                    "the name of a hyperparameter must have no '.', '/' or space, which separate names in "
                    f"configurations and reports, got {name!r}; use {advice!r}"
                )
            if not isinstance(hyperparameter, Hyperparameter):
                raise TypeError(f"`{name}` must be a hyperparameter such as `Bounded(...)`, got {hyperparameter!r}")
        self.hyperparameters = dict(hyperparameters)
        self.names = tuple(hyperparameters)
        shared = [i for i, p in enumerate(hyperparameters.values()) if p.per == "batch"]
        self._shared = shared
        self.register_buffer("_shared_columns", torch.tensor(shared, dtype=torch.long), persistent=False)
        self.lam = nn.Parameter(torch.empty(len(hyperparameters)))
        self.raw_scale = nn.Parameter(torch.empty(len(hyperparameters)))
        self._arrange("clamped")
        with torch.no_grad():
            self.lam.copy_(self._initial())
            self.raw_scale.copy_(self._initial_raw_scale())

    def __repr__(self) -> str:
        with torch.no_grad():
            rows = zip(self.hyperparameters.items(), self.values().tolist(), self.scale.tolist(), strict=True)
        lines = [f"{type(self).__name__}, {self.domains} maps"]
        width = max(map(len, self.names))
        for (name, p), value, scale in rows:
            low, high = p.bounds
            below = f" below {high:g}" if math.isfinite(high) else ""
            above = f" above {low:g}" if math.isfinite(low) else ""
            within = f" in [{low:g}, {high:g}]" if above and below else above + below
            lines.append(f"  {name:<{width}}  {type(p).__name__} {value:.4g}{within}, σ {scale:.3g}")
        return "\n".join(lines)

    def _arrange(self, domains: DomainsName) -> None:
        """Take the maps and the boxes of a set of maps."""
        rows = list(self.hyperparameters.values())
        for name, p in self.hyperparameters.items():
            p.check(name, domains)
        self.domains = domains
        used = [p.map_in(domains) for p in rows]
        # Columns are grouped by map, so that s needs one vectorised call per map for any h.
        self._maps: list[Map] = sorted(set(used), key=lambda s: s.name)
        columns = [[i for i, s in enumerate(used) if s is one] for one in self._maps]
        order = [i for group in columns for i in group]
        self._sizes = [len(group) for group in columns]
        self._identity_order = order == list(range(len(order)))
        boxes = [p.box_in(domains) for p in rows]
        self._boxed = any(math.isfinite(limit) for box in boxes for limit in box)
        at: dict[str, Any] = {"device": self.lam.device}
        buffers = {
            "_order": torch.tensor(order, **at),
            "_inverse_order": torch.tensor(sorted(range(len(order)), key=order.__getitem__), **at),
            "_bounds": torch.tensor([rows[i].bounds for i in order], dtype=torch.float64, **at).T.contiguous(),
            "_box": torch.tensor(boxes, dtype=self.lam.dtype, **at).T.contiguous(),
            "_most_raw_scale": torch.tensor(
                [math.log(math.expm1(most)) if math.isfinite(most) else math.inf for most in self.most_scales()],
                dtype=self.lam.dtype,
                **at,
            ),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def _initial(self) -> Tensor:
        initial = [p.initial for p in self.hyperparameters.values()]
        return self.inverse(torch.tensor(initial, dtype=torch.float64, device=self.lam.device)).to(self.lam.dtype)

    def _initial_raw_scale(self) -> Tensor:
        scale = torch.tensor(self.first_scales(), dtype=torch.float64)
        return (scale + torch.log(-torch.expm1(-scale))).to(self.lam.device, self.lam.dtype)

    @torch.no_grad()
    def use(self, domains: DomainsName) -> None:
        """Change the set of maps. The values of the hyperparameters stay what they are.

        A value that its new map cannot have, such as a bound of the sigmoid, moves to the nearest value from which
        training can move it. σ stays, except where it still has the initial scale of the old map.

        Args:
            domains: `"clamped"` or `"open"`, see `ray_deltastn.domains`.

        Raises:
            ValueError: if there is no such set of maps, or an initial value breaks a rule of its new map.
        """
        if domains not in get_args(DomainsName):
            raise ValueError(f"`domains` must be one of {', '.join(get_args(DomainsName))}, got {domains!r}")
        if domains == self.domains:
            return
        untouched, scaled = _same(self.lam, self._initial()), _same(self.raw_scale, self._initial_raw_scale())
        values = self.values()
        self._arrange(domains)
        self.lam.copy_(
            torch.where(untouched, self._initial(), self._startable(self.inverse(values)).to(self.lam.dtype))
        )
        self.raw_scale.copy_(torch.where(scaled, self._initial_raw_scale(), self.raw_scale))

    def _startable(self, lam: Tensor) -> Tensor:
        """λ from which training can move: inside its box, and not far out where s is flat."""
        flat = [p.map_in(self.domains).flat for p in self.hyperparameters.values()]
        steep = torch.tensor(
            [(-_STEEP if low and high else -math.inf, _STEEP if low and high else math.inf) for low, high in flat],
            dtype=lam.dtype,
            device=lam.device,
        ).T
        return lam.clamp(*steep).clamp(*self._box.to(lam.dtype))

    @property
    def box(self) -> Tensor:
        """Smallest and largest λ, (2, h); infinite for a hyperparameter without limits."""
        return self._box

    def first_scales(self) -> list[float]:
        """Declared σ of each hyperparameter, known without a look at the device."""
        return [p.scale_in(self.domains) for p in self.hyperparameters.values()]

    def most_scales(self) -> list[float]:
        """Largest σ of each hyperparameter while it is tuned; infinite without a box."""
        boxes = [p.box_in(self.domains) for p in self.hyperparameters.values()]
        return [MOST_SCALE if all(map(math.isfinite, box)) else math.inf for box in boxes]

    @torch.no_grad()
    def keep_inside(self, scale: bool) -> None:
        """Put λ back into its box, on the device.

        Args:
            scale: also limit σ of each hyperparameter with a box to `MOST_SCALE`.
        """
        if self._boxed:
            self.lam.clamp_(*self._box)
            if scale:
                self.raw_scale.clamp_(max=self._most_raw_scale)

    @torch.no_grad()
    def keep_inward(self, moment: Tensor) -> None:
        """Remove the part of an optimiser's moment that would push λ out of its box, where λ is on a limit.

        Args:
            moment: average of gradients (h,), changed in place; λ moves against it.
        """
        if self._boxed:
            low, high = self._box
            at_low, at_high = self.lam <= low, self.lam >= high
            moment.copy_(torch.where((at_low & (moment > 0)) | (at_high & (moment < 0)), 0.0, moment))

    def __len__(self) -> int:
        return len(self.names)

    def _apply(self, fn: Any, recurse: bool = True) -> HyperSpace:
        # The bounds stay in float64 for every dtype of λ, because s is computed in float64.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._bounds.dtype != torch.float64:
            self._arrange(self.domains)
        return self

    def _per_map(self, which: str, inputs: Tensor) -> Tensor:
        inputs = inputs.to(torch.float64)
        if not self._identity_order:
            inputs = inputs[..., self._order]
        if len(self._maps) == 1:
            out = getattr(self._maps[0], which)(inputs, self._bounds[0], self._bounds[1])
        else:
            parts = zip(self._maps, inputs.split(self._sizes, -1), self._bounds.split(self._sizes, -1), strict=True)
            out = torch.cat([getattr(s, which)(part, low, high) for s, part, (low, high) in parts], -1)
        mapped: Tensor = out if self._identity_order else out[..., self._inverse_order]
        return mapped

    def values(self, lam: Tensor | None = None) -> Tensor:
        """s(λ), the hyperparameters in their own domains (Eqn. F.1); values of `Integer` are rounded.

        Args:
            lam: unconstrained values (…, h). The default is the current λ.

        Returns:
            Values (…, h) in float64.
        """
        return self._per_map("forward", self.lam if lam is None else lam)

    def inverse(self, values: Tensor) -> Tensor:
        """s⁻¹(values), unconstrained values (…, h) in float64; they are finite on a bound too."""
        return self._per_map("inverse", values)

    def start_from(self, values: Mapping[str, float], scale: Mapping[str, float] | None = None) -> None:
        """Set the values and the perturbation scales of some hyperparameters, for example to those of an earlier run.

        The other hyperparameters do not change. λ is put into its box. λ on the sigmoid is clamped to [−4, 4], because
        s is so flat outside this interval that training cannot move λ.

        Args:
            values: name → value in its domain.
            scale: name → σ.

        Raises:
            ValueError: if a name is unknown, a value lies outside its domain, or a scale is not positive.
        """
        scale = scale or {}
        self.require([*values, *scale], "`start_from`")
        for name, value in values.items():
            self.hyperparameters[name].check_value(name, value)
        for name, sigma in scale.items():
            if not (math.isfinite(sigma) and sigma > 0):
                raise ValueError(f"`scale > 0` must hold, got {sigma} for '{name}'")
        with torch.no_grad():
            for i, name in enumerate(self.names):
                if name in values:
                    everywhere = torch.full((len(self),), float(values[name]), dtype=torch.float64)
                    self.lam[i] = self._startable(self.inverse(everywhere.to(self.lam.device)))[i]
                if name in scale:
                    self.raw_scale[i] = scale[name] + math.log(-math.expm1(-scale[name]))

    def named(self, values: Tensor) -> dict[str, Tensor]:
        """Values (…, h) as a dictionary of tensors (…) by name."""
        return dict(zip(self.names, values.unbind(-1), strict=True))

    @property
    def scale(self) -> Tensor:
        """σ = softplus(raw_scale), positive, (h,)."""
        return F.softplus(self.raw_scale)

    def sample(self, batch: int, generator: torch.Generator | None = None, antithetic: bool = False) -> Tensor:
        """Draw perturbations ε = σ ⊙ z, z ~ N(0, I), differentiable in σ.

        Args:
            batch: number of rows B.
            generator: random generator on the device of λ; None means PyTorch's default generator.
            antithetic: make the second half of the rows the negative of the first half. Columns with `per="batch"`
                are not negated.

        Returns:
            ε (B, h). A hyperparameter with `per="batch"` has the same entry in every row.
        """
        drawn = batch - batch // 2 if antithetic else batch
        z = torch.randn(drawn, len(self), generator=generator, device=self.lam.device, dtype=self.lam.dtype)
        if antithetic:
            z = torch.cat([z, -z])[:batch]
        if self._shared:
            z[:, self._shared_columns] = z[0, self._shared_columns]
        return self.scale * z

    @property
    def differs_in_a_batch(self) -> bool:
        """Whether the examples of a minibatch get different perturbations: at least one is `per="example"`."""
        return any(p.per == "example" for p in self.hyperparameters.values())

    def entropy(self) -> Tensor:
        """H[p(ε|σ)] = Σ log σ + h/2·log(2πe), the entropy of the perturbation (Eqn. 2.7)."""
        return self.scale.log().sum() + 0.5 * len(self) * math.log(2 * math.pi * math.e)

    def fixed_values(self, given: Mapping[str, Any], epochs: int | None = None) -> Tensor:
        """Constant values and schedules as a table with one row per epoch.

        Hyperparameters that are not named keep their initial value.

        Args:
            given: name → number, or name → one number per epoch. The last number of a schedule holds for all later
                epochs.
            epochs: smallest number of rows. A longer schedule makes the table longer.

        Returns:
            Table (rows, h) in float64.

        Raises:
            ValueError: if a name is unknown, a schedule is empty, or a value lies outside its domain. The bounds are
                allowed.
        """
        self.require(given, "`hyperparameters`")
        rows = max([epochs or 1, *(len(v) for v in given.values() if isinstance(v, (list, tuple)))])
        table = []
        for name, hyperparameter in self.hyperparameters.items():
            value = given.get(name, hyperparameter.initial)
            if isinstance(value, (list, tuple)) and not value:
                raise ValueError(f"a `schedule` must have at least one value, got none for '{name}'")
            hyperparameter.check_value(name, value)
            column = list(value) if isinstance(value, (list, tuple)) else [value]
            table.append((column + [column[-1]] * rows)[:rows])
        return torch.tensor(table, dtype=torch.float64).T.contiguous()

    def require(self, names: Any, where: str) -> None:
        """Check that the space has hyperparameters with these names.

        Args:
            names: names to check.
            where: what gives the names; the message starts with it.

        Raises:
            ValueError: if a name is unknown.
        """
        for name in names:
            if name not in self.hyperparameters:
                known = ", ".join(self.names)
                raise ValueError(f"{where} names the unknown hyperparameter {name!r}; the space has: {known}")

    def search_ranges(self) -> dict[str, tuple[str, float, float]]:
        """Ranges for black-box search: name → (function of `ray.tune`, its first argument, its second argument).

        `Integer` gives `randint`, `Positive` gives `loguniform`, every other domain gives `uniform`.

        Raises:
            ValueError: if a domain is open and has no `search` range.
        """
        ranges: dict[str, tuple[str, float, float]] = {}
        for name, p in self.hyperparameters.items():
            low, high = p.search_range(name)
            if p.integer:
                ranges[name] = ("randint", int(low), int(high) + 1)
            else:
                ranges[name] = ("loguniform" if p.log_search else "uniform", low, high)
        return ranges

    def to_tune(self) -> dict[str, Any]:
        """Ray Tune's domains of these hyperparameters, for black-box search with `method="fixed"`.

        See `search_ranges`.

        Raises:
            ValueError: if a domain is open and has no `search` range.
        """
        from ray import tune  # imported here, because this module must work without Ray

        return {name: getattr(tune, kind)(low, high) for name, (kind, low, high) in self.search_ranges().items()}

    def fingerprint(self) -> dict[str, str]:
        """Description that a loaded state must match: name → position, kind, bounds, map, box of λ and `per`."""
        found = {}
        for place, (name, p) in enumerate(self.hyperparameters.items()):
            low, high = p.box_in(self.domains)
            box = f" in ({low:g}, {high:g})" if math.isfinite(low) or math.isfinite(high) else ""
            found[name] = f"{place}: {type(p).__name__}{p.bounds}, map {p.map_in(self.domains).name}{box}, per {p.per}"
        return found

    def get_extra_state(self) -> dict[str, str]:
        """Fingerprint, which `state_dict` saves with the state."""
        return self.fingerprint()

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Check the fingerprint of a state, called by `load_state_dict`.

        Raises:
            ValueError: if the state belongs to another space.
        """
        own = self.fingerprint()
        for name in own.keys() | state.keys():
            if state.get(name) != own.get(name):
                raise ValueError(
                    f"`state` must come from the same space with the same maps, got {state.get(name)!r} for '{name}', "
                    f"here {own.get(name)!r}"
                )


def _same(found: Tensor, initial: Tensor) -> Tensor:
    """Whether parameters still have their initial values, also after a conversion from float32 to float64."""
    return torch.isclose(found, initial, rtol=4 * torch.finfo(torch.float32).eps, atol=0.0)
