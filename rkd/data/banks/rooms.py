"""Banks of room impulse responses, measured or simulated: aligned to the direct path, split by room, written to Arrow.

Shapes: T samples at 16 kHz.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rkd import audio
from rkd.console import track
from rkd.data.banks.layouts import room_of
from rkd.data.banks.simulation import simulate, split_of_room
from rkd.data.banks.splits import in_turn, rank_split
from rkd.data.corpus import count_rejected, explain_rejected, write_reports
from rkd.data.sources import Rejected, audio_files
from rkd.data.store import SPLITS
from rkd.errors import DataError

_DECAY_DB = 60.0
_SCHEMA = pa.schema(
    [("name", pa.string()), ("split", pa.string()), ("simulated", pa.bool_()), ("response", pa.list_(pa.float32()))]
)


@dataclass(frozen=True)
class Room:
    """A room impulse response.

    Attributes:
        name: path below the folder without suffix, or the number of a simulated room.
        simulated: whether it was computed instead of measured.
        response: float32 ``(T,)`` at 16 kHz, whose first sample is the direct path and is 1.0.
    """

    name: str
    simulated: bool
    response: np.ndarray


def find_rooms(folder: str | Path) -> dict[str, Path]:
    """Return the files of a folder that hold room impulse responses, by their paths below it without suffix.

    Of files that differ in the suffix alone the last one counts.

    Raises:
        DataError: the folder is missing or holds none.
    """
    files = audio_files(folder, "room impulse responses", "noise.rooms")
    named = {os.path.splitext(path.relative_to(folder).as_posix())[0]: path for path in files}
    found = {name: path for name, path in named.items() if room_of(name) is not None}
    if not found:
        raise DataError(f"{folder} holds only noise; set noise.rooms to the folder with room impulse responses")
    return found


def prepare_rooms(folder: str | Path, out: str | Path, max_responses: int = 1000) -> dict[str, Any]:
    """Write a bank of recorded responses: ``rooms.arrow``, ``rejected.jsonl`` and ``summary.json``.

    Of each file the first channel is used. It starts at the direct path, taken to be the largest absolute sample, which
    is scaled to 1.0, and ends where the energy still to come is 60 dB below the whole (Schroeder, 1965). Rooms are
    split by the order of their hashes.

    Args:
        folder: the responses; `room_of` says what is one room.
        out: an existing folder for the bank.
        max_responses: of each split; they are taken one of each room in turn, in the order of hashes.

    Returns:
        The summary: ``splits``: name -> ``responses``, ``rooms`` (how many) and ``left_out`` (responses beyond
        ``max_responses``); ``rejected``: kind of reason -> count.

    Raises:
        DataError: there are fewer than three usable rooms.
    """
    out, files = Path(out), find_rooms(folder)
    rejected: list[Rejected] = []

    def responses(names: Iterable[str], split: str) -> Iterable[tuple[str, str, Room]]:
        for name in track(names, f"reading {split} rooms"):
            try:
                x_T = audio.resample(*audio.decode(files[name], channel=0))
            except DataError as error:
                rejected.append(Rejected(name, str(error).removeprefix(f"{files[name]}: ")))
                continue
            if x_T.any():
                yield split, rooms[name][0], Room(name, rooms[name][1], align_room(x_T))
            else:
                rejected.append(Rejected(name, "silent"))

    rooms = {name: room for name in files if (room := room_of(name))}
    while True:
        split_of = rank_split(room for room, _ in rooms.values())
        if len(split_of) < 3:
            raise DataError(
                f"{folder}: {len(split_of)} usable rooms{explain_rejected(count_rejected(rejected))}; at least 3 are "
                "needed, so that training, validation and test share none: add some, or use noise.rooms=simulated"
            )
        ordered = in_turn({name: room for name, (room, _) in rooms.items()})
        names = {split: [name for name in ordered if split_of[rooms[name][0]] == split] for split in SPLITS}
        splits = _write_rooms(out, chain(*(responses(names[split][:max_responses], split) for split in SPLITS)))
        if all(part["responses"] for part in splits.values()):
            break
        for one in rejected:  # all that a split had: share out the rest
            rooms.pop(one.id, None)
    for split in SPLITS:
        splits[split]["left_out"] = len(names[split][max_responses:])
    rejected = list({one.id: one for one in rejected}.values())
    summary = {"splits": splits, "rejected": count_rejected(rejected)}
    write_reports(out, rejected, summary)
    return summary


def prepare_simulated_rooms(settings: Mapping[str, Any], out: str | Path) -> dict[str, Any]:
    """Write a bank of simulated responses, one of each room; see `rkd.data.banks.simulation`.

    Args:
        settings: the arguments of `simulate`, and ``rooms``: how many.
        out: an existing folder for the bank.

    Returns:
        The summary, as of `prepare_rooms`.
    """
    how = {key: value for key, value in settings.items() if key != "rooms"}

    def responses() -> Iterable[tuple[str, str, Room]]:
        for number in track(range(settings["rooms"]), "simulating rooms"):
            x_T, direct = simulate(number, **how)
            yield split_of_room(number), str(number), Room(str(number), True, align_room(x_T, direct))

    summary = {"splits": _write_rooms(Path(out), responses()), "rejected": {}}
    write_reports(Path(out), [], summary)
    return summary


def load_rooms(out: str | Path, split: str) -> list[Room]:
    """Return the rooms of a split.

    Raises:
        DataError: the bank is missing or damaged.
    """
    path = Path(out) / "rooms.arrow"
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is missing or damaged ({error}); remove its folder and prepare it again") from error
    rows = zip(*(table.column(field.name) for field in _SCHEMA), strict=True)
    return [
        Room(name.as_py(), simulated.as_py(), response.values.to_numpy(zero_copy_only=False))
        for name, where, simulated, response in rows
        if where.as_py() == split
    ]


def align_room(x_T: np.ndarray, direct: int | None = None) -> np.ndarray:
    """Return a response from its direct path on, scaled so that this is 1.0, without what is 60 dB down; float32.

    Args:
        x_T: the response.
        direct: sample of the direct path; the largest absolute one if it is not known.
    """
    direct = int(np.argmax(np.abs(x_T))) if direct is None else direct
    response_T = x_T[direct:].astype(np.float64) / x_T[direct]
    remaining_T = np.cumsum(response_T[::-1] ** 2)[::-1]  # Schroeder's backward integration
    end = int(np.count_nonzero(remaining_T > remaining_T[0] * 10 ** (-_DECAY_DB / 10)))
    return response_T[:end].astype(np.float32)


def _write_rooms(out: Path, responses: Iterable[tuple[str, str, Room]]) -> dict[str, dict[str, int]]:
    """Write (split, room, response) one by one; return the numbers of responses and rooms of each split."""
    counts = dict.fromkeys(SPLITS, 0)
    rooms: dict[str, set[str]] = {split: set() for split in SPLITS}
    temporary = out / "rooms.arrow.tmp"
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for split, name, room in responses:
            columns = [[room.name], [split], [room.simulated], [room.response]]
            writer.write_batch(pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)],
                                               schema=_SCHEMA))  # fmt: skip
            counts[split] += 1
            rooms[split].add(name)
    os.replace(temporary, out / "rooms.arrow")
    return {split: {"responses": counts[split], "rooms": len(rooms[split])} for split in SPLITS}
