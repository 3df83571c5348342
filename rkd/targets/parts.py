"""The parts of a folder of targets: rows of fixed size that are memory-mapped, and what tells of them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from rkd.errors import DataError

PART_BYTES = 2**25


class Writer:
    """Writes parts of a folder of targets.

    Args:
        folder: gets ``part-<prefix><number>``; what is there stays.
        prefix: of this process.
    """

    def __init__(self, folder: Path, prefix: str = ""):
        self.folder, self.prefix = folder, prefix
        self._ids: list[str] = []
        self._rows: list[np.ndarray] = []
        self._n_bytes = 0

    def add(self, name: str, rows: np.ndarray) -> None:
        """Append the rows of an utterance."""
        self._ids.append(name)
        self._rows.append(rows)
        self._n_bytes += rows.nbytes
        if self._n_bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part as one."""
        if not self._ids:
            return
        number = sum(1 for _ in self.folder.glob(f"part-{self.prefix}*.json"))
        path = self.folder / f"part-{self.prefix}{number:05d}.npy"
        rows = np.concatenate(self._rows)
        np.save(path, rows)
        told = {"ids": self._ids, "rows": [len(r) for r in self._rows], "checksum": checksum(rows)}
        new = path.with_suffix(".json.new")
        new.write_text(json.dumps(told))
        new.replace(path.with_suffix(".json"))
        self._ids, self._rows, self._n_bytes = [], [], 0


def checksum(rows: np.ndarray) -> int:
    """Return the CRC-32 of rows."""
    return zlib.crc32(rows.view(np.uint8).data)


def written(folder: Path) -> set[str]:
    """Return the ids of the utterances whose targets are there."""
    return {name for part in folder.glob("part-*.json") for name in json.loads(part.read_text())["ids"]}


def open_part(told: Path) -> np.ndarray:
    """Map the rows that a part's JSON file tells of.

    Raises:
        DataError: they are not what was written.
    """
    path = told.with_suffix(".npy")
    try:
        rows = np.load(path, mmap_mode="r")
        whole = checksum(rows) == json.loads(told.read_text())["checksum"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove {told}, and the same command makes it again") from error
    if not whole:
        raise DataError(f"{path} is not what was written; remove {told}, and the same command makes it again")
    return rows
