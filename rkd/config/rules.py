"""What a value of the configuration may be: rules that say whether they allow one, and how to put it in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Int:
    """A whole number."""

    min: int | None = None
    max: int | None = None
    even: bool = False

    def allows(self, value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and not (self.even and value % 2) and _within(value, self.min, self.max)

    def __str__(self) -> str:
        return ("an even number" if self.even else "a whole number") + _limits(self.min, self.max)


@dataclass(frozen=True)
class Float:
    """A finite number; `above` is a lower limit that is itself excluded."""

    min: float | None = None
    max: float | None = None
    above: float | None = None

    def allows(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and _within(value, self.min, self.max) and (self.above is None or value > self.above)

    def __str__(self) -> str:
        if self.above is not None and self.max is not None:
            return f"a number above {self.above:g}, at most {self.max:g}"
        return "a number" + (f" above {self.above:g}" if self.above is not None else "") + _limits(self.min, self.max)


@dataclass(frozen=True)
class Bool:
    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Str:
    """A text that is not empty, and of which `pattern` must match the whole."""

    pattern: str = r"(?s).+"
    what: str = "a text"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.what


class OneOf:
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def allows(self, value: Any) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return " | ".join(self.words)


@dataclass(frozen=True)
class ListOf:
    """A list whose items all fit one rule; `length` fixes how many there are."""

    item: Any
    min_items: int = 0
    length: int | None = None

    def allows(self, value: Any) -> bool:
        if not isinstance(value, list) or len(value) < self.min_items:
            return False
        return self.length in (None, len(value)) and all(self.item.allows(v) for v in value)

    def __str__(self) -> str:
        n = f" of {self.length} items" if self.length else f" of at least {self.min_items}" if self.min_items else ""
        return f"a list [...]{n}, each {self.item}"


@dataclass(frozen=True)
class Range:
    """[low, high], both fitting one rule, low not above high."""

    item: Any

    def allows(self, value: Any) -> bool:
        pair = isinstance(value, list) and len(value) == 2 and all(self.item.allows(v) for v in value)
        return pair and value[0] <= value[1]

    def __str__(self) -> str:
        return f"[low, high], low not above high, each {self.item}"


class Table:
    """A mapping whose keys are a few words, each with its rule; `*` is any word."""

    def __init__(self, rules: dict[str, Any], required: Sequence[str] = ()) -> None:
        self.rules, self.required = rules, required

    def allows(self, value: Any) -> bool:
        if not isinstance(value, dict) or not set(self.required) <= set(value):
            return False
        rules = [self.rules.get(key, self.rules.get("*")) for key in value]
        return all(rule is not None and rule.allows(value[key]) for key, rule in zip(value, rules, strict=True))

    def __str__(self) -> str:
        return "{" + ", ".join(f"{key}: ..." for key in self.rules) + "}"


class Either:
    """What any of several rules allows."""

    def __init__(self, *rules: Any) -> None:
        self.rules = rules

    def allows(self, value: Any) -> bool:
        return any(rule.allows(value) for rule in self.rules)

    def __str__(self) -> str:
        return ", or ".join(map(str, self.rules))


class Null:
    def allows(self, value: Any) -> bool:
        return value is None

    def __str__(self) -> str:
        return "null"


NULL = Null()


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _limits(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return f" of at most {high:g}" if high is not None else ""
