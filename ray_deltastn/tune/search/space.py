"""A search space of Tune as coordinates for a Gaussian process, and the way back.

| name     | meaning                                                                        | type  |
|----------|--------------------------------------------------------------------------------|-------|
| config   | what a trial gets: a (nested) dictionary of plain values                       | dict  |
| point    | one code per axis, in the order of the axes; equal points are equal configs    | tuple |
| features | a point as skopt sees it: units of numeric axes, indices of choices            | list  |

`ray_deltastn.tune.search.axes` defines axis, code and unit.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from skopt.space import Categorical, Real

from ray_deltastn.tune.search.axes import Axis, Choice, Code, Interval, label_of
from ray_deltastn.tune.search.domains import Path, read_domain, unresolved

CANDIDATES = 512  # random points to choose from if the proposed point has been suggested before

Point = tuple[Code, ...]


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

    @property
    def dimensions(self) -> list[Any]:
        """The dimensions for skopt, one for each axis with more than one value."""
        free = (self.axes[index] for index in self._free)
        return [Categorical(list(range(axis.size))) if isinstance(axis, Choice) else Real(0.0, 1.0) for axis in free]

    def features(self, point: Point) -> list[Code]:
        """Return a point in the dimensions of skopt."""
        pairs = ((self.axes[index], point[index]) for index in self._free)
        return [int(code) if isinstance(axis, Choice) else axis.to_unit(code) for axis, code in pairs]

    def from_features(self, features: Sequence[Any]) -> Point:
        """Return the point that is nearest to features of skopt."""
        codes: list[Code] = [getattr(axis, "first", 0) for axis in self.axes]
        for index, feature in zip(self._free, features, strict=True):
            axis = self.axes[index]
            codes[index] = int(feature) if isinstance(axis, Choice) else axis.from_unit(float(feature))
        return tuple(codes)

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
        """Raise ValueError for a key of `config` that is not searched; constants in a searched list are allowed."""
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            at = (*path, key)
            if at in self._branches and isinstance(value, dict | list | tuple):
                self.check_keys(value, where, at)
            elif at not in self.paths and (isinstance(config, dict) or at in self._branches):
                raise ValueError(f"{where}: `key in {list(self.labels)}` must hold, got '{dotted(at)}'")

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
