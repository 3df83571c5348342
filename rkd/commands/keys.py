"""The keys of the YAML groups and what their values may be, read from the files' text with the standard library alone.

Completion answers each press of a key with this: Hydra would take a second, a YAML parser a tenth of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rkd.config.folders import conf_folders
from rkd.config.rules import Bool, Either, Null, OneOf
from rkd.config.schema import rule_for

_KEY = re.compile(r"( *)(?!- )(?:\"([^\"]+)\"|'([^']+)'|([^\s'\"#{}\[\],&*!|>%@`][^:#]*?)): *(.*)")
_DEFAULT = re.compile(r"(override +)?/?([\w/]+)(?:@([\w.]+))?(?: *: *([\w.-]+))?")
_QUOTED = re.compile(r"""(?<![^\[{,:\s])(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')""")
_FLOW = re.compile(r"\s*([{}\[\],])|([^{}\[\],]+)")


def keys_below(choices: dict[str, str], above: str) -> list[str]:
    """Return the dotted keys of the configuration that some choices lead to, of those that start with `above`.

    Args:
        choices: choice by group, such as `student` or `noise@teacher.noise`; the others are the default ones.
        above: nothing, or a dotted key and a dot.
    """
    found: dict[str, None] = {}
    every: dict[str, str | None] = dict(default_choices())
    named = _overridden("experiment", choices.get("experiment")) | choices
    for key in ("student", "teacher"):  # a student may bring a teacher
        every |= _overridden(key, named.get(key, every.get(key)))
    every |= named
    for key, choice in every.items():
        group, _, package = key.partition("@")
        if choice in (None, "null"):
            continue
        package = "" if group == "experiment" else package or group
        found |= dict.fromkeys(_keys_of(group, choice, package, choices))
    found |= dict.fromkeys(_plain(_text("config.yaml")))
    return sorted(key for key in _without_parents(found) if key.startswith(above))


def default_choices() -> dict[str, str]:
    """Return the choice by group that config.yaml makes."""
    return dict(re.findall(r"^ *- (\w+): *([\w.-]+)", _text("config.yaml"), re.MULTILINE))


def values_of(key: str) -> list[str]:
    """Return the words that a dotted key may hold, as they are written; none where it holds numbers or texts."""
    return list(_words(rule_for(key)))


def _words(rule: Any) -> Iterator[str]:
    if isinstance(rule, OneOf):
        yield from rule.words
    elif isinstance(rule, Bool):
        yield from ("true", "false")
    elif isinstance(rule, Null):
        yield "null"
    elif isinstance(rule, Either):
        for part in rule.rules:
            yield from _words(part)


def _overridden(group: str, choice: str | None) -> dict[str, str]:
    """Return what a choice sets in other groups: `override /teacher@_global_.teacher: ctc_small`."""
    found = {}
    for override, other, package, value in _defaults(_text(f"{group}/{choice}.yaml")):
        if override and value and (package or "").removeprefix("_global_.") in ("", other):
            found[other] = value
    return found


def _keys_of(group: str, choice: str, package: str, choices: dict[str, str]) -> Iterator[str]:
    """Yield the keys of a choice and of what its defaults name, below the key `package`."""
    text = _text(f"{group}/{choice}.yaml")
    header = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    if header and package in ("", group):  # a command line's group@package comes before it
        package = header[1].removeprefix("_global_")
    for override, other, where, value in _defaults(text):
        if override or other == "_self_":
            continue
        if value is None:
            yield from _keys_of(group, other, f"{package}.{where}" if where else package, choices)
        else:
            below = {None: other, "_here_": package}.get(where, f"{package}.{where}")
            yield from _keys_of(other, choices.get(f"{other}@{below}", value), below, choices)
    for key in _plain(text):
        yield f"{package}.{key}".lstrip(".")


def _defaults(text: str) -> list[tuple[str, str, str | None, str | None]]:
    """Return the entries of a defaults list: override or nothing, group or file, package, choice."""
    found = re.search(r"^defaults: *(\[[^]]*\]|\n(?:[ -].*\n|\n)+)", text + "\n", re.MULTILINE)
    if not found:
        return []
    lines = found[1].strip("[]").split(",") if found[1].startswith("[") else found[1].splitlines()
    entries = [_DEFAULT.match(line.partition("#")[0].strip().removeprefix("-").strip()) for line in lines]
    return [(m[1] or "", m[2], m[3], m[4]) for m in entries if m]


@cache
def _text(name: str) -> str:
    """Return the text of a YAML file, the user's first; nothing where there is none."""
    file = next((file for folder in conf_folders() if (file := folder / name).is_file()), None)
    return file.read_text(encoding="utf-8", errors="replace") if file else ""


def _plain(text: str) -> list[str]:
    return [key for key in yaml_keys(text) if key.partition(".")[0] != "defaults"]


def yaml_keys(text: str) -> list[str]:
    """Return the dotted keys of all values in a YAML text, a list being a value; of what it cannot read, nothing."""
    found: list[str] = []
    above: list[tuple[int, str]] = []  # the keys that the line lies in, with their indents
    lines = iter(text.splitlines())
    for line in lines:
        match = _KEY.fullmatch(re.sub(r"(^|\s)#.*", "", line).rstrip())
        if not match:
            continue
        indent, value = len(match[1]), match[5]
        while above and above[-1][0] >= indent:
            above.pop()
        key = match[2] or match[3] or match[4].strip()
        dotted = ".".join([name for _, name in above] + [key])
        while value.count("{") > value.count("}") or value.count("[") > value.count("]"):  # goes on in the next line
            more = next(lines, None)
            if more is None:
                break
            value += " " + re.sub(r"(^|\s)#.*", "", more).strip()
        if value.replace(" ", "") == "{}":
            continue
        if value:
            found += [dotted + below for below in _flow_keys(value)] or [dotted]
        else:
            above.append((indent, key))
            found.append(dotted)
    return _without_parents(found)


def _without_parents(keys: Iterable[str]) -> list[str]:
    """Return the keys that hold a value: those that have no keys below them."""
    keys = list(keys)
    parents = {".".join(parts[:n]) for key in keys for parts in [key.split(".")] for n in range(1, len(parts))}
    return [key for key in keys if key not in parents]


def _flow_keys(text: str) -> list[str]:
    """Return the keys, each after a dot, of a flow mapping such as `{a: 1, b: {c: 2}}`; nothing for another value."""
    if not text.startswith("{"):
        return []
    found: list[str] = []
    above: list[str | None] = []  # the key of each open bracket; None for a list, whose content is one value
    pending = ""
    for bracket, word in _FLOW.findall(_QUOTED.sub("text", text)):
        if word.strip():
            name, colon, value = word.strip().partition(":")
            if None in above or not colon:
                continue
            pending = name.strip()
            if value.strip():
                found.append("".join(f".{key}" for key in [*above[1:], pending] if key))
        elif bracket == "{":
            above.append(pending)
            pending = ""
        elif bracket == "[":
            if pending and None not in above:
                found.append("".join(f".{key}" for key in [*above[1:], pending] if key))
            above.append(None)
        elif bracket in "}]" and above:
            above.pop()
    return found


def paths(start: str, folders_only: bool) -> list[str]:
    """Return the paths that begin with a text, folders with a slash at their end, hidden ones only after a dot."""
    parent, slash, name = start.rpartition("/")
    where = Path(parent + slash) if parent or slash else Path()
    try:
        entries = sorted(where.iterdir())
    except OSError:
        return []
    return [
        f"{parent}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
        if entry.is_dir() or not folders_only
    ]
