"""Which parameters of a model respond to the hyperparameters, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ray_deltastn.response.kinds import LayerKind, kind_of


@dataclass
class Owner:
    """One use of a responding parameter: the layer that uses it, and the parameter's role in this layer."""

    layer_name: str
    layer: nn.Module
    kind: LayerKind
    role: str  # "weight" or "bias"


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
    """Find the parameters that can respond, and all layers that use each of them.

    Returns:
        The owners of each parameter, in the order in which the parameters appear in the model, and the coverage
        report. A tied parameter is listed once.
    """
    owners: dict[nn.Parameter, list[Owner]] = {}
    reasons: dict[nn.Parameter, str] = {}
    inside_attention = {
        id(child) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for child in m.modules()
    }
    for layer_name, layer in model.named_modules():
        kind = kind_of(layer)
        for role, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                reasons[parameter] = "frozen (requires_grad=False)"
            elif id(layer) in inside_attention:
                reasons[parameter] = "used by nn.MultiheadAttention without calling a layer"
            elif kind is None:
                reasons[parameter] = f"owned directly by {type(layer).__name__}"
            elif why := kind.refuse(layer):
                reasons[parameter] = why
            elif role not in ("weight", "bias"):
                reasons[parameter] = f"no rule for the role {role!r} in {type(layer).__name__}"
            else:
                owners.setdefault(parameter, []).append(Owner(layer_name, layer, kind, role))
    # A layer outside the table of kinds would use the weight without displacement. So a parameter that such a layer
    # uses must not respond in any layer.
    for parameter in reasons.keys() & owners.keys():
        owners.pop(parameter)
    report = Coverage(layers=len({owner.layer_name for users in owners.values() for owner in users}))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            report.sizes[name] = parameter.numel()
        if parameter in owners:
            report.covered[name] = "×".join(map(str, parameter.shape))
        else:
            report.uncovered[name] = reasons[parameter]
    return owners, report
