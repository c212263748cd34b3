"""The rule that an option breaks, in one line, from pydantic's error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError


def first_rule(error: ValidationError, given: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One line about the first rule that is broken."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    value = given[name]
    parts = list(_parts(model.model_fields[name].annotation, model.model_fields[name].metadata))
    choices = [choice for kind, _ in parts if get_origin(kind) is Literal for choice in get_args(kind)]
    numbers = [(kind, rules) for kind, rules in parts if kind in (int, float)]
    if not numbers:
        rule = f"one of {', '.join(choices)}" if choices else {bool: "true or false"}.get(parts[0][0], "text")
        return f"`{name}` must be {rule}, got {value!r}"
    if choices and isinstance(value, str):
        return f"`{name}` must be a number or {', '.join(map(repr, choices))}, got {shown(value)}"
    kind, rules = numbers[0]
    words = " and ".join(f"{name} {sign} {bound:g}" for sign, bound in rules)
    whole = " for a whole number" if kind is int else " for a number" if isinstance(value, str) else ""
    return f"`{words}` must hold{whole}, got {name}={shown(value)}"


def shown(value: Any) -> str:
    """A value in an error message about a number; of a text it says that it is one, because `'1'` looks like 1."""
    return f"{value!r}, a text" if isinstance(value, str) else repr(value)


def _parts(annotation: Any, metadata: Iterable[Any]) -> Iterator[tuple[Any, list[tuple[str, float]]]]:
    """Types in an annotation with the bounds of each, without None."""
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        yield from _parts(inner, [m for one in own for m in getattr(one, "metadata", [one])])
    elif get_origin(annotation) is Literal or not get_args(annotation):
        bounds = [(sign, getattr(one, name)) for name, sign in signs for one in metadata if hasattr(one, name)]
        if annotation is not type(None):
            yield annotation, bounds
    else:
        for inner in get_args(annotation):
            yield from _parts(inner, metadata)
