"""The only reader of Tune's search domains: each becomes an axis that holds exactly the values that Ray draws.

What Ray 2.60 draws (seen in `ray.tune.search.sample` and by drawing):

| domain                                          | values                                                            |
|-------------------------------------------------|-------------------------------------------------------------------|
| `uniform(low, high)`, `loguniform`              | floats, `low <= x < high`                                         |
| `quniform(low, high, q)`, `qloguniform`         | `k * q` from low to high, both included; both are multiples of q  |
| `randint(low, high)`, `lograndint`              | whole numbers, `low <= n < high`                                  |
| `qrandint(low, high, q)`, `qlograndint`, q > 1  | `k * q` with `low <= k * q <= high`; both bounds are included     |
| `qrandint(low, high, 1)`, `qlograndint`         | the same as `randint`, `lograndint`: `high` is excluded           |
| `choice(categories)`                            | the categories                                                    |

So `qrandint(1, 10, 3)` has the values 3, 6 and 9.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray import tune
from ray.tune.search import sample

from ray_deltastn.tune.search.axes import Axis, Choice, Interval, Multiples, identical, is_number, label_of, plain

#: The functions of `ray.tune` that make a domain which can be read.
DOMAINS = (
    "uniform",
    "loguniform",
    "quniform",
    "qloguniform",
    "randint",
    "lograndint",
    "qrandint",
    "qlograndint",
    "choice",
)

Path = tuple[Any, ...]


def parse_domain(name: str, text: str) -> Any:
    """Return the Tune domain that a text such as `loguniform(0.01, 0.3)` describes.

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
        arguments = ast.literal_eval(f"({match[2]},)")
        return getattr(tune, match[1])(*arguments)
    except (ValueError, SyntaxError, TypeError, ArithmeticError) as error:
        raise ValueError(f"`search.{name}` must be a domain with its bounds, got {text!r}: {error}") from None


def unresolved(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what Tune replaces in a config, with its path: domains, and `grid_search` or `eval` dictionaries."""
    special = path and isinstance(node, dict) and len(node) == 1 and {"grid_search", "eval"} & node.keys()
    if special or isinstance(node, sample.Domain):
        yield path, node
    elif isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from unresolved(child, (*path, key))


def read_domain(name: str, domain: Any) -> Axis:
    """Return the axis of one Tune domain.

    Args:
        name: the searched key, for error messages.
        domain: a domain of Tune, or a `grid_search` or `eval` dictionary, which is refused.

    Raises:
        ValueError: if the domain is not supported or has no values; the message names the key.
    """
    if isinstance(domain, dict | sample.Function):
        raise _unsupported(name, "sample_from" if isinstance(domain, sample.Function) else next(iter(domain)))
    sampler: Any = domain.get_sampler()
    step = None
    if isinstance(sampler, sample.Quantized):
        step, sampler = sampler.q, sampler.sampler
    if isinstance(domain, sample.Categorical) and isinstance(sampler, sample.Uniform):
        return _choice(name, domain.categories)
    whole = isinstance(domain, sample.Integer)
    if not (whole or isinstance(domain, sample.Float)) or not isinstance(sampler, sample.Uniform | sample.LogUniform):
        kind = f"{type(domain).__name__} with {type(sampler).__name__}"
        kind = "randn" if isinstance(sampler, sample.Normal) else "grid_search" if domain.is_grid() else kind
        raise _unsupported(name, kind if step is None else f"q{kind}")
    log = isinstance(sampler, sample.LogUniform)
    kind = ("q" if step is not None else "") + ("log" if log else "") + ("randint" if whole else "uniform")
    return _range(name, kind, domain.lower, domain.upper, step, log, whole)


def _range(name: str, kind: str, low: Any, high: Any, step: Any, log: bool, whole: bool) -> Interval | Multiples:
    """Return the axis of a numeric domain; `step` is None if the domain is not quantised."""
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


def _choice(name: str, values: Sequence[Any]) -> Choice:
    if any(True for value in values for _ in unresolved(value)):
        raise _unsupported(name, "choice between domains (conditional)")
    categories: list[Any] = []
    for value in map(plain, values):
        if not any(identical(value, category) for category in categories):
            categories.append(value)
    if not categories:
        raise ValueError(f"`at least one category` must hold for '{name}', got []")
    return Choice(name, f"choice([{', '.join(map(label_of, categories))}])", categories)


def _unsupported(name: str, kind: str) -> ValueError:
    return ValueError(f"`domain in ({', '.join(DOMAINS)})` must hold for '{name}', got {kind}")
