"""The embedded default: strings of number words, spoken by eSpeak NG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata

import numpy as np

from rkd import audio
from rkd.data import espeak
from rkd.data.sources.base import Utterance, between, check_counts, check_range
from rkd.data.store import SPLITS
from rkd.draws import Draws, hash64
from rkd.errors import ConfigError

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
        self.n_utterances = check_counts(n_train, n_validation, n_test)
        self.words, self.accents = list(words), list(accents)
        self.variants = {split: list(names) for split, names in (variants or type(self).variants).items()}
        self.length, self.rate_wpm, self.pitch = (
            check_range("length", length, 1),
            check_range("rate_wpm", rate_wpm, 80),
            check_range("pitch", pitch, 0),
        )
        self.seed = seed
        if not self.words or not self.accents:
            raise ConfigError("data.words and data.accents need at least one entry each")
        if set(self.variants) != set(SPLITS) or not all(self.variants.values()):
            raise ConfigError(f"data.variants needs a list of voices for each of {', '.join(SPLITS)}")
        for name, count in Counter(name for names in self.variants.values() for name in set(names)).items():
            if count > 1:
                raise ConfigError(f"data.variants: {name} is in more than one split; a voice belongs to one")

    def inputs(self) -> Iterator[str]:
        """Yield the synthesiser's version; there are no files."""
        yield f"espeakng-loader {metadata.version('espeakng-loader')}"

    def requests(self, split: str) -> list[tuple[str, espeak.Request]]:
        """Return id and request of each utterance of a split."""
        ids = [f"digits-{split}-{n:06d}" for n in range(self.n_utterances[split])]
        if not ids:
            return []
        draws = Draws(self.seed, 0, [hash64(id) for id in ids])
        length_B = between(draws, "length", self.length)
        words_BL = np.stack([draws.below(f"word{k}", len(self.words)) for k in range(self.length[1])], axis=1)
        accent_B = draws.below("accent", len(self.accents))
        variant_B = draws.below("variant", len(self.variants[split]))
        rate_B, pitch_B = between(draws, "rate", self.rate_wpm), between(draws, "pitch", self.pitch)
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
        """Yield the strings; they are spoken when they are read."""
        for split in SPLITS:
            for id, request in self.requests(split):
                yield Utterance(id, split, request.text, request.voice, "en", partial(speak, request))


def speak(request: espeak.Request) -> tuple[np.ndarray, int]:
    """Return the waveform of a request, float32 ``(T,)``, and its rate."""
    return audio.from_pcm16(espeak.speak(request)), espeak.RATE_HZ
