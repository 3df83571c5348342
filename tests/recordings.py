"""Tones as recordings, and sources of given utterances."""

from functools import partial

import numpy as np
import soundfile

from rkd.data.sources import Utterance
from rkd.data.store import SPLITS


def tone(seconds=0.5, rate_hz=16000, hz=440.0, gain=0.1):
    return (gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def save(path, text=None, **kwargs):
    """Write a recording of a tone, and its text beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(**kwargs), kwargs.get("rate_hz", 16000))
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


class Listed:
    """A source of given utterances."""

    def __init__(self, *found):
        self.found = found

    def inputs(self):
        return iter(())

    def utterances(self):
        yield from self.found


def heard(waveform, rate_hz):
    return waveform, rate_hz


def spoken(id, split="train", text="one", waveform=None, speaker=None, rate_hz=16000):
    return Utterance(id, split, text, speaker, "en", partial(heard, tone() if waveform is None else waveform, rate_hz))


def one_each(text="one"):
    return [spoken(f"base-{split}", split, text) for split in SPLITS]
