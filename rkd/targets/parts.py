"""The parts of a folder of targets: rows of fixed size that are memory-mapped, and what tells of them."""

from __future__ import annotations

import errno
import json
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from rkd.errors import DataError

PART_BYTES = 2**25
PART_SECONDS, PART_SHARE = 60, 0.05  # of the work so far: what an end without warning may cost, the longer of the two
CARD, BOOKS = "card.json", "codebooks.npy"  # what rows mean


class Writer:
    """Writes parts of a folder of targets; on leaving its context, by an error too, what has come is a part.

    Args:
        folder: gets ``part-<rank>-<number>``; what is there stays. What its rows mean is there before them.
        rank: of this process among those that write.
    """

    def __init__(self, folder: Path, rank: int = 0):
        self.folder, self.rank = folder, rank
        there = (int(told.stem.rpartition("-")[2]) for told in folder.glob(f"part-{rank}-*.json"))
        self._number = max(there, default=-1) + 1
        self._ids: list[str] = []
        self._rows: list[np.ndarray] = []
        self._n_bytes = 0
        self._begun = self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, name: str, rows: np.ndarray) -> None:
        """Append the rows of an utterance."""
        self._ids.append(name)
        self._rows.append(rows)
        self._n_bytes += rows.nbytes
        now = time.monotonic()
        # Every part is a file that stays open where it is read, so days of work must not make one a minute.
        if self._n_bytes >= PART_BYTES or now - self._since >= max(PART_SECONDS, PART_SHARE * (now - self._begun)):
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part as one."""
        if not self._ids:
            return
        path = self.folder / f"part-{self.rank}-{self._number:05d}.npy"
        rows = np.concatenate(self._rows)
        np.save(path, rows)
        n_rows = [len(r) for r in self._rows]
        told = {"ids": self._ids, "rows": n_rows, "checksum": checksum(rows), "meaning": meaning(self.folder)}
        new = path.with_suffix(".json.new")
        new.write_text(json.dumps(told))
        new.replace(path.with_suffix(".json"))
        self._ids, self._rows, self._n_bytes = [], [], 0
        self._since = time.monotonic()
        self._number += 1


def checksum(rows: np.ndarray) -> int:
    """Return the CRC-32 of rows."""
    return zlib.crc32(rows.view(np.uint8).data)


def meaning(folder: Path) -> int:
    """Return the CRC-32 of what tells what the rows of a folder mean; what is missing counts nothing."""
    value = 0
    for name in (CARD, BOOKS):
        with suppress(FileNotFoundError):
            value = zlib.crc32((folder / name).read_bytes(), value)
    return value


def read_told(told: Path) -> dict[str, Any]:
    """Return what a part's JSON file tells.

    Raises:
        DataError: it cannot be read.
    """
    try:
        about = json.loads(told.read_text())
        # Parts of earlier versions do not tell with what they were written.
        return {key: about[key] for key in ("ids", "rows", "checksum")} | {"meaning": about.get("meaning")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reraise_shortage(error)
        raise DataError(f"{told} is damaged ({error}); remove it, and the same command makes it again") from error


def open_part(told: Path) -> np.memmap:
    """Map the rows that a part's JSON file tells of.

    Raises:
        DataError: they are not what was written.
    """
    about, path = read_told(told), told.with_suffix(".npy")
    try:
        rows = np.load(path, mmap_mode="r")
        whole = checksum(rows) == about["checksum"]
    except (OSError, ValueError) as error:
        reraise_shortage(error)
        raise DataError(f"{path} is damaged ({error}); remove {told}, and the same command makes it again") from error
    if not whole:
        raise DataError(f"{path} is not what was written; remove {told}, and the same command makes it again")
    if about["meaning"] not in (None, meaning(told.parent)):
        raise DataError(
            f"{told.parent}: {CARD} or {BOOKS} is not what {path.name} was written with; remove the folder, and the "
            "same command makes it again"
        )
    return rows


def reraise_shortage(error: Exception) -> None:
    """Raise an error again that says nothing about a file: there are too many of them, or no permission."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES):
        raise error


def fits(folder: Path) -> bool:
    """Say whether what tells what rows mean is what some part of a folder was written with."""
    found = set()
    for told in folder.glob("part-*.json"):
        with suppress(DataError):
            found.add(read_told(told)["meaning"])
    return bool(found & {None, meaning(folder)})


def remove_damaged(folder: Path) -> list[Path]:
    """Remove the parts that are not what was written, so that they are made again; return their files.

    What their rows mean has to be there.
    """
    damaged = []
    for told in sorted(folder.glob("part-*.json")):
        try:
            open_part(told)
        except DataError:
            told.unlink()
            damaged.append(told.with_suffix(".npy"))
    return damaged


def written(folder: Path) -> set[str]:
    """Return the ids of the utterances whose targets are there."""
    return {name for told in folder.glob("part-*.json") for name in read_told(told)["ids"]}
