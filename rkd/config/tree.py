"""A configuration as plain dicts and lists, and dotted keys in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rkd.config.words import one_line
from rkd.errors import ConfigError


def resolve(node: Any, prefix: str) -> Any:
    """Return plain dicts and lists with interpolations resolved; missing values, and what points at one, stay `???`."""
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    def value_of(key: Any) -> Any:
        path = f"{prefix}.{key}" if prefix else str(key)
        if OmegaConf.is_missing(node, key):
            return "???"
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            return "???"
        except OmegaConfBaseException as error:
            raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index, call-overload]
            raise ConfigError(
                f"{path}={raw} cannot be resolved: {one_line(error).partition(' full_key')[0]}"
            ) from error
        return resolve(value, path)

    if isinstance(node, DictConfig):
        return {str(key): value_of(key) for key in node}
    if isinstance(node, ListConfig):
        return [value_of(i) for i in range(len(node))]
    return node


def expand_home(node: Any) -> Any:
    """Return a tree with the user's home folder in the place of the ~ that a path begins with."""
    if isinstance(node, dict):
        return {key: expand_home(value) for key, value in node.items()}
    if isinstance(node, list):
        return [expand_home(value) for value in node]
    return os.path.expanduser(node) if isinstance(node, str) and (node == "~" or node.startswith("~/")) else node


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its value; a list is one value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def select(tree: dict[str, Any], key: str) -> Any:
    """Return the value at a dotted key, None where there is none."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


def has(tree: dict[str, Any], key: str) -> bool:
    """Say whether there is a dotted key, whatever its value."""
    parent, _, last = key.rpartition(".")
    node = select(tree, parent) if parent else tree
    return isinstance(node, dict) and last in node
