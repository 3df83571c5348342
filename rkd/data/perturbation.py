"""Further training utterances made of those that a corpus has: at other speeds, tempos and pitches.

They are stored beside the others when a corpus is prepared, since they change what is said or how: teacher and student
hear the same ones, with whatever noise. (Ko et al. 2015, "Audio augmentation for speech recognition".)

Shapes: T samples, K frequencies, F frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from rkd import audio
from rkd.data.sources.base import Read, Rejected, Utterance

_N_FFT, _HOP = 512, 128  # as in `torchaudio.functional.pitch_shift`


class Perturbation(Protocol):
    """A change of a waveform; what was made by it has the name in its id, after ``#``."""

    @property
    def name(self) -> str: ...

    def __call__(self, x_T: np.ndarray, rate_hz: int) -> tuple[np.ndarray, int]:
        """Return the changed waveform and the rate at which it is to be heard, in Hz."""
        ...


@dataclass(frozen=True)
class Speed:
    """Another speed: tempo and pitch change together, as with sox's ``speed``.

    Attributes:
        factor: 1.1 is a tenth faster, and 1.65 semitones higher.
    """

    factor: float

    @property
    def name(self) -> str:
        return f"sp{self.factor:g}"

    def __call__(self, x_T: np.ndarray, rate_hz: int) -> tuple[np.ndarray, int]:
        return x_T, round(rate_hz * self.factor)


@dataclass(frozen=True)
class Tempo:
    """Another tempo at the same pitch, as with sox's ``tempo``, by a phase vocoder.

    Attributes:
        factor: 1.1 is a tenth faster.
    """

    factor: float

    @property
    def name(self) -> str:
        return f"te{self.factor:g}"

    def __call__(self, x_T: np.ndarray, rate_hz: int) -> tuple[np.ndarray, int]:
        return stretched(audio.resample(x_T, rate_hz), 1 / self.factor), audio.RATE_HZ


@dataclass(frozen=True)
class PitchShift:
    """Another pitch at the same duration: stretched by a phase vocoder, and sped up again.

    The formants move with the pitch, and speech becomes 1 to 4 dB softer: the vocoder blurs its pulses.

    Attributes:
        semitones: above (or, below 0, under) the pitch as it is.
    """

    semitones: float

    @property
    def name(self) -> str:
        return f"pi{self.semitones:g}"

    def __call__(self, x_T: np.ndarray, rate_hz: int) -> tuple[np.ndarray, int]:
        # `torchaudio.functional.pitch_shift` would resample by these odd ratios with a filter of a gigabyte.
        heard_at_hz = round(audio.RATE_HZ * 2 ** (self.semitones / 12))
        return stretched(audio.resample(x_T, rate_hz), heard_at_hz / audio.RATE_HZ), heard_at_hz


def stretched(x_T: np.ndarray, ratio: float) -> np.ndarray:
    """Return a 16 kHz waveform, made so many times as long by a phase vocoder (Flanagan & Golden 1966)."""
    import torch
    from torchaudio.functional import phase_vocoder

    hann = torch.hann_window(_N_FFT)
    # With silence after it, so that the last samples have all of their windows.
    padded_T = torch.from_numpy(np.pad(x_T, (0, _N_FFT)))
    spectrum_KF = torch.stft(padded_T, _N_FFT, _HOP, window=hann, pad_mode="constant", return_complex=True)
    advance_K1 = torch.linspace(0, math.pi * _HOP, len(spectrum_KF))[:, None]
    stretched_KF = phase_vocoder(spectrum_KF, 1 / ratio, advance_K1)
    return torch.istft(stretched_KF, _N_FFT, _HOP, window=hann, length=int(len(x_T) * ratio)).numpy()


def perturbations(
    speed: Sequence[float] = (), tempo: Sequence[float] = (), pitch_shift: Sequence[float] = ()
) -> list[Perturbation]:
    """Return the changes to factors of the speed and of the tempo, and by semitones of the pitch."""
    return [*map(Speed, speed), *map(Tempo, tempo), *map(PitchShift, pitch_shift)]


def perturbed(found: Iterable[Utterance | Rejected], changes: Sequence[Perturbation]) -> Iterator[Utterance | Rejected]:
    """Yield what a source lists, and after each training utterance, as ``id#name``, what the changes make of it."""
    for one in found:
        yield one
        if isinstance(one, Utterance) and one.split == "train":
            for change in changes:
                yield replace(one, id=f"{one.id}#{change.name}", read=partial(_read, one.read, change))


def _read(read: Read, change: Perturbation) -> tuple[np.ndarray, int]:
    return change(*read())
