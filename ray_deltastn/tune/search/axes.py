"""One searched key of a Tune config: the values it may take, as codes and as numbers in [0, 1].

| name | meaning                                                                        | type                 |
|------|--------------------------------------------------------------------------------|----------------------|
| axis | one searched key and its values                                                | Interval/Grid/Choice |
| code | a value as its axis stores it: the float, grid index k or category's index     | float or int         |
| unit | a code as a number in [0, 1]; the values of a grid or a choice in equal cells  | float                |
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.search import sample

SUPPORTED = "uniform, loguniform, quniform, qloguniform, randint, lograndint, qrandint, qlograndint, choice"

Code = float | int
Path = tuple[Any, ...]


@dataclass(frozen=True)
class Interval:
    """Floats in `[low, high)`, even in value or (`log`) in logarithm; the code is the value."""

    name: str
    label: str
    low: float
    high: float
    log: bool
    size: float = math.inf

    def from_unit(self, unit: float) -> float:
        """Return the code at a unit; `high` itself is never returned."""
        if self.log:
            code = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        else:
            code = self.low * (1.0 - unit) + self.high * unit  # no overflow, unlike low + unit * (high - low)
        return min(max(code, self.low), math.nextafter(self.high, self.low))

    def to_unit(self, code: Code) -> float:
        """Return the unit of a code."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, code))
        return min(max((at / 2 - low / 2) / (high / 2 - low / 2), 0.0), 1.0)

    def value(self, code: Code) -> float:
        """Return the value of a code."""
        return float(code)

    def code(self, value: Any) -> float:
        """Return the code of a value; raises ValueError where it lies outside (`high` is valid, as for Tune)."""
        if not _is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"`{self.low} <= value <= {self.high}` must hold for '{self.name}', got {value!r}")
        return float(value)

    def holds(self, code: Any) -> bool:
        """Tell whether something read from a file is a code of this axis."""
        return isinstance(code, float) and self.low <= code <= self.high


@dataclass(frozen=True)
class Grid:
    """Multiples `k * step` for `first <= k <= last`, even in k or (`log`) in its logarithm; the code is k."""

    name: str
    label: str
    first: int
    last: int
    step: float | int
    low: float  # bounds as given: 3 * 0.1 exceeds 0.3
    high: float
    log: bool

    @property
    def size(self) -> int:
        """Return how many values there are."""
        return self.last - self.first + 1

    def _edges(self) -> tuple[float, float]:
        """Return ends of the cells `[k, k + 1)` that the unit interval covers, in the axis' own scale."""
        low, high = float(self.first), float(self.last + 1)
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def from_unit(self, unit: float) -> int:
        """Return the code at a unit."""
        low, high = self._edges()
        at = low + unit * (high - low)
        return min(max(math.floor(math.exp(at) if self.log else at), self.first), self.last)

    def to_unit(self, code: Code) -> float:
        """Return the unit of a code: the middle of its cell."""
        low, high = self._edges()
        middle = (math.log(code) + math.log(code + 1)) / 2 if self.log else code + 0.5
        return (middle - low) / (high - low)

    def value(self, code: Code) -> float | int:
        """Return the value of a code: an int where the step is one."""
        return int(code * self.step) if isinstance(self.step, int) else min(max(code * self.step, self.low), self.high)

    def code(self, value: Any) -> int:
        """Return the code of a value; raises ValueError where it lies outside or between two multiples."""
        ends = f"{self.value(self.first)} <= value <= {self.value(self.last)}"
        if not _is_number(value):
            raise ValueError(f"`{ends}` must hold for '{self.name}', got {value!r}")
        code = round(value / self.step)
        if not math.isclose(code * self.step, value, rel_tol=1e-9, abs_tol=1e-9 * self.step):
            raise ValueError(f"`value = k * {self.step}` must hold for '{self.name}', got {value!r}")
        if not self.holds(code):
            raise ValueError(f"`{ends}` must hold for '{self.name}', got {value!r}")
        return code

    def holds(self, code: Any) -> bool:
        """Tell whether something read from a file is a code of this axis."""
        return type(code) is int and self.first <= code <= self.last


@dataclass(frozen=True)
class Choice:
    """One of some categories of any type, hashable or not; the code is the index."""

    name: str
    label: str
    categories: Sequence[Any]

    @property
    def size(self) -> int:
        """Return how many values there are."""
        return len(self.categories)

    @property
    def first(self) -> int:
        """Return the smallest code."""
        return 0

    @property
    def last(self) -> int:
        """Return the largest code."""
        return self.size - 1

    def from_unit(self, unit: float) -> int:
        """Return the code at a unit."""
        return min(int(unit * self.size), self.last)

    def value(self, code: Code) -> Any:
        """Return the value of a code; containers are copied, so that a trial cannot change the space."""
        return _plain(self.categories[int(code)])

    def code(self, value: Any) -> int:
        """Return the code of a value (same type first: 1, 1.0, True differ); raises ValueError where it is none."""
        value = _plain(value)
        for same in (_same, _equal):
            for code, category in enumerate(self.categories):
                if same(value, category):
                    return code
        raise ValueError(f"`value in {list(self.categories)!r}` must hold for '{self.name}', got {value!r}")

    def holds(self, code: Any) -> bool:
        """Tell whether something read from a file is a code of this axis."""
        return type(code) is int and 0 <= code < self.size


Axis = Interval | Grid | Choice


def unresolved(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Return whatever Tune would resolve in a config, with its path: domains, `grid_search` and `eval` dictionaries."""
    special = path and isinstance(node, dict) and len(node) == 1 and {"grid_search", "eval"} & node.keys()
    if special or isinstance(node, sample.Domain):
        yield path, node
    elif isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from unresolved(child, (*path, key))


def make_axis(name: str, domain: Any) -> Axis:
    """Return the axis of one Tune domain; raises ValueError, naming the key, where it is unsupported or empty."""
    if isinstance(domain, dict | sample.Function):
        raise _unsupported(name, "sample_from" if isinstance(domain, sample.Function) else next(iter(domain)))
    sampler = domain.get_sampler()
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
    low, high = (int(domain.lower), int(domain.upper)) if whole else (float(domain.lower), float(domain.upper))
    kind = ("log" if log else "") + ("randint" if whole else "uniform")
    if log and not low > 0:
        raise ValueError(f"`0 < low` must hold for '{name}', got low={low}, high={high}")
    if step is None and not whole:
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"`low < high` must hold for '{name}', got low={low}, high={high}")
        return Interval(name, f"{kind}({low}, {high})", low, high, log)
    quantised = step is not None
    q = 1 if step is None else int(step) if whole else float(step)
    return _grid(name, kind, low, high, q, log, quantised)


def _grid(name: str, kind: str, low: float, high: float, step: float | int, log: bool, quantised: bool) -> Grid:
    if not (step > 0 and -math.inf < low and high < math.inf):
        raise ValueError(f"`0 < q` and finite bounds must hold for '{name}', got low={low}, high={high}, q={step}")
    first, last = _index(low, step, math.ceil), _index(high, step, math.floor)
    if isinstance(step, int) and step == 1:
        last -= 1  # Tune: upper is exclusive for integers, except on a grid coarser than 1
    if first > last:
        rule = "low <= k * q <= high for some integer k" if quantised and step != 1 else "low < high"
        raise ValueError(f"`{rule}` must hold for '{name}', got low={low}, high={high}" + f", q={step}" * quantised)
    label = f"q{kind}({low}, {high}, {step})" if quantised else f"{kind}({low}, {high})"
    return Grid(name, label, first, last, step, low, high, log)


def _index(bound: float, step: float | int, inwards: Any) -> int:
    """Return the grid index of a bound, rounded inwards unless it is a multiple up to rounding."""
    nearest = round(bound / step)
    return nearest if math.isclose(bound / step, nearest) else inwards(bound / step)


def _choice(name: str, values: Sequence[Any]) -> Choice:
    if any(True for value in values for _ in unresolved(value)):
        raise _unsupported(name, "choice between domains (conditional)")
    categories: list[Any] = []
    for value in map(_plain, values):
        if not any(_same(value, category) for category in categories):
            categories.append(value)
    if not categories:
        raise ValueError(f"`at least one category` must hold for '{name}', got []")
    return Choice(name, f"choice([{', '.join(map(label_of, categories))}])", categories)


def _unsupported(name: str, kind: str) -> ValueError:
    return ValueError(f"`domain in ({SUPPORTED})` must hold for '{name}', got {kind}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and _equal(a, b))


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError):  # arrays compare elementwise
        return False


def _plain(value: Any) -> Any:
    """Return a copy without numpy scalars; what is no container is returned as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_plain(key): _plain(child) for key, child in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def label_of(value: Any) -> str:
    """Return a repr that is the same in another process: functions by name, objects without their address."""
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
