"""Strings joined from recordings of single digits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rkd import audio
from rkd.data.sources.base import (
    Rejected,
    Utterance,
    assign,
    audio_files,
    between,
    check_counts,
    check_range,
    check_split,
    read_file,
)
from rkd.data.sources.digits import DIGIT_WORDS
from rkd.data.store import SPLITS
from rkd.draws import Draws, hash64
from rkd.errors import ConfigError, DataError

_NAME = re.compile(r"(\d)_(.+)_(\d+)")


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
        check_split(split)
        if split == "speaker" and not test_speakers:
            raise ConfigError("data.split=speaker needs the speakers to hold out, e.g. 'data.test_speakers=[lucas]'")
        self.path, self.split, self.test_speakers, self.seed = Path(path), split, list(test_speakers or []), seed
        self.n_utterances = check_counts(n_train, n_validation, n_test)
        self.length = check_range("length", length, 1)
        self.gap_seconds = check_range("gap_seconds", gap_seconds, 0)

    def inputs(self) -> list[Path]:
        """Return the recordings.

        Raises:
            DataError: there are none for a split.
        """
        inner = self.path / "recordings"
        root = inner if inner.is_dir() else self.path
        paths = list(audio_files(root, "the Free Spoken Digit Dataset", "data.path"))
        names = [match for path in paths if (match := _NAME.fullmatch(path.stem))]
        speakers = {match[2] for match in names}
        for speaker in self.test_speakers if self.split == "speaker" else ():
            if speaker not in speakers:
                raise DataError(
                    f"data.test_speakers: {speaker} has no recordings; there are {', '.join(sorted(speakers))}"
                )
        there = {self._split_of(match) for match in names}
        if lacking := [split for split, n in self.n_utterances.items() if n and split not in there]:
            raise DataError(
                f"{root}: of {len(names)} recordings named {{digit}}_{{speaker}}_{{index}} none is for "
                f"{' or '.join(lacking)}: with data.split=official index 0-4 tests, 5-9 validates and the rest trains; "
                "data.split=hash does not look at it"
            )
        return paths

    def _split_of(self, name: re.Match) -> str:
        recording, speaker, index = name[0], name[2], int(name[3])
        if self.split == "hash":
            return assign(recording)
        if self.split == "speaker":
            if speaker in self.test_speakers:
                return "test"
            return "validation" if 5 <= index <= 9 else "train"
        return "test" if index <= 4 else "validation" if index <= 9 else "train"

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield the recordings that cannot be used, then the strings of digits."""
        pools: dict[str, dict[str, list[Path]]] = {split: defaultdict(list) for split in SPLITS}
        for path in self.inputs():
            match = _NAME.fullmatch(path.stem)
            if not match:
                yield Rejected(path.name, "file name is not {digit}_{speaker}_{index}")
                continue
            try:
                read_file(path)
            except DataError as error:
                yield Rejected(path.name, str(error))
                continue
            pools[self._split_of(match)][match[2]].append(path)
        for split, pool in pools.items():
            if pool:
                yield from self._strings(split, pool)

    def _strings(self, split: str, pool: dict[str, list[Path]]) -> Iterator[Utterance]:
        speakers = sorted(pool)
        ids = [f"fsdd-{split}-{n:06d}" for n in range(self.n_utterances[split])]
        draws = Draws(self.seed, 0, [hash64(id) for id in ids])
        speaker_B, length_B = draws.below("speaker", len(speakers)), between(draws, "length", self.length)
        choice_BL = np.stack([draws.uniform(f"recording{k}") for k in range(self.length[1])], axis=1)
        low, high = self.gap_seconds
        gap_BL = np.stack([low + (high - low) * draws.uniform(f"gap{k}") for k in range(self.length[1])], axis=1)
        for i, id in enumerate(ids):
            speaker = speakers[speaker_B[i]]
            recordings = [pool[speaker][int(u * len(pool[speaker]))] for u in choice_BL[i, : length_B[i]]]
            words = [DIGIT_WORDS[int(path.stem[0])] for path in recordings]
            read = partial(join, recordings, gap_BL[i, 1 : length_B[i]].tolist())
            yield Utterance(id, split, " ".join(words), speaker, "en", read)


def join(recordings: Sequence[Path], gaps_seconds: Sequence[float]) -> tuple[np.ndarray, int]:
    """Return recordings one after the other with silence between them, float32 ``(T,)``, and their rate."""
    pieces = [audio.resample(*read_file(path)) for path in recordings]
    for k, gap_seconds in enumerate(gaps_seconds):
        pieces.insert(2 * k + 1, np.zeros(round(gap_seconds * audio.RATE_HZ), dtype=np.float32))
    return np.concatenate(pieces), audio.RATE_HZ
