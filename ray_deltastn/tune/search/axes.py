"""The axis of one searched key: the values that it can take, as codes and as numbers in [0, 1].

| name | meaning                                                                          | type                      |
|------|----------------------------------------------------------------------------------|---------------------------|
| axis | one searched key with its values                                                 | Interval/Multiples/Choice |
| code | a value as the axis stores it: the float, the index k, or the category's index   | float or int              |
| unit | a code as a number in [0, 1]; the values of a finite axis have cells of equal    | float                     |
|      | width, or (`log`) of equal width in the logarithm                                |                           |

`ray_deltastn.tune.search.domains` makes the axis of a domain of Tune.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Code = float | int


@dataclass(frozen=True)
class Interval:
    """All floats in `[low, high)`, uniform in the value or (`log`) in its logarithm; the code is the value."""

    name: str
    label: str
    low: float
    high: float
    log: bool

    @property
    def size(self) -> float:
        """The number of values: infinity."""
        return math.inf

    @property
    def least(self) -> float:
        """The smallest value."""
        return self.low

    @property
    def largest(self) -> float:
        """The largest value: the float before `high`, because Tune's upper bound is exclusive."""
        return math.nextafter(self.high, self.low)

    @property
    def extremes(self) -> list[float]:
        """The smallest and the largest value."""
        return [self.least, self.largest]

    def from_unit(self, unit: float) -> float:
        """Return the code at a unit; it is never `high`."""
        if self.log:
            code = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        else:
            code = self.low * (1.0 - unit) + self.high * unit  # low + unit * (high - low) can overflow
        return self.nearest(code)

    def to_unit(self, code: Code) -> float:
        """Return the unit of a code."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, code))
        return min(max((at / 2 - low / 2) / (high / 2 - low / 2), 0.0), 1.0)

    def value(self, code: Code) -> float:
        """Return the value of a code."""
        return float(code)

    def code(self, value: Any) -> float:
        """Return the code of a value; `high` is accepted, as Tune accepts it.

        Raises:
            ValueError: if the value lies outside the interval.
        """
        if not is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"`{self.low} <= value <= {self.high}` must hold for '{self.name}', got {value!r}")
        return float(value)

    def holds(self, code: Any) -> bool:
        """Tell whether something that was read from a file is a code of this axis."""
        return isinstance(code, float) and self.low <= code <= self.high

    def nearest(self, value: float) -> float:
        """Return the value of this axis that is nearest to a number."""
        return min(max(float(value), self.least), self.largest)

    def distance(self, one: Any, other: Any) -> float:
        """Return the distance of two values; 1 is the width of the interval (of its logarithm)."""
        return abs(self.to_unit(self.nearest(one)) - self.to_unit(self.nearest(other)))


@dataclass(frozen=True)
class Multiples:
    """Multiples `k * step` for `first <= k <= last`, uniform in k or (`log`) in its logarithm; the code is k.

    The values are ints if the step is an int. If it is a float they are floats, exactly as Ray computes them: `3 * 0.1`
    is 0.30000000000000004, which is larger than an upper bound of 0.3.
    """

    name: str
    label: str
    first: int
    last: int
    step: float | int
    log: bool

    @property
    def size(self) -> int:
        """The number of values."""
        return self.last - self.first + 1

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers (int)."""
        return isinstance(self.step, int)

    @property
    def least(self) -> float | int:
        """The smallest value."""
        return self.value(self.first)

    @property
    def largest(self) -> float | int:
        """The largest value."""
        return self.value(self.last)

    @property
    def extremes(self) -> list[float | int]:
        """The smallest and the largest value."""
        return [self.least, self.largest]

    def _edges(self) -> tuple[float, float]:
        """Return the ends of all cells `[k, k + 1)` together; they are logarithms if the axis is logarithmic."""
        low, high = float(self.first), float(self.last + 1)
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def from_unit(self, unit: float) -> int:
        """Return the code at a unit."""
        low, high = self._edges()
        at = low + unit * (high - low)
        return self._inside(math.floor(math.exp(at) if self.log else at))

    def to_unit(self, code: Code) -> float:
        """Return the unit of a code: the middle of its cell."""
        low, high = self._edges()
        middle = (math.log(code) + math.log(code + 1)) / 2 if self.log else code + 0.5
        return (middle - low) / (high - low)

    def value(self, code: Code) -> float | int:
        """Return the value of a code."""
        return int(code * self.step) if self.whole else float(code * self.step)

    def code(self, value: Any) -> int:
        """Return the code of a value.

        Raises:
            ValueError: if the value lies outside the bounds or between two multiples.
        """
        ends = f"{self.least} <= value <= {self.largest}"
        if not is_number(value):
            raise ValueError(f"`{ends}` must hold for '{self.name}', got {value!r}")
        code = round(value / self.step)
        if not math.isclose(code * self.step, value, rel_tol=1e-9, abs_tol=1e-9 * self.step):
            raise ValueError(f"`value = k * {self.step}` must hold for '{self.name}', got {value!r}")
        if not self.holds(code):
            raise ValueError(f"`{ends}` must hold for '{self.name}', got {value!r}")
        return int(code)

    def holds(self, code: Any) -> bool:
        """Tell whether something that was read from a file is a code of this axis."""
        return type(code) is int and self.first <= code <= self.last

    def nearest(self, value: float) -> float | int:
        """Return the value of this axis that is nearest to a number."""
        return self.value(self._nearest_code(value))

    def distance(self, one: Any, other: Any) -> float:
        """Return the distance of two values; 1 is the width of all cells together (of their logarithm)."""
        return abs(self.to_unit(self._nearest_code(one)) - self.to_unit(self._nearest_code(other)))

    def _nearest_code(self, value: float) -> int:
        return self._inside(round(value / self.step))

    def _inside(self, code: int) -> int:
        return min(max(code, self.first), self.last)


@dataclass(frozen=True)
class Choice:
    """One of several categories of any type, hashable or not; the code is the index."""

    name: str
    label: str
    categories: Sequence[Any]

    @property
    def size(self) -> int:
        """The number of values."""
        return len(self.categories)

    @property
    def first(self) -> int:
        """The smallest code."""
        return 0

    @property
    def last(self) -> int:
        """The largest code."""
        return self.size - 1

    @property
    def extremes(self) -> list[Any]:
        """All categories: they need not have an order."""
        return list(self.categories)

    def from_unit(self, unit: float) -> int:
        """Return the code at a unit."""
        return min(int(unit * self.size), self.last)

    def to_unit(self, code: Code) -> float:
        """Return the unit of a code: the middle of its cell."""
        return (code + 0.5) / self.size

    def value(self, code: Code) -> Any:
        """Return the value of a code; containers are copied, so that a trial cannot change the space."""
        return plain(self.categories[int(code)])

    def code(self, value: Any) -> int:
        """Return the code of a value; a category of the same type is preferred, because 1 == 1.0 == True.

        Raises:
            ValueError: if the value is not a category.
        """
        value = plain(value)
        for same in (identical, equal):
            for code, category in enumerate(self.categories):
                if same(value, category):
                    return code
        raise ValueError(f"`value in {list(self.categories)!r}` must hold for '{self.name}', got {value!r}")

    def holds(self, code: Any) -> bool:
        """Tell whether something that was read from a file is a code of this axis."""
        return type(code) is int and 0 <= code < self.size

    def nearest(self, value: Any) -> Any:
        """Return the value itself: categories have no order."""
        return value

    def distance(self, one: Any, other: Any) -> float:
        """Return 0 for equal values and 1 for different ones."""
        return float(not equal(one, other))


Axis = Interval | Multiples | Choice


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number of Python or NumPy."""
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def identical(a: Any, b: Any) -> bool:
    """Tell whether two values are equal and of the same type."""
    return a is b or (type(a) is type(b) and equal(a, b))


def equal(a: Any, b: Any) -> bool:
    """Tell whether two values are equal; False if they cannot be compared."""
    try:
        return bool(a == b)
    except (TypeError, ValueError):  # arrays are compared element by element
        return False


def plain(value: Any) -> Any:
    """Return a value without NumPy scalars; dictionaries, lists and tuples are copied, other objects are not."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {plain(key): plain(child) for key, child in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def label_of(value: Any) -> str:
    """Return a repr that is the same in every process: functions by name, objects without their address."""
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
