"""A search space of Tune as coordinates for a Gaussian process, and the way back.

| name     | meaning                                                                        | type  |
|----------|--------------------------------------------------------------------------------|-------|
| config   | what a trial gets: a (nested) dictionary of plain values                       | dict  |
| point    | one code per axis, in the order of the axes; equal points are equal configs    | tuple |
| units    | a point as a position in the unit cube, one number per axis                    | array |
| columns  | units as the model sees them: choices are spread over several numbers          | array |

`ray_deltastn.tune.search.axes` defines axis, code and unit.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ray.tune.search.repeater import TRIAL_INDEX

from ray_deltastn.tune.search.axes import Axis, Choice, Code, Interval, equal, label_of
from ray_deltastn.tune.search.domains import Path, read_domain, unresolved

#: The key of a trial's config that `WarmStart` adds.
WARM_START = "warm_start"
#: Keys that wrappers of a searcher add to a trial's config.
ADDED = (WARM_START, TRIAL_INDEX)
CANDIDATES = 512  # random points to choose from if the proposed point has been suggested before

Point = tuple[Code, ...]
Units = npt.NDArray[np.float64]


class SearchSpace:
    """The searched keys of a nested Tune config.

    Domains are found in dictionaries, lists and tuples, as Tune finds them. `decode` returns the branches that hold a
    domain. It returns whole lists, because Tune replaces whole lists.

    Args:
        tree: the config.
        constants: `decode` returns the other keys too, unchanged.

    Raises:
        ValueError: if there is no domain, or one is empty or not supported; the message has the dotted key.
    """

    def __init__(self, tree: dict[Any, Any], constants: bool = False) -> None:
        self._tree = tree
        self._constants = constants
        leaves = dict(unresolved(tree))
        if not leaves:
            raise ValueError(f"`at least one domain` must hold for the search space, got {label_of(tree)}")
        self.paths: list[Path] = list(leaves)
        self.axes: list[Axis] = [read_domain(dotted(path), leaf) for path, leaf in leaves.items()]
        self._branches = {path[:depth] for path in self.paths for depth in range(len(path))}
        self._free = [index for index, axis in enumerate(self.axes) if axis.size > 1]
        self.size = math.prod(axis.size for axis in self.axes)

    @property
    def labels(self) -> dict[str, str]:
        """The space as text, `{dotted key: domain}`; two spaces with equal labels have the same points."""
        return {axis.name: axis.label for axis in self.axes}

    def units(self, points: Sequence[Point]) -> Units:
        """Return points as positions in the unit cube, one row per point; `from_units` is the way back."""
        pairs = [[axis.to_unit(code) for axis, code in zip(self.axes, point, strict=True)] for point in points]
        found: Units = np.array(pairs, dtype=float).reshape(len(points), len(self.axes))
        return found

    def snapped(self, units: Units) -> Units:
        """Return positions in the unit cube moved to the middles of their cells; floats without steps stay."""
        found: Units = units.copy()
        for index, axis in enumerate(self.axes):
            if not isinstance(axis, Interval):
                column = [axis.to_unit(axis.from_unit(float(unit))) for unit in units[:, index]]
                found[:, index] = column
        return found

    def columns(self, units: Units) -> Units:
        """Return positions in the unit cube as the model sees them, with a distance of 1 between any two categories.

        Axes with one value have no column. A choice between k > 2 categories has k columns.
        """
        found = []
        for index in self._free:
            axis, column = self.axes[index], units[:, index]
            if isinstance(axis, Choice) and axis.size > 2:
                codes = np.minimum((column * axis.size).astype(int), axis.last)
                found += list(np.eye(axis.size)[codes].T / math.sqrt(2))
            elif isinstance(axis, Choice):
                found.append((column >= 0.5).astype(float))
            else:
                found.append(column)
        return np.stack(found, axis=1)

    def from_units(self, units: Sequence[float]) -> Point:
        """Return the point at a position in the unit cube (one number per axis)."""
        return tuple(axis.from_unit(float(unit)) for axis, unit in zip(self.axes, units, strict=True))

    def unseen(self, seen: Collection[Point], rng: np.random.RandomState) -> list[Point]:
        """Return distinct points that are not in `seen`: random ones, or else one found by enumeration.

        The list is empty if `seen` holds all points of the space.
        """
        drawn = dict.fromkeys(self.from_units(row) for row in rng.uniform(size=(CANDIDATES, len(self.axes))))
        fresh = [point for point in drawn if point not in seen]
        if fresh or self.size == math.inf:
            return fresh
        codes = (range(axis.first, axis.last + 1) for axis in self.axes if not isinstance(axis, Interval))
        return list(itertools.islice((point for point in itertools.product(*codes) if point not in seen), 1))

    def decode(self, point: Point) -> dict[Any, Any]:
        """Return the config of a point, in plain Python types."""
        values = {path: axis.value(code) for path, axis, code in zip(self.paths, self.axes, point, strict=True)}

        def build(node: Any, path: Path) -> Any:
            if path in values:
                return values[path]
            if path not in self._branches:
                return node
            if isinstance(node, dict):
                return {key: build(child, (*path, key)) for key, child in node.items() if self._wanted((*path, key))}
            children = [build(child, (*path, index)) for index, child in enumerate(node)]
            return children if isinstance(node, list) else tuple(children)

        return {key: build(child, (key,)) for key, child in self._tree.items() if self._wanted((key,))}

    def _wanted(self, path: Path) -> bool:
        return self._constants or path in self._branches or path in self.paths

    def encode(self, config: dict[Any, Any], where: str, partial: bool = False) -> list[Code | None]:
        """Return the codes of the searched keys of a config; other keys are ignored.

        Args:
            config: values by key.
            where: the start of each error message.
            partial: return None for a key that is missing.

        Raises:
            ValueError: if a value lies outside its domain, or a key is missing and `partial` is not set.
        """
        codes: list[Code | None] = []
        for path, axis in zip(self.paths, self.axes, strict=True):
            try:
                value = _at(config, path)
            except (KeyError, IndexError, TypeError):
                if not partial:
                    rule = f"'{axis.name}' in parameters"
                    raise ValueError(f"{where}: `{rule}` must hold, got {label_of(config)}") from None
                codes.append(None)
                continue
            try:
                codes.append(axis.code(value))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        return codes

    def check_keys(self, config: Any, where: str, path: Path = ()) -> None:
        """Check the keys of a config that are not searched: each must be a constant of the space, with its value.

        So the config of an earlier trial is accepted. What `WarmStart` and Tune's `Repeater` add to it is ignored.

        Raises:
            ValueError: if a key is not in the space, or its value is not the constant of the space.
        """
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            at = (*path, key)
            if at in self.paths or at in ((name,) for name in ADDED):
                continue
            if at in self._branches and isinstance(value, dict | list | tuple):
                self.check_keys(value, where, at)
                continue
            try:
                constant = _at(self._tree, at)
            except (KeyError, IndexError, TypeError):
                known = [*self.labels, *self._constant_names()]
                raise ValueError(f"{where}: `key in {known}` must hold, got '{dotted(at)}'") from None
            if not equal(value, constant) and label_of(value) != label_of(constant):
                rule = f"value = {label_of(constant)}"
                raise ValueError(f"{where}: `{rule}` must hold for the constant '{dotted(at)}', got {label_of(value)}")

    def _constant_names(self) -> list[str]:
        """Return the dotted keys that are not searched."""
        found: list[str] = []

        def walk(node: Any, path: Path) -> None:
            if path in self._branches:
                for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                    walk(child, (*path, key))
            elif path not in self.paths:
                found.append(dotted(path))

        walk(self._tree, ())
        return found

    def holds(self, codes: Any, partial: bool = False) -> bool:
        """Tell whether something that was read from a file is a point; with `partial` its codes may be None."""
        if not isinstance(codes, list) or len(codes) != len(self.axes):
            return False
        pairs = zip(self.axes, codes, strict=True)
        return all((partial and code is None) or axis.holds(code) for axis, code in pairs)


def dotted(path: Path) -> str:
    """Return a path as one word for messages: `inner.width`."""
    return ".".join(map(str, path))


def _at(config: Any, path: Path) -> Any:
    for key in path:
        config = config[key]
    return config
