"""Simulated rooms: the image source method (Allen & Berkley, 1979) of pyroomacoustics in shoebox rooms.

Room N depends on N, the ranges and the seed alone, so a larger bank contains the smaller one.

Shapes: T samples at 16 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rkd.audio import RATE_HZ
from rkd.draws import Draws

_MARGIN_M = 0.5  # between a wall and the source or the microphone
_HEIGHT_M = (1.0, 1.8)  # of source and microphone: somebody sits or stands
_DRIEST = 0.98  # share of the energy that a wall absorbs at most
# Of ten rooms seven train, one validates, two test; of the first three one each.
_SPLITS = ("train", "validation", "test", "train", "train", "train", "train", "test", "train", "train")


@dataclass(frozen=True)
class ShoeBox:
    """A room of even walls with a source and a microphone.

    Attributes:
        size_m: length, width, height.
        rt60_seconds: reverberation time after Sabine (1922).
        source_m, microphone_m: where they are, at the same height.
        distance_m: between them, a whole number of samples of sound travel.
    """

    size_m: tuple[float, float, float]
    rt60_seconds: float
    source_m: tuple[float, float, float]
    microphone_m: tuple[float, float, float]
    distance_m: float


def split_of_room(number: int) -> str:
    """Return the split of a room, which does not depend on how many there are."""
    return _SPLITS[number % len(_SPLITS)]


def draw_room(
    number: int,
    length_m: Sequence[float],
    width_m: Sequence[float],
    height_m: Sequence[float],
    rt60_seconds: Sequence[float],
    distance_m: Sequence[float],
    seed: int,
    speed_of_sound: float = 343.0,
) -> ShoeBox:
    """Draw a room from ranges ``[low, high]``.

    A room whose walls cannot absorb enough for its RT60 gets the shortest that it can have; a distance that does not
    fit into the room is shortened.
    """
    draws = Draws(seed, 0, [number])

    def between(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * float(draws.uniform(f"room.{purpose}")[0])

    length, width, height = (
        between(purpose, *limits)
        for purpose, limits in (("length", length_m), ("width", width_m), ("height", height_m))
    )
    surface = 2 * (length * width + length * height + width * height)
    shortest = 24 * math.log(10) / speed_of_sound * length * width * height / surface / _DRIEST
    # On a whole sample the direct path is one sample high, and its height is known.
    distance = min(between("distance", *distance_m), min(length, width) - 2 * _MARGIN_M)
    per_sample = speed_of_sound / RATE_HZ
    distance = max(1, math.floor(distance / per_sample)) * per_sample
    angle = between("angle", 0, 2 * math.pi)
    dx, dy = distance * math.cos(angle), distance * math.sin(angle)
    x = between("x", _MARGIN_M + max(0.0, -dx), length - _MARGIN_M - max(0.0, dx))
    y = between("y", _MARGIN_M + max(0.0, -dy), width - _MARGIN_M - max(0.0, dy))
    z = between("z", *_HEIGHT_M)
    return ShoeBox(
        (length, width, height), max(between("rt60", *rt60_seconds), shortest), (x + dx, y + dy, z), (x, y, z), distance
    )


def simulate(number: int, **ranges: Any) -> tuple[np.ndarray, int]:
    """Return the response of a room, float64 ``(T,)``, and the sample of its direct path.

    Args:
        number: which room.
        ranges: see `draw_room`.
    """
    import pyroomacoustics as pra  # takes a second to import

    speed_of_sound = pra.constants.get("c")
    room = draw_room(number, **ranges, speed_of_sound=speed_of_sound)
    absorption, order = pra.inverse_sabine(room.rt60_seconds, room.size_m, speed_of_sound)
    box = pra.ShoeBox(room.size_m, fs=RATE_HZ, materials=pra.Material(absorption), max_order=order)
    box.add_source(room.source_m)
    box.add_microphone(room.microphone_m)
    box.compute_rir()
    delay = pra.constants.get("frac_delay_length") // 2  # of the filter that places each reflection between samples
    return np.asarray(box.rir[0][0], dtype=np.float64), delay + round(room.distance_m / speed_of_sound * RATE_HZ)
