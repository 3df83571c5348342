"""Data sets of the Hugging Face hub, or in a folder in one of its formats."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rkd import audio
from rkd.data.sources.base import (
    FRACTIONS,
    Read,
    Rejected,
    Utterance,
    check_fractions,
    check_split,
    choose_split,
    read_file,
    split_named,
    walk,
)  # fmt: skip
from rkd.errors import ConfigError, DataError, ResourceError

COLUMNS = {
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "locale", "lang"),
    "id": ("id", "utterance_id", "segment_id"),
}


class Hub:
    """A data set that the ``datasets`` library loads: by its id on the hub, or from a local folder.

    A local folder is what ``save_to_disk`` wrote, or holds Parquet, Arrow, or audio files with ``metadata.csv`` in one
    of the forms that ``load_dataset`` reads. Splits named like train, dev or test are used; audio is decoded by
    libsndfile.

    Args:
        path: the id, as ``openslr/librispeech_asr``, or the folder.
        name: the configuration, as ``clean``, where the data set has several.
        revision: branch, tag or commit on the hub. What it points at when it is first prepared is kept by that name.
        streaming: read over the network without storing the original.
        split: ``official``: by the data set's splits; ``speaker``; ``hash``: by utterance.
        fractions: shares of training, validation and test with ``speaker`` and ``hash``.
        text, speaker: names of columns; None: the usual ones.
        max_rows: of each of the data set's own splits, the first ones; None: all. What is beyond is not even fetched.

    Raises:
        ConfigError: an unknown ``split``, or fractions that do not sum to 1.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        revision: str = "main",
        streaming: bool = False,
        split: str = "official",
        fractions: Sequence[float] = FRACTIONS,
        text: str | None = None,
        speaker: str | None = None,
        max_rows: int | None = None,
    ):
        check_split(split)
        check_fractions(fractions)
        self.path, self.name, self.revision, self.streaming = path, name, revision, streaming
        self.split, self.fractions, self.max_rows = split, tuple(fractions), max_rows
        self.named = {"text": text, "speaker": speaker}

    @property
    def _is_local(self) -> bool:
        return Path(self.path).is_dir()

    def inputs(self) -> Iterator[Path | str]:
        """Yield the files of a local folder, or the commit that the revision points at."""
        if self._is_local:
            yield from walk(Path(self.path))
        else:
            yield f"{self.path} {self.name} {self._commit()}"

    def _commit(self) -> str:
        """Return the commit of the revision.

        Raises:
            ResourceError: the hub cannot be reached, or has no such data set.
        """
        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        if self.path.startswith(("/", ".", "~")) or self.path.count("/") > 1:
            raise DataError(f"{self.path}: there is no such folder; data.path is a local folder or a data set's id")
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.path, revision=self.revision).sha)
        except Exception as error:  # each way of not reaching a server has a class of its own
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ResourceError:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return ResourceError(
            f"cannot load {self.path} from the Hugging Face hub ({reason}); where there is a network, save it with "
            f"datasets.load_dataset(...).save_to_disk(folder), and set data.path=<folder>"
        )

    def _load(self) -> dict[str, Any]:
        """Return the data set's splits by name."""
        import datasets

        datasets.disable_progress_bars()
        try:
            if self._is_local and any((Path(self.path) / n).is_file() for n in ("dataset_dict.json", "state.json")):
                loaded: Any = datasets.load_from_disk(self.path)
            else:
                where = {} if self._is_local else {"revision": self._commit()}
                loaded = datasets.load_dataset(self.path, self.name, streaming=self.streaming, **where)
        except (ConfigError, DataError, ResourceError):
            raise
        except Exception as error:
            if self._is_local:
                cause: BaseException = error
                while cause.__cause__ is not None:  # what it was wrapped in says less
                    cause = cause.__cause__
                reason = " ".join(str(cause).split())[:200] or type(cause).__name__
                raise DataError(f"{self.path}: the datasets library cannot load it ({reason})") from error
            if "onfig name is missing" in str(error) or "BuilderConfig" in str(error):
                raise ConfigError(f"{self.path} needs data.name: {' '.join(str(error).split())[:200]}") from error
            raise self._unreachable(error) from error
        return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the rows, split by split; of the audio only the encoded bytes are read here."""
        import datasets

        for part, rows in self._load().items():
            features = rows.features or {}
            column = next((name for name, kind in features.items() if isinstance(kind, datasets.Audio)), None)
            if column is None:
                raise DataError(f"{self.path}: split {part} has no audio column; its columns are {', '.join(features)}")
            columns = {field: self._column(field, list(features)) for field in COLUMNS}
            undecoded = rows.cast_column(column, datasets.Audio(decode=False))
            for number, row in enumerate(islice(undecoded, self.max_rows)):
                yield self._utterance(part, number, row, row[column] or {}, columns)

    def _column(self, field: str, features: Sequence[str]) -> str | None:
        wanted = self.named.get(field)
        if wanted and wanted not in features:
            raise ConfigError(f"data.{field}={wanted}: {self.path} has no such column; it has {', '.join(features)}")
        return wanted or next((name for name in COLUMNS[field] if name in features), None)

    def _utterance(
        self, part: str, number: int, row: dict[str, Any], encoded: dict[str, Any], columns: dict[str, str | None]
    ) -> Utterance | Rejected:
        def value(field: str) -> str | None:
            name = columns[field]
            return None if name is None or row[name] is None else str(row[name])

        id = f"{part}/{value('id') or f'{number:08d}'}"
        speaker = value("speaker")
        split = choose_split(self.split, id, speaker, split_named(part), self.fractions)
        if isinstance(split, Rejected):
            return split
        if encoded.get("bytes") is not None:
            read: Read = partial(read_bytes, encoded["bytes"])
        elif encoded.get("path") and Path(encoded["path"]).is_file():
            read = partial(read_file, Path(encoded["path"]))
        else:
            return Rejected(id, "no audio in the row")
        return Utterance(id, split, value("text"), speaker, value("language"), read)


def read_bytes(encoded: bytes) -> tuple[np.ndarray, int]:
    """Decode the bytes of an audio file; DataError with the reason alone."""
    file = io.BytesIO(encoded)
    try:
        return audio.decode(file)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{file}: ")) from error
