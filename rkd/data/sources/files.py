"""Recordings of the user's own: a folder of them, or a list."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rkd.data.sources.base import (
    FRACTIONS,
    Rejected,
    Utterance,
    audio_files,
    check_fractions,
    check_split,
    choose_split,
    read_file,
    split_named,
)
from rkd.errors import DataError


class Folder:
    """Audio files anywhere under a folder, each with its text in a ``.txt`` file of the same name beside it, if any.

    The id is the path below the folder without suffix, the speaker the name of the parent folder, if that is not the
    folder itself or that of a split.

    Args:
        path: the folder.
        split: ``hash``: by file; ``speaker``: by speaker, so that nobody is heard in two splits; ``official``: by the
            top-level folder, named train, validation (valid, dev) or test.
        fractions: shares of training, validation and test with ``hash`` and ``speaker``.
        language: language of all of it.

    Raises:
        ConfigError: an unknown ``split``, or fractions that do not sum to 1.
    """

    def __init__(
        self, path: str, split: str = "hash", fractions: Sequence[float] = FRACTIONS, language: str | None = None
    ):
        check_split(split)
        check_fractions(fractions)
        self.path, self.split, self.fractions, self.language = Path(path), split, tuple(fractions), language

    def _audio_files(self) -> Iterator[Path]:
        return audio_files(self.path, "the recordings", "data.path")

    def inputs(self) -> Iterator[Path]:
        """Yield the audio files and their texts."""
        for path in self._audio_files():
            yield path
            if (text := path.with_suffix(".txt")).is_file():
                yield text

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the files in the order of their paths."""
        for path in self._audio_files():
            relative = path.relative_to(self.path)
            id = relative.with_suffix("").as_posix()
            top = split_named(relative.parts[0]) if len(relative.parts) > 1 else None
            named_after_split = top is not None and len(relative.parts) == 2
            speaker = None if len(relative.parts) == 1 or named_after_split else path.parent.name
            split = choose_split(self.split, id, speaker, top, self.fractions)
            if isinstance(split, Rejected):
                yield split
                continue
            text_path = path.with_suffix(".txt")
            try:
                text = text_path.read_text("utf-8-sig") if text_path.is_file() else None
            except UnicodeDecodeError:
                yield Rejected(id, "text is not UTF-8")
                continue
            yield Utterance(id, split, text, speaker, self.language, partial(read_file, path))


class Manifest:
    """A list of recordings: JSON Lines, or CSV (or TSV) with a header.

    Columns, by the names that data sets use: the audio file, relative to the manifest (``audio``, ``path``,
    ``audio_path``, ``audio_filepath``); if known the text (``text``, ``sentence``, ``transcript``), ``speaker``
    (``speaker_id``, ``client_id``), ``language`` (``locale``), ``split`` and ``id`` (default: the audio path).

    Args:
        path: the file.
        split: ``hash``: by id; ``speaker``: by speaker; ``official``: by the column ``split``.
        fractions: shares of training, validation and test with ``hash`` and ``speaker``.

    Raises:
        ConfigError: an unknown ``split``, or fractions that do not sum to 1.
    """

    _columns = {  # noqa: RUF012
        "audio": ("audio", "path", "audio_path", "audio_filepath"),
        "text": ("text", "sentence", "transcript"),
        "speaker": ("speaker", "speaker_id", "client_id"),
        "language": ("language", "locale"),
        "split": ("split",),
        "id": ("id",),
    }

    def __init__(self, path: str, split: str = "hash", fractions: Sequence[float] = FRACTIONS):
        check_split(split)
        check_fractions(fractions)
        self.path, self.split, self.fractions = Path(path), split, tuple(fractions)

    def inputs(self) -> Iterator[Path]:
        """Yield the manifest and those of its audio files that exist."""
        yield self.path
        for _, row in self._rows():
            if isinstance(row, dict) and row["audio"] and (path := self.path.parent / row["audio"]).is_file():
                yield path

    def _rows(self) -> Iterator[tuple[int, dict[str, str | None] | str]]:
        """Yield line number and row, as a mapping from the names of ``_columns``, or what is wrong with the line.

        Raises:
            DataError: the manifest is missing, unreadable or empty.
        """
        rows = self._lines()
        if (first := next(rows, None)) is None:
            raise DataError(f"{self.path}: holds no recordings")
        yield first
        yield from rows

    def _lines(self) -> Iterator[tuple[int, dict[str, str | None] | str]]:
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "there is no such file"
            raise DataError(f"{self.path}: {what}; set data.path to the manifest (.jsonl, .csv or .tsv)")
        kind = self.path.suffix.lower()
        if kind not in (".jsonl", ".json", ".csv", ".tsv"):
            raise DataError(f"{self.path}: a manifest ends in .jsonl, .csv or .tsv")
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                if kind in (".csv", ".tsv"):
                    reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
                    if reader.fieldnames and not set(self._columns["audio"]) & set(reader.fieldnames):
                        raise DataError(
                            f"{self.path}: the first line has to name the columns, one of them "
                            f"{', '.join(self._columns['audio'])}; it is {', '.join(reader.fieldnames)}"
                        )
                    for row in reader:
                        yield reader.line_num, self._named(row)
                else:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            try:
                                parsed = json.loads(line)
                            except ValueError as error:
                                parsed = f"not JSON: {error}"
                            yield number, self._named(parsed) if isinstance(parsed, dict) else "not a JSON object"
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path}: cannot be read as UTF-8 {kind[1:]} ({error})") from error

    def _named(self, row: Mapping[str, Any]) -> dict[str, str | None]:
        def first(names: Sequence[str]) -> str | None:
            return next((str(row[name]) for name in names if row.get(name) not in (None, "")), None)

        return {column: first(names) for column, names in self._columns.items()}

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the rows in their order."""
        for number, row in self._rows():
            where = f"line {number}"
            if isinstance(row, str):
                yield Rejected(where, f"{row} ({where})")
                continue
            if not row["audio"]:
                yield Rejected(row["id"] or where, f"no audio path ({where})")
                continue
            id = row["id"] or Path(row["audio"]).with_suffix("").as_posix()
            split = choose_split(self.split, id, row["speaker"], split_named(row["split"]), self.fractions)
            path = self.path.parent / row["audio"]
            if isinstance(split, Rejected):
                yield replace(split, reason=f"{split.reason} ({where})")
            elif not path.is_file():
                yield Rejected(id, f"no such audio file: {row['audio']} ({where})")
            else:
                yield Utterance(id, split, row["text"], row["speaker"], row["language"], partial(read_file, path))
