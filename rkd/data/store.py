"""The speech store: 16 kHz mono 16-bit PCM in Arrow files that are memory-mapped, and never decoded again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rkd.errors import DataError

SPLITS = ("train", "validation", "test")

_PCM = pa.list_(pa.field("item", pa.int16(), nullable=False))
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
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
        """Return a column as Python values."""
        return self._table.column(name).to_pylist()

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
    """Writes one split of a speech store; a context manager, atomic.

    Args:
        path: the Arrow file, as ``folder / "train.arrow"``.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, _SCHEMA)

    def add(
        self,
        id: str,
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
            text=text,
            speaker=speaker,
            language=language,
            source=source,
            n_samples=len(pcm_int16),
            level_db=level_db,
            pcm=pcm_int16,
        )


class Store:
    """One split of a speech store, read-only. Pickles as its path, so that loader workers map the file themselves.

    Attributes:
        ids, texts, speakers, languages, sources: one value an utterance; all but ids may be None.
        n_samples: lengths at 16 kHz, int64.
        levels_db: active levels (ITU-T P.56) in dB re full scale, float32.
    """

    def __init__(self, folder: str | Path, split: str):
        self.folder, self.split = Path(folder), split
        self._table = PcmTable(self.folder / f"{split}.arrow")
        self.ids: list[str] = self._table.column("id")
        self.texts: list[str | None] = self._table.column("text")
        self.speakers: list[str | None] = self._table.column("speaker")
        self.languages: list[str | None] = self._table.column("language")
        self.sources: list[str | None] = self._table.column("source")
        self.n_samples = self._table.array("n_samples", np.int64)
        self.levels_db = self._table.array("level_db", np.float32)

    @classmethod
    def open(cls, folder: str | Path, split: str) -> Store:
        """Open ``<folder>/<split>.arrow``.

        Raises:
            DataError: the file is missing or damaged.
        """
        return cls(folder, split)

    def __reduce__(self):
        return Store, (self.folder, self.split)

    def __len__(self) -> int:
        return len(self.ids)

    def pcm(self, i: int) -> np.ndarray:
        """Return utterance ``i``, int16 ``(n_samples[i],)``: a read-only view of the file, nothing copied."""
        return self._table.pcm(i)
