"""Parameters that are replaced in their modules, and passes of modules that are replaced, while a network is displaced.

| symbol      | code   | shape                | meaning                                                              |
|-------------|--------|----------------------|----------------------------------------------------------------------|
| w₀ + Θδ     |        | (*shape)             | one displacement for all examples: exact for any use of the parameter |
| w₀ + (Θδ)_b |        | (B, 1, …, *shape)    | one per example: exact if the parameter broadcasts over the batch     |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ray_deltastn.response.passes import Moved, Part
from ray_deltastn.response.passes.leaf import LARGEST

#: How a parameter (…) may stand in for one per example: its first axis of size 1 becomes the batch (−1), or the batch
#: and so many axes of size 1 come before its own.
Lead = int


@dataclass(frozen=True)
class Replacement:
    """One parameter in one module, and how it moves."""

    name: str
    holder: nn.Module
    role: str
    part: Part


class Replaced:
    """The parameters of a model that are replaced.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = [model]
        self._uses: list[tuple[str, nn.Module, str]] = []
        self._leads: dict[str, Lead] = {}

    def uses(self) -> list[tuple[str, nn.Module, str]]:
        """Names of the parameters, the modules that have them, and their names there."""
        return self._uses

    def add(self, name: str, holder: nn.Module, role: str) -> None:
        """Replace a parameter in one module."""
        self._uses = [*self._uses, (name, holder, role)]

    def everywhere(self, name: str, parameter: nn.Parameter) -> None:
        """Replace a parameter in each module that has it."""
        self.remove(name)
        self._uses = self._uses + [
            (name, m, role) for m in self._model[0].modules() for role, p in m._parameters.items() if p is parameter
        ]

    def remove(self, name: str) -> None:
        """Replace a parameter no longer."""
        self._uses = [use for use in self._uses if use[0] != name]

    def restore(self, uses: list[tuple[str, nn.Module, str]]) -> None:
        """Go back to what `uses` has returned before."""
        self._uses = uses

    def leads(self, parameter: Tensor) -> list[Lead]:
        """The ways in which a parameter may broadcast over the batch, the most likely first."""
        within = [-1] if parameter.dim() > 1 and parameter.shape[0] == 1 else []
        return [*within, *((1, 0, 2, 3) if parameter.dim() == 1 else (0, 1, 2, 3))]

    def set_lead(self, name: str, lead: Lead) -> None:
        """Choose how a parameter broadcasts over the batch."""
        self._leads[name] = lead

    @contextmanager
    def within(
        self,
        parameters: Sequence[Replacement],
        passes: Mapping[nn.Module, Callable[..., Any]],
        linearised: bool,
    ) -> Iterator[None]:
        """Replace parameters and passes within the context.

        Args:
            parameters: what is replaced, and how it moves.
            passes: functions that take the place of the `forward` of modules.
            linearised: whether changes go to the tangent.
        """
        kept: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for one in parameters:
                table: dict[str, Any] = one.holder._parameters
                kept.append((table, one.role, table[one.role]))
                table[one.role] = self._moved(one.name, table[one.role], one.part, linearised)
            for module, forward in passes.items():
                attributes: dict[str, Any] = module.__dict__
                kept.append((attributes, "forward", attributes.get("forward")))
                attributes["forward"] = _own(module, forward, attributes.get("forward"))
            yield
        finally:
            for table, name, value in reversed(kept):
                if value is None:
                    table.pop(name, None)
                else:
                    table[name] = value

    def _moved(self, name: str, parameter: Tensor, part: Part, linearised: bool) -> Tensor:
        count = part.rows.shape[0]
        if count > 1 and count * parameter.numel() > LARGEST:
            raise ValueError(
                f"the copies of '{name}' must have at most {LARGEST:,} elements, got {count * parameter.numel():,} for "
                f'{count} examples; give all hyperparameters `per="batch"`'
            )
        change = Moved(self._model[0], {name: part}, linearised).change(name)
        if count == 1:
            return parameter + change[0]
        lead = self._leads.get(name, self.leads(parameter)[0])
        if lead < 0:
            return parameter + change.squeeze(1)
        return parameter + change.reshape(count, *(1,) * lead, *parameter.shape)


def _own(module: nn.Module, forward: Callable[..., Any], before: Any) -> Callable[..., Any]:
    """`forward` for one call; inside it the module has the `forward` that it had before."""

    def run(*args: Any, **kwargs: Any) -> Any:
        attributes = module.__dict__
        own = attributes.pop("forward")
        if before is not None:
            attributes["forward"] = before
        try:
            return forward(*args, **kwargs)
        finally:
            attributes["forward"] = own

    return run


def inside(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter with a dotted name, and its name there."""
    *path, role = name.split(".")
    return module.get_submodule(".".join(path)), role
