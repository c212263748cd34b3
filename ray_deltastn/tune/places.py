"""Where a key of a configuration belongs, and errors for keys that are unknown or in the wrong place."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ray_deltastn.training.options import OTHER_NAMES
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.reading import ConfigError

#: Key of a trial's config → the place in the file that sets it. The options of `Settings` have theirs in `train` or
#: `search`.
_PLACES = {"task": "task", "resources": "tune.workers`, `tune.cpu` and `tune.gpu", "warm_start": "tune.warm_start"}
#: Sections whose keys are options of `Settings`.
_OF_SETTINGS = ("train", "search", "single", "self_tuned")
#: Options of `Settings` that can be mappings, into which a key of `search` can reach.
_MAPPINGS = ("hyperparameters", "schedule")


def check_place(name: str, search: Mapping[str, str], train: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ValueError unless a key of `search` is known, and nothing else in the file sets the same value of a trial.

    Args:
        name: the key, not `hyperparameters` itself.
        search: the section `search`.
        train: the section `train`.
        options: the section `options`.
    """
    head, *rest = name.split(".")
    if head not in (*Settings.names(), "options"):
        raise ValueError(unknown_key(f"search.{name}", [f"search.{n}" for n in (*Settings.names(), "options")]))
    if head == "options" and not any(rest):
        raise ValueError(f"`search.options` must name an option of the task, `options.NAME`, got {name!r}")
    if head == "options":
        require_own(f"search.{name}", name.removeprefix("options."), "search", search[name])
    elif rest and head not in _MAPPINGS:
        raise ValueError(f"`search.{name}` must not reach into `{head}`, which is not a mapping, got {search[name]!r}")
    for section, values in (("train", train), ("options", {"options": options})):
        if _holds(values, name):
            raise ValueError(f"`{name}` must be either in `{section}` or in `search`, got both")
        outer = _value_above(values, name)
        if outer is not None:
            raise ValueError(f"`{outer[0]}` must be a mapping because `search` has `{name}`, got {outer[1]!r}")
    for other in search:
        if other.startswith(f"{name}."):
            raise ValueError(f"`search` must not have both `{name}` and a part of it, got `{other}`")


def require_own(key: str, name: str, section: str, got: Any) -> None:
    """Raise ValueError if an option of the task has the name of a key that trials use for something else.

    Args:
        key: where the option stands in the file, for the error message.
        name: its name in the config of a trial.
        section: where an option of `Settings` belongs.
        got: its value, for the error message.
    """
    head = name.split(".")[0]
    place = f"{section}.{name}" if head in Settings.names() else _PLACES.get(head)
    if place is not None:
        raise ValueError(
            f"`{key}` must not be given, got {got!r}: an option of the task must not be named `{head}`; set `{place}`"
        )


def _value_above(section: Mapping[str, Any], name: str) -> tuple[str, Any] | None:
    """Return the part of a dotted name, with its value, at which a section has a value that is not a mapping."""
    inner: Any = section
    parts = name.split(".")
    for depth, part in enumerate(parts[:-1], 1):
        if part not in inner:
            return None
        inner = inner[part]
        if not isinstance(inner, dict):
            return ".".join(parts[:depth]), inner
    return None


def _holds(section: Any, name: str) -> bool:
    """Tell whether nested mappings have a value at a dotted name."""
    for part in name.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True


def full_key(key: str, data: Mapping[str, Any], sections: Mapping[str, Collection[str]]) -> str:
    """Return the key of an override with its section: `epochs` becomes `train.epochs`.

    Args:
        key: the key as it is given.
        data: the content of the file. If its section `self_tuned` has the key, this section is meant.
        sections: names of all sections of the file, with the keys that belong to them and to nothing else.

    Raises:
        ConfigError: if the key belongs to several sections.
    """
    head, dot, rest = key.partition(".")
    if head in sections:
        return key
    head = OTHER_NAMES.get(head, head)
    own = data.get("self_tuned")
    if isinstance(own, dict) and head in own:
        return f"self_tuned.{head}{dot}{rest}"
    places = [f"{section}.{head}{dot}{rest}" for section, names in sections.items() if head in names]
    if len(places) > 1:
        raise ConfigError(f"override `{key}` must name its section, {' or '.join(f'`{p}`' for p in places)}, got none")
    return places[0] if places else key


def with_own_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file in which options of `Settings` have this package's names: `lr`, `epochs`.

    Args:
        data: the content; it may have names of other libraries, such as `learning_rate`.

    Raises:
        ValueError: if an option is given under both names.
    """
    renamed = dict(data)
    for section in _OF_SETTINGS:
        values = data.get(section)
        if not isinstance(values, dict):
            continue
        for other in OTHER_NAMES.keys() & values.keys():
            if OTHER_NAMES[other] in values:
                raise ValueError(f"`{section}.{OTHER_NAMES[other]}` must be given once, got also `{section}.{other}`")
        renamed[section] = {OTHER_NAMES.get(name, name): value for name, value in values.items()}
    return renamed


def unknown_section(name: str, sections: Mapping[str, Collection[str]]) -> str:
    """Return one line about an unknown key at the top of a file, with the key that was probably meant."""
    inner = {key: f"{section}.{key}" for section, names in sections.items() for key in names}
    near = difflib.get_close_matches(OTHER_NAMES.get(name, name), [*sections, *inner], n=1, cutoff=0.6)
    if near and near[0] in inner:
        return f"`{name}` is not a known key; did you mean `{inner[near[0]]}`?"
    return unknown_key(name, list(sections))


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Return one line about an unknown key, with the most similar known key."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(known) or 'none here'}"
    return f"`{key}` is not a known key{hint}"
