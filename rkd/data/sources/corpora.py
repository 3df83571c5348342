"""Published corpora, in the layouts that their archives unpack to."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from rkd.console import say, warn
from rkd.data.sources.base import (
    FRACTIONS,
    Rejected,
    Utterance,
    audio_files,
    check_folder,
    check_fractions,
    check_split,
    choose_split,
    is_audio,
    packed,
    read_file,
    split_named,
    walk,
)  # fmt: skip
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError


class LibriSpeech:
    """LibriSpeech (Panayotov et al. 2015, openslr.org/12), and corpora in its layout.

    ``<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`` beside ``<speaker>-<chapter>.trans.txt``; without
    the latter an utterance has no text.

    Args:
        path: the folder of the parts, the one above (with ``LibriSpeech/`` in it), or a single part.
        split: ``official``: by part, ``train-*``, ``dev-*`` and ``test-*``; ``speaker``; ``hash``: by utterance;
            ``auto``: official where all three kinds of parts are there, by speaker otherwise.
        parts: which ones, e.g. ``[train-clean-100, dev-clean, test-clean]``; None: all that are there.
        fractions: shares of training, validation and test with ``speaker`` and ``hash``.

    Raises:
        ConfigError: an unknown ``split``, or fractions that do not sum to 1.
    """

    def __init__(
        self,
        path: str,
        split: str = "auto",
        parts: Sequence[str] | None = None,
        fractions: Sequence[float] = FRACTIONS,
    ):
        check_split(split, ("auto", "official", "speaker", "hash"))
        check_fractions(fractions)
        self.path, self.split, self.parts, self.fractions = Path(path), split, parts, tuple(fractions)

    def _part_folders(self) -> list[Path]:
        root = check_folder(self.path, "LibriSpeech", "data.path")
        root = root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
        if re.fullmatch(r"(train|dev|test)(-[\w-]+)?", root.name):
            return [root]
        found = {
            folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and split_named(folder.name)
        }
        if not found:
            raise DataError(
                f"{root}: no part of LibriSpeech in it, such as train-clean-100{packed(root)}; "
                "data.path is the folder of the parts"
            )
        for part in self.parts or ():
            if part not in found:
                raise DataError(f"data.parts: {root} has no {part}; there are {', '.join(found)}")
        return [found[part] for part in self.parts or found]

    def _chapters(self) -> Iterator[tuple[list[Path], list[Path]]]:
        """Yield the recordings and the transcripts of each chapter, part by part."""
        for part in self._part_folders():
            next(audio_files(part, "LibriSpeech", "data.path"))  # or an error that says what is wrong with the part
            for _, chapter in groupby(walk(part), key=lambda path: path.parent):
                files = list(chapter)
                yield [path for path in files if is_audio(path)], [f for f in files if f.name.endswith(".trans.txt")]

    def inputs(self) -> Iterator[Path]:
        """Yield the recordings and their transcripts."""
        return (path for recordings, transcripts in self._chapters() for path in (*recordings, *transcripts))

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the recordings, part by part, and the lines of transcripts that have none."""
        by = self._split_rule()
        n_texts = n_found = 0
        for recordings, transcripts in self._chapters():
            texts = _transcripts(transcripts)
            n_texts += len(texts)
            for path in recordings:
                speaker = path.stem.partition("-")[0]
                part = path.parents[2].name if len(path.parents) > 2 else ""
                split = choose_split(by, path.stem, speaker, split_named(part), self.fractions)
                text = texts.pop(path.stem, None)
                n_found += text is not None
                if isinstance(split, Rejected):
                    yield split
                else:
                    yield Utterance(path.stem, split, text, speaker, "en", partial(read_file, path))
            yield from (Rejected(id, "no such audio file") for id in texts)
        if n_texts and not n_found:
            warn(f"none of the {n_texts} lines in the *.trans.txt files of {self.path} begins with a recording's name")

    def _split_rule(self) -> str:
        """Return by what utterances are split; what ``auto`` leads to is said."""
        if self.split != "auto":
            return self.split
        lacking = [split for split in SPLITS if split not in {split_named(part.name) for part in self._part_folders()}]
        if not lacking:
            say("data.split=auto: official, since there are train-*, dev-* and test-* parts")
            return "official"
        say(f"data.split=auto: by speaker, since there is no part for {' and '.join(lacking)}")
        return "speaker"


def _transcripts(files: Sequence[Path]) -> dict[str, str]:
    lines = [line for file in files for line in file.read_text("utf-8").splitlines() if line.strip()]
    return {id: text for id, _, text in (line.partition(" ") for line in lines)}


class LJSpeech:
    """LJ Speech (Ito & Johnson 2017, keithito.com/LJ-Speech-Dataset): one speaker, and corpora in its layout.

    ``metadata.csv`` with lines ``id|text|normalised text`` and ``wavs/<id>.wav``.

    Args:
        path: the folder.
        fractions: shares of training, validation and test; there is one speaker, so the split is by utterance.

    Raises:
        ConfigError: fractions that do not sum to 1.
    """

    def __init__(self, path: str, fractions: Sequence[float] = FRACTIONS):
        check_fractions(fractions)
        self.path, self.fractions = Path(path), tuple(fractions)

    def _rows(self) -> Iterator[tuple[str, str | None, Path | None]]:
        """Yield id, text and recording: of the lines of the table, then of the recordings that are not in it."""
        root = check_folder(self.path, "LJ Speech", "data.path")
        if not (root / "metadata.csv").is_file():
            raise DataError(
                f"{root}: no metadata.csv in it{packed(root)}; data.path is the folder of LJ Speech (with wavs/ in it)"
            )
        files = {path.stem: path for path in audio_files(root, "LJ Speech", "data.path")}
        rows = _table(root / "metadata.csv", "|")
        for id, *texts in rows:
            yield id, next((text for text in reversed(texts) if text.strip()), ""), files.get(id)
        for id in sorted(files.keys() - {row[0] for row in rows}):
            yield id, None, files[id]

    def inputs(self) -> Iterator[Path]:
        """Yield the table and the recordings."""
        yield self.path / "metadata.csv"
        yield from (path for _, _, path in self._rows() if path)

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the lines of the table, and recordings that it lacks."""
        for id, text, path in self._rows():
            split = choose_split("hash", id, None, None, self.fractions)
            if path is None:
                yield Rejected(id, "no such audio file")
            elif text is None:
                yield Rejected(id, "not in metadata.csv")
            else:
                yield Utterance(id, str(split), text, "LJ", "en", partial(read_file, path))


class CommonVoice:
    """Mozilla Common Voice (Ardila et al. 2020, commonvoice.mozilla.org), one language.

    ``train.tsv``, ``dev.tsv``, ``test.tsv``, ``validated.tsv`` with the columns ``client_id``, ``path``, ``sentence``,
    and ``clips/*.mp3``.

    Args:
        path: the language's folder, the one with ``clips/``.
        split: ``official``: the three lists; ``speaker`` or ``hash``: the validated clips, anew. The official training
            list is far smaller than what is validated.
        fractions: shares of training, validation and test with ``speaker`` and ``hash``.

    Raises:
        ConfigError: an unknown ``split``, or fractions that do not sum to 1.
    """

    def __init__(self, path: str, split: str = "official", fractions: Sequence[float] = FRACTIONS):
        check_split(split)
        check_fractions(fractions)
        self.path, self.split, self.fractions = Path(path), split, tuple(fractions)

    def _tables(self) -> dict[Path, str | None]:
        """Return the lists to read, and the split of each."""
        root = check_folder(self.path, "one language of Common Voice", "data.path")
        wanted: dict[Path, str | None] = {root / "validated.tsv": None}
        if self.split == "official":
            wanted = {root / f"{name}.tsv": split_named(name) for name in ("train", "dev", "test")}
        if missing := [path.name for path in wanted if not path.is_file()]:
            inside = sorted(f.name for f in root.iterdir() if (f / "clips").is_dir())
            hint = f", e.g. data.path={root / inside[0]}" if inside else ""
            raise DataError(
                f"{root}: no {', '.join(missing)} in it{packed(root)}; data.path is a language's folder{hint}"
            )
        if not (root / "clips").is_dir():
            raise DataError(f"{root}: no clips/ in it{packed(root)}; it holds the recordings that the lists name")
        return wanted

    def _rows(self) -> Iterator[tuple[dict[str, str], str | None, Path]]:
        for table, official in self._tables().items():
            header, *rows = _table(table, "\t")
            if not {"client_id", "path", "sentence"} <= set(header):
                raise DataError(f"{table}: its first line lacks the columns client_id, path, sentence")
            for values in rows:
                row = dict(zip(header, values, strict=False))
                name = row["path"] if is_audio(Path(row["path"])) else row["path"] + ".mp3"  # as early releases have it
                yield row, official, self.path / "clips" / name

    def inputs(self) -> Iterator[Path]:
        """Yield the lists and those of their clips that exist."""
        yield from self._tables()
        yield from (path for _, _, path in self._rows() if path.is_file())

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the lines of the lists."""
        for row, official, path in self._rows():
            split = choose_split(self.split, path.stem, row["client_id"] or None, official, self.fractions)
            if isinstance(split, Rejected):
                yield split
            elif not path.is_file():
                yield Rejected(path.stem, "no such audio file")
            else:
                language = row.get("locale") or self.path.name
                yield Utterance(
                    path.stem, split, row["sentence"], row["client_id"] or None, language, partial(read_file, path)
                )


class VoiceBankDemand:
    """The clean part of VoiceBank-DEMAND (Valentini-Botinhao 2017, datashare.ed.ac.uk/handle/10283/2791).

    ``clean_trainset_28spk_wav/``, ``clean_testset_wav/`` and the texts in ``trainset_28spk_txt/``, ``testset_txt/``;
    the set of 56 speakers has the same layout. rkd mixes its own noise, so the noisy files are not read.

    Args:
        path: the folder of these folders.
        split: ``official``: the published test set, and ``validation_speakers`` out of the training set; ``speaker``;
            ``hash``: by utterance.
        validation_speakers: of the training set; the default pair is the usual one.
        fractions: shares of training, validation and test with ``speaker`` and ``hash``.

    Raises:
        ConfigError: an unknown ``split``, fractions that do not sum to 1, or no validation speaker.
    """

    def __init__(
        self,
        path: str,
        split: str = "official",
        validation_speakers: Sequence[str] = ("p226", "p287"),
        fractions: Sequence[float] = FRACTIONS,
    ):
        check_split(split)
        check_fractions(fractions)
        if not validation_speakers:
            raise ConfigError("data.validation_speakers=[]: name speakers of the training set to validate with")
        self.path, self.split, self.fractions = Path(path), split, tuple(fractions)
        self.validation_speakers = list(validation_speakers)

    def _rows(self) -> Iterator[tuple[Path, str, Path]]:
        """Yield each clean recording, its official split, and where its text would be."""
        root = check_folder(self.path, "VoiceBank-DEMAND", "data.path")
        folders = sorted(
            f for f in root.iterdir() if f.is_dir() and f.name.startswith(("clean_trainset", "clean_testset"))
        )
        needed = ("clean_trainset_28spk_wav", "clean_testset_wav")
        missing = [name for name in needed if not any(f.name[:13] == name[:13] for f in folders)]
        if missing and (self.split == "official" or not folders):
            raise DataError(f"{root}: no {' or '.join(missing)} in it{packed(root)}; data.path is their folder")
        for folder in folders:
            texts = root / folder.name.removeprefix("clean_").replace("_wav", "_txt")
            for path in walk(folder):
                if is_audio(path):
                    speaker = path.stem.partition("_")[0]
                    trained = "validation" if speaker in self.validation_speakers else "train"
                    split = "test" if folder.name.startswith("clean_testset") else trained
                    yield path, split, texts / f"{path.stem}.txt"

    def inputs(self) -> Iterator[Path]:
        """Yield the recordings and their texts."""
        for path, _, text in self._rows():
            yield path
            if text.is_file():
                yield text

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the recordings, those of the test set first."""
        for path, official, text_path in self._rows():
            speaker = path.stem.partition("_")[0]
            split = choose_split(self.split, path.stem, speaker, official, self.fractions)
            if isinstance(split, Rejected):
                yield split
                continue
            text = text_path.read_text("utf-8") if text_path.is_file() else None
            yield Utterance(path.stem, split, text, speaker, "en", partial(read_file, path))


def _table(path: Path, delimiter: str) -> list[list[str]]:
    """Return the rows of a table whose quotation marks are part of the text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text in columns ({error}); download it again") from error
    if not rows:
        raise DataError(f"{path}: the table is empty; download it again")
    return rows
