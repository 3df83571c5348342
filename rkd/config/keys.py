"""Checks of each key and each value of a composed tree against the schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rkd.config.folders import group_files, groups
from rkd.config.overrides import Override
from rkd.config.reads import reads
from rkd.config.rules import Table
from rkd.config.schema import FREE, REQUIRED, SCHEMA, rule_for
from rkd.config.teaching import is_trained
from rkd.config.tree import has, leaves, select
from rkd.config.words import nearest, nearest_key, show
from rkd.errors import ConfigError


def check_keys(tree: dict[str, Any], overrides: Sequence[Override], choices: dict[str, Any]) -> None:
    for o in overrides:
        group = "effects" if o.key == "noise.effects" else next((k for k in choices if k.endswith("@" + o.key)), None)
        if group and not o.is_group and isinstance(o.value, str):
            raise ConfigError(f"{o.text}: to choose what stands at {o.key}, write {group}={o.value}")
        if o.sign == "~" and not o.is_group and not o.key.startswith(FREE):
            raise ConfigError(f"{o.text}: {o.key} cannot be left out; set it to a value")
    for key, value in leaves(tree):
        if rule_for(key) is not None:
            continue
        if _has_rules_below(key):
            raise ConfigError(f"{key}={show(value)}: {key} has keys of its own: set {key}.<key>=...")
        above = _target_above(tree, key) if key.startswith(FREE) else None
        group_within = key.startswith(("teacher.noise.", "teacher.trainer.", "teacher.loss."))
        if above is None or (above == "teacher" and group_within):
            raise ConfigError(unknown_key(key, tree))
    for key in REQUIRED:
        if not has(tree, key):
            group = key.partition(".")[0]
            part = {"data": "_common", "noise": "_common", "loss": "_common"}.get(group, "another choice of the group")
            raise ConfigError(f"{key} is missing from the YAML that was chosen for {group}: let its defaults start "
                              f"from {part}")  # fmt: skip


def _has_rules_below(key: str) -> bool:
    if key.removeprefix("teacher.") in ("noise.types", "noise.effects", "evaluate.types", "loss.terms"):
        return True
    return any(k.startswith(key + ".") for k in SCHEMA) or rule_for(f"{key}._target_") is not None


def _target_above(tree: dict[str, Any], key: str) -> str | None:
    """Return the key of the nearest node above that has a `_target_`."""
    parent = key.rpartition(".")[0]
    while parent:
        if has(tree, f"{parent}._target_"):
            return parent
        parent = parent.rpartition(".")[0]
    return None


def unknown_key(key: str, tree: dict[str, Any]) -> str:
    group, _, rest = key.partition(".")
    if named := re.fullmatch(r"((?:teacher\.)?noise\.effects)\.(\w+)\..+", key):
        above, effect = named.groups()
        if effect in group_files("effects"):
            choose = "effects" if above == "noise.effects" else f"effects@{above}"
            return f"{key}: the effect {effect} was not chosen; it needs {choose}={effect}"
    if others := _choices_with(key, tree):
        return f"{key} is no key of the {group} that was chosen; it needs {' or '.join(f'{group}={o}' for o in others)}"
    known = [k for k, _ in leaves(tree) if k != key]
    inside = [k for k in known if k.startswith(group + ".")]
    near = nearest_key(
        key, inside if rest and inside else [*known, *groups(), "noise@teacher.noise", "denoiser@teacher.denoiser"]
    )
    if near is None:
        there = [k for k in tree if k != group]
        for above in inside and [key.rpartition(".")[0], group]:
            there = [k for k in select(tree, above) or () if f"{above}.{k}" != key and not k.startswith("_")]
            if there:
                return f"unknown key {key}; {above} has {', '.join(there)}"
        return f"unknown key {key}; the root has {', '.join(there)}"
    rule = rule_for(near)
    if rule is not None:
        allowed = f" ({rule})"
    else:
        allowed = f" ({' | '.join(group_files(near))})" if near in groups() else ""
    return f"unknown key {key}; nearest: {near}{allowed}"


def _choices_with(key: str, tree: dict[str, Any]) -> list[str]:
    """Return the group's choices whose YAML has the first part of a dotted key that the tree lacks."""
    parts = key.split(".")
    depth = next((i for i in range(2, len(parts) + 1) if not has(tree, ".".join(parts[:i]))), None)
    if depth is None:
        return []
    line = re.compile(rf"^ {{{2 * (depth - 2)}}}{re.escape(parts[depth - 1])}:", re.MULTILINE)
    return [name for name, file in group_files(parts[0]).items() if line.search(file.read_text(encoding="utf-8"))]


def check_values(tree: dict[str, Any]) -> None:
    for key, value in leaves(tree):
        rule = rule_for(key)
        if rule is None or value == "???" or rule.allows(value):
            continue
        raise ConfigError(fault(rule, key, value))


def fault(rule: Any, key: str, value: Any) -> str:
    """Return what is wrong with a value that its rule does not allow: of a list of tables, the word of the one item."""
    item = getattr(rule, "item", None)
    if isinstance(item, Table) and isinstance(value, list):
        wrong = [i for i, one in enumerate(value) if not item.allows(one)]
        return fault(item, f"{key}[{wrong[0]}]", value[wrong[0]]) if wrong else f"{key}={show(value)}: allowed: {rule}"
    if isinstance(rule, Table) and isinstance(value, dict):
        for word, inner in value.items():
            if (own := rule.rules.get(word, rule.rules.get("*"))) is None:
                near = nearest(word, list(rule.rules))
                hint = f"nearest: {near}; " if near else ""
                return f"{key} has no {word}; {hint}it has {', '.join(rule.rules)}"
            if not own.allows(inner):
                return fault(own, f"{key}.{word}", inner)
    words = getattr(rule, "words", ())
    near = nearest(str(value), list(words)) if words else None
    return f"{key}={show(value)}: allowed: {rule}" + (f"; nearest: {near}" if near else "")


def check_missing(tree: dict[str, Any], stage: str) -> None:
    trained = is_trained(tree["teacher"])
    missing = [
        key
        for key, value in leaves(tree)
        if (value == "???" or (isinstance(value, list) and "???" in value))
        and reads(stage, key)
        and (trained or not key.startswith(("teacher.noise.", "teacher.trainer.", "teacher.loss.")))
    ]
    if missing:
        # `noise.types.recorded.folder` takes its value from `noise.folder`: name the key that people set.
        first = min(missing, key=lambda key: key.count("."))
        raise ConfigError(f"{stage} needs {first}: set {first}=...")
