"""Which parameters of a model respond to the hyperparameters, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ray_deltastn.response.kinds import LayerKind, kind_of
from ray_deltastn.response.kinds.base import Rows
from ray_deltastn.response.passes import LEAF, ModulePass, pass_of
from ray_deltastn.response.passes.leaf import rows_of, unsupported

#: A parameter that a module with submodules owns has one row per element up to this size.
ELEMENTS = 2**16


@dataclass
class Owner:
    """One use of a responding parameter: the layer that uses it, and the parameter's role in this layer.

    Attributes:
        layer_name: name of the layer.
        layer: the layer.
        kind: how its parameters move; None means that the parameter itself is replaced while it is displaced.
        role: name of the parameter in the layer.
        rows: what a row of the parameter is.
    """

    layer_name: str
    layer: nn.Module
    kind: LayerKind | ModulePass | None
    role: str
    rows: Rows


@dataclass
class Coverage:
    """Report of which parameters respond and which do not.

    Attributes:
        covered: parameter name → shape as text.
        uncovered: parameter name → the reason why it has no response.
        layers: number of layers with a response.
        sizes: parameter name → number of its weights; frozen parameters are left out.
    """

    covered: dict[str, str] = field(default_factory=dict)
    uncovered: dict[str, str] = field(default_factory=dict)
    layers: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the trainable weights that respond."""
        return sum(self.sizes[name] for name in self.covered) / max(1, sum(self.sizes.values()))

    @property
    def largest_gap(self) -> str:
        """The parameter with the most weights among those that do not respond, and why; empty if all respond."""
        missing = {name: self.sizes.get(name, 0) for name in self.uncovered}
        if not any(missing.values()):
            return ""
        name = max(missing, key=missing.__getitem__)
        return f"'{name}' ({missing[name]:,} weights): {self.uncovered[name]}"

    @property
    def columns(self) -> dict[str, float | str]:
        """The share and the largest gap, for a report."""
        return {"share": self.share, "largest_gap": self.largest_gap}

    @property
    def headline(self) -> str:
        """One line: how much responds."""
        return (
            f"{self.share:.1%} of the trainable weights respond, in {len(self.covered)} parameters of {self.layers} "
            f"layers; {len(self.uncovered)} parameters do not"
        )

    def __str__(self) -> str:
        lines = (f"  without response: {name}: {why}" for name, why in self.uncovered.items())
        return "\n".join([self.headline, *lines])

    def __repr__(self) -> str:
        # One line per reason: a large model can have hundreds of parameters without a response.
        names: dict[str, list[str]] = {}
        for name, why in self.uncovered.items():
            names.setdefault(why, []).append(name)
        lines = []
        for why, own in names.items():
            more = f" and {len(own) - 1} more" if len(own) > 1 else ""
            weights = sum(self.sizes.get(name, 0) for name in own)
            lines.append(f"  without response: {own[0]}{more} ({weights:,} weights): {why}")
        return "\n".join([f"Coverage: {self.headline}", *lines])


def survey(model: nn.Module) -> tuple[dict[nn.Parameter, list[Owner]], Coverage]:
    """Find the parameters that can respond, and all uses of each of them.

    Returns:
        The owners of each parameter, in the order in which the parameters appear in the model, and the coverage
        report. A tied parameter is listed once.
    """
    owners: dict[nn.Parameter, list[Owner]] = {}
    reasons: dict[nn.Parameter, str] = {}
    inside: set[int] = set()  # submodules of modules that compute their output as a whole
    for layer_name, layer in model.named_modules():
        if id(layer) in inside:
            continue
        kind = _kind(layer)
        if isinstance(kind, ModulePass):
            inside |= {id(m) for m in layer.modules()}
        refused = kind.refuse(layer) if isinstance(kind, LayerKind) else unsupported(layer)
        rows = _roles(layer, kind)
        for role, parameter in layer.named_parameters(recurse=isinstance(kind, ModulePass), remove_duplicate=False):
            if not parameter.requires_grad:
                reasons[parameter] = "frozen (requires_grad=False)"
            elif refused:
                reasons[parameter] = refused
            elif role not in rows:
                reasons[parameter] = f"no rule for the role {role!r} in {type(layer).__name__}"
            else:
                owners.setdefault(parameter, []).append(Owner(layer_name, layer, kind, role, rows[role]))
    for parameter, users in owners.items():
        # The linear maps of attention and of recurrent layers know one structure of their weights.
        fixed = {user.rows for user in users if isinstance(user.kind, ModulePass) and user.kind is not LEAF}
        if fixed and fixed != {user.rows for user in users}:
            reasons[parameter] = "tied to a layer with rows of another kind"
    # A layer that cannot follow would use the weight without displacement. So a parameter that such a layer uses must
    # not respond in any layer.
    for parameter in reasons.keys() & owners.keys():
        owners.pop(parameter)
    report = Coverage(layers=len({user.layer_name for users in owners.values() for user in users if user.kind}))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            report.sizes[name] = parameter.numel()
        if parameter in owners:
            report.covered[name] = "×".join(map(str, parameter.shape))
        else:
            report.uncovered[name] = reasons[parameter]
    return owners, report


def _kind(layer: nn.Module) -> LayerKind | ModulePass | None:
    """How a module's own parameters move; None means that they are replaced in the module."""
    kind = kind_of(layer)
    simple = not is_parametrized(layer) and layer._parameters.keys() <= {"weight", "bias"}
    return kind if kind is not None and simple else pass_of(layer)


def _roles(layer: nn.Module, kind: LayerKind | ModulePass | None) -> dict[str, Rows]:
    """What a row is, for each parameter that may respond."""
    if isinstance(kind, LayerKind):
        return {"weight": kind.rows, "bias": "element"}
    if isinstance(kind, ModulePass):
        return kind.parameters(layer)
    own = layer.named_parameters(recurse=False)
    return {role: "element" if p.numel() <= ELEMENTS else rows_of(p) for role, p in own}
