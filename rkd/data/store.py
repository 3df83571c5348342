"""The speech store: 16 kHz mono 16-bit PCM in Arrow files that are memory-mapped, and never decoded again.

A store is written in parts, each a file that appears when it is complete: several processes can share the work, and
what is done need not be done again. Each part holds utterances of all splits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from rkd.errors import DataError

SPLITS = ("train", "validation", "test")

_PCM = pa.list_(pa.field("item", pa.int16(), nullable=False))
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("language", pa.string()),
        pa.field("source", pa.string()),
        pa.field("n_samples", pa.int32(), nullable=False),
        pa.field("level_db", pa.float32(), nullable=False),
        pa.field("pcm", _PCM, nullable=False),
    ]
)


class ArrowWriter:
    """Writes rows that end in a ``pcm`` column to an Arrow file, which appears under its name only when complete.

    Args:
        path: the file; ``<path>.tmp`` while it is being written. On an error in the ``with`` block nothing is left.
        schema: the columns; ``pcm`` has to be among them.
    """

    max_rows, max_samples = 256, 1 << 24  # of a record batch: what is held in memory, and the reach of 32-bit offsets

    def __init__(self, path: str | Path, schema: pa.Schema):
        self.path = Path(path)
        self.schema = schema
        self._temporary = self.path.with_name(self.path.name + ".tmp")
        self._rows: list[dict[str, Any]] = []
        self._n_samples = 0

    def __enter__(self):
        self._file = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._file, self.schema)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
        finally:
            self._file.close()
            if kind is not None:
                self._temporary.unlink(missing_ok=True)
        if kind is None:
            os.replace(self._temporary, self.path)

    def add_row(self, **row: Any) -> None:
        """Append a row; ``pcm`` is an int16 array."""
        self._rows.append(row)
        self._n_samples += len(row["pcm"])
        if len(self._rows) >= self.max_rows or self._n_samples >= self.max_samples:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        offsets = np.cumsum([0, *(len(row["pcm"]) for row in self._rows)]).astype(np.int32)
        values = np.concatenate([row["pcm"] for row in self._rows]).astype(np.int16, casting="no")
        columns = [
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=_PCM)
            if field.name == "pcm"
            else pa.array([row[field.name] for row in self._rows], type=field.type)
            for field in self.schema
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self._rows, self._n_samples = [], 0


class PcmTable:
    """An Arrow file of ``ArrowWriter``, memory-mapped.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing or damaged.
    """

    def __init__(self, path: str | Path):
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            self._table = pa.Table.from_batches(self._batches, reader.schema)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{path} is missing or damaged ({error}); remove its folder and run `rkd prepare` again"
            ) from error
        columns = [batch.column("pcm") for batch in self._batches]
        self._values = [column.values.to_numpy(zero_copy_only=True) for column in columns]
        self._offsets = [column.offsets.to_numpy(zero_copy_only=True) for column in columns]
        self._first_row = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> list:
        """Return a column as Python values; equal texts are one object."""
        column = self._table.column(name)
        if not pa.types.is_string(column.type):
            return column.to_pylist()
        column = column.combine_chunks().dictionary_encode()
        values = column.dictionary.to_pylist()
        return [None if i is None else values[i] for i in column.indices.to_pylist()]

    def value(self, name: str, row: int) -> Any:
        """Return one value of a column."""
        return self._table.column(name)[row].as_py()

    def some(self, name: str, rows: np.ndarray) -> list:
        """Return some rows of a column as Python values."""
        return self._table.column(name).take(pa.array(rows)).to_pylist()

    def missing(self, name: str) -> np.ndarray:
        """Return for each row whether a column holds nothing."""
        return self._table.column(name).is_null().to_numpy()

    def equals(self, name: str, value: str) -> np.ndarray:
        """Return for each row whether a text column holds a value."""
        return pa.compute.equal(self._table.column(name), value).to_numpy()

    def array(self, name: str, dtype: Any) -> np.ndarray:
        """Return a numeric column as an array."""
        return self._table.column(name).to_numpy().astype(dtype)

    def pcm(self, i: int) -> np.ndarray:
        """Return the samples of row ``i``: a read-only int16 view of the file, nothing copied."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        batch = int(np.searchsorted(self._first_row, i, side="right")) - 1
        start, end = self._offsets[batch][i - self._first_row[batch] :][:2]
        return self._values[batch][start:end]


class StoreWriter(ArrowWriter):
    """Writes one part of a speech store; a context manager, atomic.

    Args:
        path: the Arrow file, as ``part_path(folder, 0)``.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, _SCHEMA)

    def add(
        self,
        id: str,
        split: str,
        text: str | None,
        speaker: str | None,
        language: str | None,
        source: str | None,
        pcm_int16: np.ndarray,
        level_db: float,
    ) -> None:
        """Append an utterance: 16 kHz mono PCM, and its active level in dB re full scale."""
        self.add_row(
            id=id,
            split=split,
            text=text,
            speaker=speaker,
            language=language,
            source=source,
            n_samples=len(pcm_int16),
            level_db=level_db,
            pcm=pcm_int16,
        )


def part_path(folder: str | Path, number: int) -> Path:
    """Return the file of a part of a store."""
    return Path(folder) / f"part-{number:05d}.arrow"


def part_tables(folder: str | Path) -> list[PcmTable]:
    """Return the parts of a store.

    Raises:
        DataError: there are none, or one is damaged.
    """
    paths = sorted(Path(folder).glob("part-*.arrow"))
    if not paths:
        raise DataError(f"{folder} is missing or holds no speech store; remove it and run `rkd prepare` again")
    return [PcmTable(path) for path in paths]


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Return what is said of a finished store; see ``write_store``.

    Raises:
        DataError: it is missing or damaged.
    """
    path = Path(folder) / "summary.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is missing or damaged ({error}); remove its folder and run `rkd prepare` again"
        ) from error


class Selection:
    """Some rows of a store's parts, one after the other.

    Args:
        rows: of each part.
    """

    def __init__(self, parts: Sequence[PcmTable], rows: Sequence[np.ndarray]):
        self.parts = list(zip(parts, rows, strict=True))
        self._first = np.cumsum([0, *map(len, rows)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def at(self, i: int) -> tuple[PcmTable, int]:
        """Return the part that has row ``i``, and the row's number there."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        n = int(np.searchsorted(self._first, i, side="right")) - 1
        part, rows = self.parts[n]
        return part, int(rows[i - self._first[n]])


class Column(Sequence[Any]):
    """A text column of a selection; nothing of it stays in memory."""

    def __init__(self, selection: Selection, name: str):
        self._selection, self._name = selection, name

    def __len__(self) -> int:
        return len(self._selection)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        part, row = self._selection.at(i)
        return part.value(self._name, row)

    def __iter__(self) -> Iterator[Any]:
        for part, rows in self._selection.parts:
            yield from part.some(self._name, rows)


class Store:
    """One split of a speech store, read-only. Pickles as its path, so that loader workers map the files themselves.

    Attributes:
        labelled: whether the corpus has text.
        ids, texts, speakers, languages, sources: one value an utterance; all but ids may be None.
        n_samples: lengths at 16 kHz, int64.
        levels_db: active levels (ITU-T P.56) in dB re full scale, float32.
    """

    def __init__(self, folder: str | Path, split: str):
        self.folder, self.split = Path(folder), split
        self.labelled = bool(read_summary(folder)["has_text"])
        parts = part_tables(folder)
        self._selection = Selection(parts, [np.flatnonzero(self._belongs(part)) for part in parts])
        self.ids: Sequence[str] = Column(self._selection, "id")
        self.texts: Sequence[str | None] = Column(self._selection, "text")
        self.speakers: Sequence[str | None] = Column(self._selection, "speaker")
        self.languages: Sequence[str | None] = Column(self._selection, "language")
        self.sources: Sequence[str | None] = Column(self._selection, "source")
        self.n_samples = self._array("n_samples", np.int64)
        self.levels_db = self._array("level_db", np.float32)

    @classmethod
    def open(cls, folder: str | Path, split: str) -> Store:
        """Open a split of the store in a folder.

        Raises:
            DataError: a file is missing or damaged.
        """
        return cls(folder, split)

    def _belongs(self, part: PcmTable) -> np.ndarray:
        """Say which rows are in the split; where some of a corpus has text, what has none is left out."""
        with_text = ~part.missing("text") if self.labelled else True
        return part.equals("split", self.split) & with_text

    def _array(self, name: str, dtype: Any) -> np.ndarray:
        return np.concatenate([part.array(name, dtype)[rows] for part, rows in self._selection.parts])

    def __reduce__(self):
        return Store, (self.folder, self.split)

    def __len__(self) -> int:
        return len(self._selection)

    def pcm(self, i: int) -> np.ndarray:
        """Return utterance ``i``, int16 ``(n_samples[i],)``: a read-only view of the file, nothing copied."""
        part, row = self._selection.at(i)
        return part.pcm(row)
