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

from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune.search import sample

from ray_deltastn.tune.search.axes import Axis
from ray_deltastn.tune.search.texts import DOMAINS as DOMAINS
from ray_deltastn.tune.search.texts import Path as Path
from ray_deltastn.tune.search.texts import choice_axis, numeric_axis, parts, replaced, split_text, unsupported


def parse_domain(name: str, text: str) -> Any:
    """Return the Tune domain that a text such as `loguniform(0.01, 0.3)` describes.

    Args:
        name: the searched key, for the error message.
        text: a function in `DOMAINS` with its arguments.

    Raises:
        ValueError: if the text does not describe a domain.
    """
    kind, arguments = split_text(name, text)
    try:
        return getattr(tune, kind)(*arguments)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"`search.{name}` must be a domain with its bounds, got {text!r}: {error}") from None


def _is_replaced(node: Any, path: Path) -> bool:
    return replaced(node, path) or isinstance(node, sample.Domain)


def unresolved(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what Tune replaces in a config, with its path: domains, and `grid_search` or `eval` dictionaries."""
    return parts(node, _is_replaced, path)


def read_domain(name: str, domain: Any) -> Axis:
    """Return the axis of one Tune domain.

    Args:
        name: the searched key, for error messages.
        domain: a domain of Tune, or a `grid_search` or `eval` dictionary, which is refused.

    Raises:
        ValueError: if the domain is not supported or has no values; the message names the key.
    """
    if isinstance(domain, dict | sample.Function):
        raise unsupported(name, "sample_from" if isinstance(domain, sample.Function) else next(iter(domain)))
    sampler: Any = domain.get_sampler()
    step = None
    if isinstance(sampler, sample.Quantized):
        step, sampler = sampler.q, sampler.sampler
    if isinstance(domain, sample.Categorical) and isinstance(sampler, sample.Uniform):
        return choice_axis(name, domain.categories, _is_replaced)
    whole = isinstance(domain, sample.Integer)
    if not (whole or isinstance(domain, sample.Float)) or not isinstance(sampler, sample.Uniform | sample.LogUniform):
        kind = f"{type(domain).__name__} with {type(sampler).__name__}"
        kind = "randn" if isinstance(sampler, sample.Normal) else "grid_search" if domain.is_grid() else kind
        raise unsupported(name, kind if step is None else f"q{kind}")
    log = isinstance(sampler, sample.LogUniform)
    kind = ("q" if step is not None else "") + ("log" if log else "") + ("randint" if whole else "uniform")
    return numeric_axis(name, kind, domain.lower, domain.upper, step, log, whole)
