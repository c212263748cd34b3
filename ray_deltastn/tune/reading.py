"""Reading of YAML files and of overrides, by the rules of YAML 1.2 for numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

#: The numbers of YAML 1.2's core schema. PyYAML has those of YAML 1.1, in which `1e-3` is a text, `1:30` is 90 and
#: `010` is 8.
_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
_SPECIAL = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_INT_TAG, _FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_REPLACED = (_INT_TAG, _FLOAT_TAG, "tag:yaml.org,2002:timestamp")


class ConfigError(ValueError):
    """Error for a configuration that breaks a rule; the message is one line."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2 and without dates; `on`, `off`, `yes`, `no` are booleans."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name for a table per first character
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


Loader.add_implicit_resolver(_INT_TAG, re.compile(rf"^(?:{_INT})$"), list("-+0123456789"))
Loader.add_implicit_resolver(_FLOAT_TAG, re.compile(rf"^(?:{_FLOAT}|{_SPECIAL})$"), list("-+.0123456789"))
Loader.add_constructor(_INT_TAG, _whole)


def read_yaml(text: str) -> Any:
    """Return the content of a YAML text, as data only.

    Args:
        text: the text.

    Raises:
        yaml.YAMLError: if the text is not YAML.

    Examples:
        >>> read_yaml("{lr: 1e-3, size: 010, when: 2026-01-31, graph: on}")
        {'lr': 0.001, 'size': 10, 'when': '2026-01-31', 'graph': True}
    """
    try:
        return yaml.load(text, Loader)
    except ValueError as error:  # such as a number with more digits than Python reads
        raise yaml.YAMLError(str(error)) from error


def load_yaml(
    path: str | Path,
    overrides: Sequence[str],
    full_key: Callable[[str, Mapping[str, Any]], str] = lambda key, data: key,
) -> dict[str, Any]:
    """Return the mapping in a YAML file, with overrides; it is not checked yet.

    Args:
        path: YAML file.
        overrides: `key=value` with dots for sections; values are YAML.
        full_key: completes the key of an override, given the mapping so far: `epochs` becomes `train.epochs`.

    Raises:
        ConfigError: if the file cannot be read, or an override is not `key=value` or reaches into a value that is not
            a mapping.
    """
    try:
        data = read_yaml(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` must be UTF-8 text, got {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"`{path}` must be a readable file: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"`{path}` must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"`{path}` must hold a mapping, got {type(data).__name__}")
    for override in overrides:
        given, equals, value = override.partition("=")
        if not equals or not given:
            raise ConfigError(f"an override must be `KEY=VALUE`, got {override!r}")
        key = full_key(given, data)
        *path_, last = key.split(".")
        # Keys of `search` contain dots themselves: `search.hyperparameters.dropout`.
        if path_ and path_[0] == "search":
            path_, last = ["search"], ".".join([*path_[1:], last])
        inner = data
        for part in path_:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"override `{key}` must reach into a mapping, got {type(inner).__name__} at '{part}'")
        try:
            inner[last] = read_yaml(value)
        except yaml.YAMLError:
            raise ConfigError(f"override `{key}` must be YAML, got {value!r}") from None
    return data
