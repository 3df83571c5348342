"""Values that change over the training: the weights of terms, and temperatures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rkd.errors import ConfigError

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A value over the share of the training that is done.

    Attributes:
        start: the value before the first step.
        end: the value that is reached when the training ends.
        shape: ``linear``, or ``cosine``: half a period, flat at both ends.
    """

    start: float
    end: float
    shape: str = "linear"

    @classmethod
    def of(cls, value: float | Mapping[str, Any]) -> Schedule:
        """Return the schedule of a configuration's value: a number stays what it is.

        Args:
            value: a number, or ``{from, to, shape}``.

        Raises:
            ConfigError: the shape is unknown.
        """
        if not isinstance(value, Mapping):
            return cls(float(value), float(value))
        shape = value.get("shape", "linear")
        if shape not in SHAPES:
            raise ConfigError(f"a schedule of shape {shape}: expected {' or '.join(SHAPES)}")
        return cls(float(value["from"]), float(value["to"]), shape)

    def at(self, share: float) -> float:
        """Return the value when a share of the training, from 0 to 1, is done."""
        done = share if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * share))
        return self.start + (self.end - self.start) * done

    def times(self, factor: float) -> Schedule:
        """Return the schedule of a multiple of the value."""
        return Schedule(factor * self.start, factor * self.end, self.shape)
