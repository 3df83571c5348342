"""What a source is: it says which files it depends on, and lists its utterances, whose audio is read later, anywhere.

A source lists an `Utterance` for what it finds, or a `Rejected` with the reason. Listing is quick and always in the
same order; decoding is left to `Utterance.read`, so that several processes can share it. A constructor takes plain
arguments and touches no file.

Shapes: T samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rkd import audio
from rkd.draws import Draws, unit_hash
from rkd.errors import ConfigError, DataError

FRACTIONS = (0.8, 0.1, 0.1)
BY = ("official", "speaker", "hash")

_AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64"}
_ARCHIVE_SUFFIXES = {".gz", ".tgz", ".zip", ".tar", ".bz2", ".xz", ".7z"}
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip

Read = Callable[[], tuple[np.ndarray, int]]
"""Returns a waveform, float32 ``(T,)`` with full scale 1.0, and its rate in Hz; raises DataError. It can be pickled."""


@dataclass(frozen=True)
class Utterance:
    """One utterance as a source found it.

    Attributes:
        id: unique in the source, and the same whenever it is prepared.
        split: ``train``, ``validation`` or ``test``.
        text: the transcript before normalisation; None or empty if there is none.
        speaker, language: None if not known.
        read: gets the waveform.
        source: the name of the source within a mixture.
    """

    id: str
    split: str
    text: str | None
    speaker: str | None
    language: str | None
    read: Read
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

    def inputs(self) -> Iterator[Path | str]:
        """Yield what the store depends on besides the arguments: files, or a line that pins what lies elsewhere."""
        ...

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the utterances, always in the same order."""
        ...


def assign(key: str, fractions: Sequence[float] = FRACTIONS) -> str:
    """Return the split of a key by its hash: the same on every machine, and whatever other keys there are."""
    check_fractions(fractions)
    point = unit_hash(f"split:{key}")
    if point < fractions[0]:
        return "train"
    return "validation" if point < fractions[0] + fractions[1] else "test"


def split_named(name: str | None) -> str | None:
    """Return the split that a folder or a column names: ``dev-clean`` is ``validation``; None for what names none."""
    words = (name or "").lower().replace("_", "-").replace(".", "-").split("-")
    return _SPLIT_NAMES.get(words[0])


def choose_split(
    by: str, id: str, speaker: str | None, official: str | None, fractions: Sequence[float]
) -> str | Rejected:
    """Return the split of an utterance by ``data.split``, or why it is in none."""
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


def walk(root: Path) -> Iterator[Path]:
    """Yield the files anywhere under a folder in a fixed order, without hidden ones; nothing of them is kept.

    Links to folders are followed; a folder that is reached twice is read once.
    """
    read: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in read:
            folders.clear()
            continue
        read.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def read_file(path: Path) -> tuple[np.ndarray, int]:
    """Decode an audio file; DataError with the reason alone, since what is rejected is named by its id."""
    try:
        return audio.decode(path)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{path}: ")) from error


def is_audio(path: Path) -> bool:
    """Say whether a file's suffix is one of libsndfile's formats."""
    return path.suffix.lower() in _AUDIO_SUFFIXES


def audio_files(folder: str | Path, what: str, key: str) -> Iterator[Path]:
    """Yield the audio files anywhere under a folder, in a fixed order, without hidden ones.

    Raises:
        DataError: there is no such folder, or no audio in it; ``what`` should be there, and ``key`` sets the folder.
    """
    root = check_folder(folder, what, key)
    found = False
    for path in walk(root):
        if is_audio(path):
            found = True
            yield path
    if not found:
        raise DataError(f"{root}: no audio files in it{packed(root)}; {key} is the folder with {what}")


def packed(root: Path) -> str:
    """Return, as a part of a message, an archive that lies in a folder and has to be unpacked; empty if none does."""
    archive = next((path for path in walk(root) if _is_archive(path)), None)
    return f", but {archive.relative_to(root)}: unpack it first" if archive else ""


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in _ARCHIVE_SUFFIXES


def check_folder(folder: str | Path, what: str, key: str) -> Path:
    """Return the folder; DataError if there is none."""
    root = Path(folder)
    if root.is_file():
        fix = "unpack it, and set" if _is_archive(root) else "set"
        raise DataError(f"{root} is a file; {fix} {key} to the folder with {what}")
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; set {key} to the one with {what}")
    return root


def between(draws: Draws, purpose: str, limits: Sequence[int]) -> np.ndarray:
    """Draw an integer from low to high, both included, for each sample."""
    low, high = limits
    return low + draws.below(purpose, high - low + 1)


def check_split(split: str, allowed: Sequence[str] = BY) -> None:
    """Raise ConfigError for a ``data.split`` that a source does not have."""
    if split not in allowed:
        raise ConfigError(f"data.split={split}: choose one of {', '.join(allowed)}")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise ConfigError unless there are three shares that sum to 1."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"data.fractions={list(fractions)}: give shares of train, validation and test that sum to 1")


def check_range(key: str, limits: Sequence, lowest: float) -> tuple:
    """Return [lowest, highest] as a tuple; ConfigError if it is empty or begins below ``lowest``."""
    if len(limits) != 2 or not lowest <= limits[0] <= limits[1]:
        raise ConfigError(f"data.{key}={list(limits)}: give [lowest, highest], not below {lowest}")
    return tuple(limits)


def check_counts(n_train: int, n_validation: int, n_test: int) -> dict[str, int]:
    """Return the number of utterances by split; ConfigError for a negative one."""
    counts = {"train": n_train, "validation": n_validation, "test": n_test}
    for split, n in counts.items():
        if n < 0:
            raise ConfigError(f"data.n_{split}={n}: a number of utterances is not negative")
    return counts
