"""Search domains as texts, such as `loguniform(0.01, 0.3)` in a YAML file: they are read without Ray.

`ray_deltastn.tune.search.domains` reads Tune's own objects, with the same rules.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray_deltastn.tune.search.axes import Axis, Choice, Interval, Multiples, identical, is_number, label_of, plain

#: Functions of `ray.tune` that make a domain which can be read → the smallest and the largest number of arguments.
#: Those with `log` also have the argument `base`, which Tune ignores.
DOMAINS = {
    "uniform": (2, 2),
    "loguniform": (2, 3),
    "quniform": (3, 3),
    "qloguniform": (3, 4),
    "randint": (2, 2),
    "lograndint": (2, 3),
    "qrandint": (2, 3),
    "qlograndint": (3, 4),
    "choice": (1, 1),
}

Path = tuple[Any, ...]


def split_text(name: str, text: str) -> tuple[str, tuple[Any, ...]]:
    """Return the function and the arguments of a domain's text.

    Args:
        name: the searched key, for the error message.
        text: a function in `DOMAINS` with its arguments.

    Raises:
        ValueError: if the text does not describe a domain.
    """
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", str(text), re.DOTALL)
    if match is None or match[1] not in DOMAINS:
        raise ValueError(f"`search.{name}` must be one of {', '.join(DOMAINS)} with its bounds, got {text!r}")
    try:
        arguments: tuple[Any, ...] = ast.literal_eval(f"({match[2]},)")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"`search.{name}` must be a domain with its bounds, got {text!r}: {error}") from None
    least, most = DOMAINS[match[1]]
    if not least <= len(arguments) <= most:
        count = f"{least}" if least == most else f"{least} or {most}"
        raise ValueError(
            f"`search.{name}` must be a domain with its bounds, got {text!r}: `{match[1]}` has {count} "
            f"{'argument' if count == '1' else 'arguments'}, not {len(arguments)}"
        )
    return match[1], arguments


def read_text(name: str, text: str) -> Axis:
    """Return the axis of a domain's text; it is the axis that `read_domain` makes of Tune's domain.

    Args:
        name: the key of `search`, for error messages.
        text: a function in `DOMAINS` with its arguments.

    Raises:
        ValueError: if the text does not describe a domain, or the domain has no values.

    Examples:
        >>> read_text("lr", "loguniform(0.01, 0.3)").extremes
        [0.01, 0.29999999999999993]
    """
    kind, (*bounds,) = split_text(name, text)
    name = f"search.{name}"
    if kind == "choice":
        return choice_axis(name, bounds[0], replaced)
    whole, log = kind.endswith("randint"), "log" in kind
    step = (bounds[2] if len(bounds) > 2 else 1) if kind.startswith("q") else None
    return numeric_axis(name, kind, bounds[0], bounds[1], step, log, whole)


def numeric_axis(name: str, kind: str, low: Any, high: Any, step: Any, log: bool, whole: bool) -> Interval | Multiples:
    """Return the axis of a numeric domain.

    Args:
        name: the searched key, for error messages.
        kind: function of `ray.tune`, for the label and error messages.
        low: lower bound.
        high: upper bound.
        step: all values are multiples of it; None if the domain is not quantised.
        log: whether the values are uniform in their logarithm.
        whole: whether the values are whole numbers.

    Raises:
        ValueError: if the domain has no values.
    """
    given = f"low={low}, high={high}" + (f", q={step}" if step is not None else "")
    numbers = [low, high] if step is None else [low, high, step]
    if not all(map(is_number, numbers)):
        raise ValueError(f"`finite bounds and q` must hold for '{name}', got {given}")
    if whole and any(number != int(number) for number in numbers):
        raise ValueError(f"`whole bounds and q` must hold for '{name}', a {kind}, got {given}")
    as_given = int if whole else float
    label = f"{kind}({', '.join(str(as_given(number)) for number in numbers)})"
    low, high = as_given(low), as_given(high)
    if log and not low > 0:
        raise ValueError(f"`0 < low` must hold for '{name}', got {given}")
    if step is None and not whole:
        if not low < high:
            raise ValueError(f"`low < high` must hold for '{name}', got {given}")
        return Interval(name, label, low, high, log)
    step = as_given(1 if step is None else step)
    if not step > 0:
        raise ValueError(f"`0 < q` must hold for '{name}', got {given}")
    if not whole and not all(math.isclose(bound / step, round(bound / step)) for bound in (low, high)):
        raise ValueError(f"`low and high are multiples of q` must hold for '{name}', got {given}")
    exclusive = whole and step == 1
    first, last = _index(low, step, math.ceil), _index(high, step, math.floor) - exclusive
    if first > last:
        rule = "low < high" if exclusive else "low <= k * q <= high for some integer k"
        raise ValueError(f"`{rule}` must hold for '{name}', got {given}")
    return Multiples(name, label, first, last, step, log)


def _index(bound: float, step: float, inwards: Callable[[float], int]) -> int:
    """Return k of the multiple that is nearest to a bound inside the range, with Ray's tolerance for rounding."""
    nearest = round(bound / step)
    return nearest if math.isclose(bound / step, nearest) else inwards(bound / step)


def choice_axis(name: str, values: Sequence[Any], unresolved: Callable[[Any, Path], bool]) -> Choice:
    """Return the axis of a choice.

    Args:
        name: the searched key, for error messages.
        values: the categories.
        unresolved: whether Tune would replace a part of a category, with its path; such a category is refused.

    Raises:
        ValueError: if there is no category, or Tune would replace a part of one.
    """
    if not isinstance(values, Sequence):
        raise ValueError(f"`a list of categories` must hold for '{name}', got {values!r}")
    if any(True for value in values for _ in parts(value, unresolved)):
        raise unsupported(name, "choice between domains (conditional)")
    categories: list[Any] = []
    for value in map(plain, values):
        if not any(identical(value, category) for category in categories):
            categories.append(value)
    if not categories:
        raise ValueError(f"`at least one category` must hold for '{name}', got []")
    return Choice(name, f"choice([{', '.join(map(label_of, categories))}])", categories)


def parts(node: Any, wanted: Callable[[Any, Path], bool], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the parts of nested containers that are wanted, with their paths; nothing inside such a part."""
    if wanted(node, path):
        yield path, node
    elif isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from parts(child, wanted, (*path, key))


def replaced(node: Any, path: Path) -> bool:
    """Tell whether Tune replaces a part of a config: a `grid_search` or `eval` dictionary."""
    return bool(path) and isinstance(node, dict) and len(node) == 1 and bool({"grid_search", "eval"} & node.keys())


def unsupported(name: str, kind: str) -> ValueError:
    """The error for a domain that cannot be read."""
    return ValueError(f"`domain in ({', '.join(DOMAINS)})` must hold for '{name}', got {kind}")
