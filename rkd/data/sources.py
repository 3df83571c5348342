"""Speech sources: from files or a synthesiser to one utterance after another, and from those to a verified store.

A source says which files it reads (`input_paths`) and yields what it finds (`utterances`): an `Utterance`, or
a `Rejected` with the reason. Its constructor takes plain arguments and touches no file. Waveforms are ``(T,)``.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rkd import audio
from rkd.data import espeak
from rkd.data.store import SPLITS
from rkd.draws import Draws, hash64, unit_hash
from rkd.errors import ConfigError, DataError

FRACTIONS = (0.8, 0.1, 0.1)
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64"}
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """One utterance as a source found it.

    Attributes:
        id: unique in the source, and the same whenever it is prepared.
        split: ``train``, ``validation`` or ``test``.
        text: the transcript before normalisation; None or empty if there is none.
        speaker, language: None if not known.
        waveform: float32 ``(T,)`` with full scale 1.0.
        rate_hz: its sampling rate.
        source: the name of the source within a mixture.
    """

    id: str
    split: str
    text: str | None
    speaker: str | None
    language: str | None
    waveform: np.ndarray
    rate_hz: int
    source: str | None = None


@dataclass(frozen=True)
class Rejected:
    """Something that cannot be used. The kind of reason comes first, details after a colon: kinds are counted."""

    id: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0].partition(" (")[0]


class Source(Protocol):
    """What `write_store` needs."""

    def input_paths(self) -> list[Path]:
        """Return the files whose content the store depends on."""
        ...

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the utterances, always in the same order."""
        ...


def assign(key: str, fractions: Sequence[float] = FRACTIONS) -> str:
    """Return the split of a key by its hash: the same on every machine, and whatever other keys there are."""
    _check_fractions(fractions)
    point = unit_hash(f"split:{key}")
    if point < fractions[0]:
        return "train"
    return "validation" if point < fractions[0] + fractions[1] else "test"


def audio_files(folder: str | Path, what: str, key: str) -> list[Path]:
    """Return the audio files anywhere under a folder, sorted, without hidden ones.

    Raises:
        DataError: there is no such folder, or no audio in it; ``what`` should be there, and ``key`` sets the folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder; set {key} to the one with {what}, e.g. {key}=/data/{root.name}"
        )
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in _AUDIO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )
    if not found:
        raise DataError(f"{root}: no audio files in it; set {key} to the folder with {what}")
    return found


class Digits:
    """Strings of number words, spoken by eSpeak NG: the corpus that every machine has.

    Which words, voice, rate and pitch utterance N of a split has depends on N and the seed alone, so a larger corpus
    contains the smaller one. The speaker is the voice. Needs the ``espeakng-loader`` package and no files.

    Args:
        n_train, n_validation, n_test: utterances in each split. 600 test strings hold about 2,400 words.
        words: the vocabulary.
        length: fewest and most words in a string.
        accents: eSpeak NG voices (``en`` is British); each is combined with each variant.
        variants: eSpeak NG voice variants of each split. A variant belongs to one split only. The default has women's
            and men's voices in each, keeps near-identical ones in the same split, and leaves out whispering,
            robotic and overdriven ones.
        rate_wpm: slowest and fastest speaking rate in words a minute.
        pitch: lowest and highest base pitch, 0 to 100; 50 is a voice's own.
        seed: seed of all draws.

    Raises:
        ConfigError: a range is empty, or a variant is in two splits.
    """

    variants = {  # noqa: RUF012
        "train": [
            *("f1", "f2", "f4", "aunty", "Annie", "linda", "belinda", "Alicia"),
            *("m1", "m2", "m3", "m5", "m7", "Denis", "Diogo", "Gene", "adam", "klatt4", "quincy", "max"),
            *("Alex", "Andy", "Jacky", "Lee", "anika", "antonio", "benjamin", "david", "ed", "edward"),
            *("marcelo", "paul", "pedro", "rob", "robert", "sandro", "travis", "victor", "zac"),
        ],
        "validation": ["f5", "shelby", "Mike", "michel", "norbert"],
        "test": ["f3", "Andrea", "steph", "m4", "m6", "m8", "Reed", "Michael"],
    }

    def __init__(
        self,
        n_train: int = 5000,
        n_validation: int = 200,
        n_test: int = 600,
        words: Sequence[str] = DIGIT_WORDS,
        length: Sequence[int] = (2, 6),
        accents: Sequence[str] = ("en-us", "en", "en-gb-scotland", "en-029"),
        variants: Mapping[str, Sequence[str]] | None = None,
        rate_wpm: Sequence[int] = (120, 220),
        pitch: Sequence[int] = (30, 70),
        seed: int = 0,
    ):
        self.n_utterances = _check_counts(n_train, n_validation, n_test)
        self.words, self.accents = list(words), list(accents)
        self.variants = {split: list(names) for split, names in (variants or type(self).variants).items()}
        self.length, self.rate_wpm, self.pitch = (
            _check_range("length", length, 1),
            _check_range("rate_wpm", rate_wpm, 80),
            _check_range("pitch", pitch, 0),
        )
        self.seed = seed
        if not self.words or not self.accents:
            raise ConfigError("data.words and data.accents need at least one entry each")
        if set(self.variants) != set(SPLITS) or not all(self.variants.values()):
            raise ConfigError(f"data.variants needs a list of voices for each of {', '.join(SPLITS)}")
        for name, count in Counter(name for names in self.variants.values() for name in set(names)).items():
            if count > 1:
                raise ConfigError(f"data.variants: {name} is in more than one split; a voice belongs to one")

    def input_paths(self) -> list[Path]:
        """Return no files: everything is computed."""
        return []

    def requests(self, split: str) -> list[tuple[str, espeak.Request]]:
        """Return id and request of each utterance of a split."""
        ids = [f"digits-{split}-{n:06d}" for n in range(self.n_utterances[split])]
        if not ids:
            return []
        draws = Draws(self.seed, 0, [hash64(id) for id in ids])
        length_B = _between(draws, "length", self.length)
        words_BL = np.stack([draws.below(f"word{k}", len(self.words)) for k in range(self.length[1])], axis=1)
        accent_B = draws.below("accent", len(self.accents))
        variant_B = draws.below("variant", len(self.variants[split]))
        rate_B, pitch_B = _between(draws, "rate", self.rate_wpm), _between(draws, "pitch", self.pitch)
        return [
            (
                ids[i],
                espeak.Request(
                    text=" ".join(self.words[word] for word in words_BL[i, : length_B[i]]),
                    voice=f"{self.accents[accent_B[i]]}+{self.variants[split][variant_B[i]]}",
                    rate_wpm=int(rate_B[i]),
                    pitch=int(pitch_B[i]),
                ),
            )
            for i in range(len(ids))
        ]

    def utterances(self) -> Iterator[Utterance]:
        """Yield the spoken strings."""
        wanted = [(split, id, request) for split in SPLITS for id, request in self.requests(split)]
        spoken = espeak.synthesise(request for _, _, request in wanted)
        for (split, id, request), pcm_T in zip(wanted, spoken, strict=True):
            waveform = audio.from_pcm16(pcm_T)
            yield Utterance(id, split, request.text, request.voice, "en", waveform, espeak.RATE_HZ)


class Fsdd:
    """Strings of recorded digits, joined from the Free Spoken Digit Dataset (8 kHz, a digit a file).

    Each string has one speaker and small gaps between its digits; levels are as recorded. A recording belongs to one
    split, and appears in several strings of it. The test part's 600 strings hold about 2,400 words.

    Args:
        path: the data set's folder, or its ``recordings`` folder: ``{digit}_{speaker}_{index}.wav``.
        split: ``official``: index 0-4 test, 5-9 validate, the others train; ``speaker``: ``test_speakers`` are heard in
            the test alone, of the others index 5-9 validate; ``hash``: by recording, 80/10/10.
        n_train, n_validation, n_test: strings in each split.
        length: fewest and most digits in a string.
        gap_seconds: shortest and longest gap between two digits.
        test_speakers: the names to hold out with ``split=speaker``.
        seed: seed of all draws.

    Raises:
        ConfigError: an unknown ``split``, an empty range, or ``split=speaker`` without ``test_speakers``.
    """

    def __init__(
        self,
        path: str,
        split: str = "official",
        n_train: int = 2000,
        n_validation: int = 200,
        n_test: int = 600,
        length: Sequence[int] = (2, 6),
        gap_seconds: Sequence[float] = (0.05, 0.3),
        test_speakers: Sequence[str] | None = None,
        seed: int = 0,
    ):
        _check_split(split, ("official", "speaker", "hash"))
        if split == "speaker" and not test_speakers:
            raise ConfigError("data.split=speaker needs the speakers to hold out, e.g. 'data.test_speakers=[lucas]'")
        self.path, self.split, self.test_speakers, self.seed = Path(path), split, list(test_speakers or []), seed
        self.n_utterances = _check_counts(n_train, n_validation, n_test)
        self.length = _check_range("length", length, 1)
        self.gap_seconds = _check_range("gap_seconds", gap_seconds, 0)

    def input_paths(self) -> list[Path]:
        """Return the recordings."""
        inner = self.path / "recordings"
        return audio_files(inner if inner.is_dir() else self.path, "the Free Spoken Digit Dataset", "data.path")

    def _split_of(self, recording: str, speaker: str, index: int) -> str:
        if self.split == "hash":
            return assign(recording)
        if self.split == "speaker":
            if speaker in self.test_speakers:
                return "test"
            return "validation" if 5 <= index <= 9 else "train"
        return "test" if index <= 4 else "validation" if index <= 9 else "train"

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the strings of digits, after the recordings that cannot be used."""
        # split -> speaker -> (word, waveform at 16 kHz)
        pools: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {s: defaultdict(list) for s in SPLITS}
        for path in self.input_paths():
            match = re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)
            if not match:
                yield Rejected(path.name, "file name is not {digit}_{speaker}_{index}")
                continue
            digit, speaker, index = int(match[1]), match[2], int(match[3])
            try:
                waveform = audio.resample(*audio.decode(path))
            except DataError as error:
                yield Rejected(path.name, _reason(error, path))
                continue
            pools[self._split_of(path.stem, speaker, index)][speaker].append((DIGIT_WORDS[digit], waveform))
        speakers = {speaker for pool in pools.values() for speaker in pool}
        for speaker in self.test_speakers if self.split == "speaker" else ():
            if speaker not in speakers:
                raise DataError(
                    f"data.test_speakers: {speaker} has no recordings; there are {', '.join(sorted(speakers))}"
                )
        for split, pool in pools.items():
            if pool:
                yield from self._strings(split, pool)

    def _strings(self, split: str, pool: dict[str, list[tuple[str, np.ndarray]]]) -> Iterator[Utterance]:
        speakers = sorted(pool)
        ids = [f"fsdd-{split}-{n:06d}" for n in range(self.n_utterances[split])]
        draws = Draws(self.seed, 0, [hash64(id) for id in ids])
        speaker_B, length_B = draws.below("speaker", len(speakers)), _between(draws, "length", self.length)
        choice_BL = np.stack([draws.uniform(f"recording{k}") for k in range(self.length[1])], axis=1)
        low, high = self.gap_seconds
        gap_BL = np.stack([low + (high - low) * draws.uniform(f"gap{k}") for k in range(self.length[1])], axis=1)
        for i, id in enumerate(ids):
            recordings = pool[speakers[speaker_B[i]]]
            words, pieces = [], []
            for k in range(length_B[i]):
                word, waveform = recordings[int(choice_BL[i, k] * len(recordings))]
                if k > 0:
                    pieces.append(np.zeros(round(gap_BL[i, k] * audio.RATE_HZ), dtype=np.float32))
                words.append(word)
                pieces.append(waveform)
            speaker, waveform = speakers[speaker_B[i]], np.concatenate(pieces)
            yield Utterance(id, split, " ".join(words), speaker, "en", waveform, audio.RATE_HZ)


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
        _check_split(split, ("official", "speaker", "hash"))
        _check_fractions(fractions)
        self.path, self.split, self.fractions, self.language = Path(path), split, tuple(fractions), language

    def _audio_files(self) -> list[Path]:
        return audio_files(self.path, "the recordings", "data.path")

    def input_paths(self) -> list[Path]:
        """Return the audio files and their texts."""
        files = self._audio_files()
        return files + [text for path in files if (text := path.with_suffix(".txt")).is_file()]

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the files in the order of their paths."""
        for path in self._audio_files():
            relative = path.relative_to(self.path)
            id = relative.with_suffix("").as_posix()
            top = _SPLIT_NAMES.get(relative.parts[0].lower()) if len(relative.parts) > 1 else None
            named_after_split = top is not None and len(relative.parts) == 2
            speaker = None if len(relative.parts) == 1 or named_after_split else path.parent.name
            split = _choose_split(self.split, id, speaker, top, self.fractions)
            if isinstance(split, Rejected):
                yield split
                continue
            try:
                text_path = path.with_suffix(".txt")
                text = text_path.read_text("utf-8-sig") if text_path.is_file() else None
                waveform, rate_hz = audio.decode(path)
            except (DataError, UnicodeDecodeError, OSError) as error:
                yield Rejected(id, _reason(error, path))
                continue
            yield Utterance(id, split, text, speaker, self.language, waveform, rate_hz)


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
        _check_split(split, ("official", "speaker", "hash"))
        _check_fractions(fractions)
        self.path, self.split, self.fractions = Path(path), split, tuple(fractions)

    def input_paths(self) -> list[Path]:
        """Return the manifest and those of its audio files that exist."""
        paths = {self.path.parent / row["audio"] for _, row in self._rows() if isinstance(row, dict) and row["audio"]}
        return [self.path, *sorted(path for path in paths if path.is_file())]

    def _rows(self) -> Iterator[tuple[int, dict[str, str | None] | str]]:
        """Yield line number and row, as a mapping from the names of ``_columns``, or what is wrong with the line."""
        if not self.path.is_file():
            raise DataError(f"{self.path}: there is no such file; set data.path to the manifest (.jsonl, .csv or .tsv)")
        kind = self.path.suffix.lower()
        if kind not in (".jsonl", ".json", ".csv", ".tsv"):
            raise DataError(f"{self.path}: a manifest ends in .jsonl, .csv or .tsv")
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                if kind in (".csv", ".tsv"):
                    reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
                    if not set(self._columns["audio"]) & set(reader.fieldnames or []):
                        raise DataError(
                            f"{self.path}: the first line has to name the columns, one of them "
                            f"{', '.join(self._columns['audio'])}; it is {', '.join(reader.fieldnames or ['empty'])}"
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
            official = _SPLIT_NAMES.get((row["split"] or "").lower())
            split = _choose_split(self.split, id, row["speaker"], official, self.fractions)
            path = self.path.parent / row["audio"]
            if isinstance(split, Rejected):
                yield replace(split, reason=f"{split.reason} ({where})")
            elif not path.is_file():
                yield Rejected(id, f"no such audio file: {row['audio']} ({where})")
            else:
                try:
                    waveform, rate_hz = audio.decode(path)
                except DataError as error:
                    yield Rejected(id, f"{_reason(error, path)} ({where})")
                    continue
                yield Utterance(id, split, row["text"], row["speaker"], row["language"], waveform, rate_hz)


class Mixture:
    """Several sources as one: all of them train, and those named in ``test_from`` validate and test.

    Ids and speakers are prefixed with the source's name.

    Args:
        sources: name -> source.
        test_from: names of the sources whose validation and test splits are used.

    Raises:
        ConfigError: ``test_from`` is empty or names a source that is not there.
    """

    def __init__(self, sources: Mapping[str, Source], test_from: Sequence[str]):
        self.sources, self.test_from = dict(sources), list(test_from)
        if not self.test_from or not set(self.test_from) <= set(self.sources):
            raise ConfigError(
                f"data.test_from={self.test_from}: name at least one source; there are {', '.join(self.sources)}"
            )

    def input_paths(self) -> list[Path]:
        """Return the files of all sources."""
        return [path for source in self.sources.values() for path in source.input_paths()]

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield one source after the other."""
        for name, source in self.sources.items():
            for found in source.utterances():
                id = f"{name}/{found.id}"
                if isinstance(found, Rejected):
                    yield replace(found, id=id)
                elif found.split == "train" or name in self.test_from:
                    speaker = None if found.speaker is None else f"{name}/{found.speaker}"
                    yield replace(found, id=id, speaker=speaker, source=name)


def _choose_split(
    by: str, id: str, speaker: str | None, official: str | None, fractions: Sequence[float]
) -> str | Rejected:
    if by == "hash":
        return assign(id, fractions)
    if by == "speaker":
        if speaker is None:
            return Rejected(
                id, "speaker unknown: data.split=speaker needs one; use data.split=hash or name the speakers"
            )
        return assign(speaker, fractions)
    return official or Rejected(
        id, "in no split: data.split=official needs train, validation or test; or data.split=hash"
    )


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "text is not UTF-8"
    return str(error).removeprefix(f"{path}: ")


def _between(draws: Draws, purpose: str, limits: tuple) -> np.ndarray:
    """Draw an integer from low to high, both included, for each sample."""
    low, high = limits
    return low + draws.below(purpose, high - low + 1)


def _check_split(split: str, allowed: Sequence[str]) -> None:
    if split not in allowed:
        raise ConfigError(f"data.split={split}: choose one of {', '.join(allowed)}")


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"data.fractions={list(fractions)}: give shares of train, validation and test that sum to 1")


def _check_range(key: str, limits: Sequence, lowest: float) -> tuple:
    if len(limits) != 2 or not lowest <= limits[0] <= limits[1]:
        raise ConfigError(f"data.{key}={list(limits)}: give [lowest, highest], not below {lowest}")
    return tuple(limits)


def _check_counts(n_train: int, n_validation: int, n_test: int) -> dict[str, int]:
    counts = {"train": n_train, "validation": n_validation, "test": n_test}
    for split, n in counts.items():
        if n < 0:
            raise ConfigError(f"data.n_{split}={n}: a number of utterances is not negative")
    return counts
