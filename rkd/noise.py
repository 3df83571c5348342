"""Noise and rooms: what can be mixed into speech, and how it is combined, batched on the device.

A noise type is a class with ``load`` and ``sample``; a YAML file under ``conf/noise`` names it. To add one, write the
class and the YAML: nothing else changes.

Shapes: B batch, T samples, L samples of a room response.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rkd.audio import RATE_HZ
from rkd.draws import Draws, hash64
from rkd.errors import ConfigError, DataError
from rkd.masks import valid_mask

OPERATIONS = ("none", "noise", "reverb", "both")
_WITH_NOISE = np.array([1, 1, 3, 3])  # each operation's number to that of the one with noise
# Generated noise repeats after this long; a clip starts at a random point of it.
COLOURED_SECONDS = 60
# A speaker's share of the babble bank.
BABBLE_SECONDS = 20
# What follows the direct path so soon belongs to the speech as one hears it (C50 of ISO 3382-1); later it blurs.
EARLY_SECONDS = 0.05


@dataclass
class Resources:
    """What a noise type may draw on: all of one split, so that no split hears another's noise.

    Attributes:
        split: ``train``, ``validation`` or ``test``.
        clips: returns the recordings of the type's ``folder`` that belong here, as ``[(name, pcm int16)]``.
        speech: ``speech(seconds)`` returns up to so many seconds of each speaker, as ``{speaker: pcm int16}``, of no
            more speakers than memory has room for.
        device: where samples are mixed.
    """

    split: str
    clips: Callable[[], list[tuple[str, np.ndarray]]]
    speech: Callable[[float], dict[str, np.ndarray]]
    device: torch.device


class NoiseType(Protocol):
    """A kind of noise."""

    def load(self, resources: Resources) -> None:
        """Bring what the type needs to the device."""

    def sample(self, draws: Draws, lengths_B: Sequence[int], speakers: Sequence[str | None], n: int) -> Tensor:
        """Return noise ``(B, n)``, at any level, for clips of ``lengths_B`` samples."""


class Effect(Protocol):
    """What a recording goes through after noise and rooms; see `rkd.effects`."""

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        """Return the clips changed: in time with what they were, and zero beyond ``lengths_B``."""


class Bank:
    """Recordings laid end to end on the device, read from any offset, repeated where they are too short."""

    def __init__(self, clips: Sequence[np.ndarray], device: torch.device):
        self.lengths = np.array([len(clip) for clip in clips])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.flat = torch.from_numpy(np.concatenate(clips)).to(device)

    def read(self, clip_B: np.ndarray, position_B: np.ndarray, lengths_B: Sequence[int], n: int) -> Tensor:
        """Return ``lengths_B`` samples of the chosen clips, zero-padded to ``(B, n)``.

        ``position_B`` in [0, 1) chooses among the offsets at which the clip lasts long enough, or among all of them
        where it never does and has to be repeated.
        """
        noise_BT = torch.empty(len(clip_B), n, device=self.flat.device)
        for row_T, clip, position, length in zip(noise_BT, clip_B, position_B, lengths_B, strict=True):
            start, size = self.starts[clip], self.lengths[clip]
            recording = self.flat[start : start + size]
            offset = int(position * (size - length + 1 if size >= length else size))
            if size < length:
                recording, offset = recording.roll(-offset).repeat(-(-length // int(size))), 0
            row_T[:length] = recording[offset : offset + length]
            row_T[length:] = 0.0
        return noise_BT


class Coloured:
    """Gaussian noise with a power spectrum that falls by so many dB an octave: 0 white, -3 pink, -6 brown.

    Args:
        db_per_octave: the slope; flat below 20 Hz, so that brown noise keeps its power in hearing range.
    """

    def __init__(self, db_per_octave: float):
        self.db_per_octave = db_per_octave

    def load(self, resources: Resources) -> None:
        n = COLOURED_SECONDS * RATE_HZ
        rng = np.random.default_rng(hash64(f"{resources.split}/{self.db_per_octave}"))
        spectrum = np.fft.rfft(rng.standard_normal(n))
        octaves = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / RATE_HZ), 20.0) / 20.0)
        noise = np.fft.irfft(spectrum * 10 ** (self.db_per_octave * octaves / 20), n)
        self.bank = Bank([(noise / noise.std()).astype(np.float32)], resources.device)

    def sample(self, draws: Draws, lengths_B: Sequence[int], speakers: Sequence[str | None], n: int) -> Tensor:
        return self.bank.read(np.zeros(len(draws), int), draws.uniform("coloured.position"), lengths_B, n)


class Recorded:
    """Recorded noise: the clips of the ``folder`` that stands beside the class in its YAML."""

    def load(self, resources: Resources) -> None:
        clips = resources.clips()
        if not clips:
            raise DataError(
                f"there are no noise recordings for the {resources.split} split; add some, or set noise.split=file"
            )
        self.names = [name for name, _ in clips]
        self.bank = Bank([pcm for _, pcm in clips], resources.device)

    def sample(self, draws: Draws, lengths_B: Sequence[int], speakers: Sequence[str | None], n: int) -> Tensor:
        clip_B = draws.below("recorded.clip", len(self.names))
        return self.bank.read(clip_B, draws.uniform("recorded.position"), lengths_B, n)


class Babble:
    """Several other speakers of the same split talking at once, at equal levels, never the speaker himself.

    Args:
        voices: fewest and most speakers; fewer where the split has no more.
    """

    def __init__(self, voices: Sequence[int] = (3, 8)):
        self.voices = voices

    def load(self, resources: Resources) -> None:
        speech = resources.speech(BABBLE_SECONDS)
        if len(speech) < 2:
            raise DataError(
                f"babble needs at least two labelled speakers in the {resources.split} split, which has {len(speech)}; "
                "choose another noise, e.g. noise=white"
            )
        self.speakers = sorted(speech)
        tracks = [speech[name].astype(np.float32) for name in self.speakers]
        self.bank = Bank([track / np.sqrt(np.mean(track**2)) for track in tracks], resources.device)

    def sample(self, draws: Draws, lengths_B: Sequence[int], speakers: Sequence[str | None], n: int) -> Tensor:
        low, high = self.voices
        wanted_B = low + draws.below("babble.voices", high - low + 1)
        # The others in an order of each clip's own: the first ones talk.
        ranks = np.stack([draws.uniform(f"babble.rank/{name}") for name in self.speakers], axis=1)
        for row, speaker in enumerate(speakers):
            ranks[row, [i for i, name in enumerate(self.speakers) if name == speaker]] = np.inf
        order = ranks.argsort(axis=1)
        noise_BT = torch.zeros(len(draws), n, device=self.bank.flat.device)
        for voice in range(min(high, len(self.speakers) - 1)):
            track_BT = self.bank.read(order[:, voice], draws.uniform(f"babble.position/{voice}"), lengths_B, n)
            others_B = np.isfinite(ranks).sum(axis=1)
            talks_B = torch.from_numpy((voice < wanted_B) & (voice < others_B)).to(track_BT.device)
            noise_BT += track_BT * talks_B[:, None]
        return noise_BT


@dataclass
class Corrupted:
    """A corrupted batch and what was done to it."""

    waveform_BT: Tensor
    target_BT: Tensor | None  # what a denoiser should make of it, where it is asked for
    operation: list[str]
    noise: list[str | None]
    snr_db: np.ndarray  # NaN where there is no noise
    gain_B: Tensor  # below 1 where the mixture had to be turned down to fit full scale
    effects: list[list[str]]  # names of what each clip went through then


class Corruption:
    """Mixes noise and rooms into batches of clean speech.

    Args:
        types: noise types by name, loaded.
        weights: how often each type is drawn, by name.
        operations: probability of ``none``, ``noise``, ``reverb`` and ``both``.
        snr_db: signal-to-noise ratios to draw from, in dB ...
        snr_range_db: ... or the ends of a uniform range.
        snr_level: ``active``: speech level over active frames (ITU-T P.56), measured when the speech was prepared;
            ``rms``: over all of the clip.
        order: ``reverb_then_noise``: the SNR holds at the microphone, against the reverberant speech;
            ``noise_then_reverb``: it holds before the room, which both then share.
        rooms: responses that begin at the direct path, whose height is 1, on the device where samples are mixed.
        target: of a denoiser in a room: ``early``, the speech by the direct path and the reflections of the first 50 ms
            after it, or ``dry``, the speech as it was recorded. Both are in time with the mixture, since rooms begin
            at the direct path. None: nobody asks for one.
        effects: by name, each with its probability for a clip; they follow noise and room, in this order, and leave the
            target of a denoiser as it is.
    """

    def __init__(
        self,
        types: Mapping[str, NoiseType],
        weights: Mapping[str, float],
        operations: Mapping[str, float],
        snr_db: Sequence[float],
        snr_range_db: Sequence[float] | None = None,
        snr_level: str = "active",
        order: str = "reverb_then_noise",
        rooms: Sequence[Tensor] = (),
        target: str | None = None,
        effects: Mapping[str, tuple[Effect, float]] | None = None,
    ):
        self.types = dict(types)
        self.weights = [weights[name] for name in self.types]
        self.operations = [operations.get(name, 0.0) for name in OPERATIONS]
        self.snr_db = np.asarray(snr_db, dtype=np.float64)
        self.snr_range_db = snr_range_db
        self.snr_level = snr_level
        self.order = order
        self.rooms = rooms
        self.target = target
        self.effects = effects or {}
        if (self.operations[1] or self.operations[3]) and not self.types:
            raise ConfigError("noise.operations asks for noise, but noise.types is empty; choose e.g. noise=white")
        if (self.operations[2] or self.operations[3]) and not self.rooms:
            raise ConfigError("noise.operations asks for rooms, but there are none; set noise.rooms=/folder")

    def at(self, snr_db: Sequence[float] | None, snr_range_db: Sequence[float] | None) -> Corruption:
        """Return the same corruption at other signal-to-noise ratios; itself where both are None."""
        if snr_db is None and snr_range_db is None:
            return self
        other = copy.copy(self)
        other.snr_db, other.snr_range_db = np.asarray(snr_db or (), dtype=np.float64), snr_range_db
        return other

    def __call__(
        self,
        clean_BT: Tensor,
        lengths_B: Tensor,
        levels_db: np.ndarray,
        speakers: Sequence[str | None],
        draws: Draws,
        spoken_B: Tensor | None = None,
    ) -> Corrupted:
        """Corrupt a batch.

        Args:
            clean_BT: speech in [-1, 1], zero beyond ``lengths_B``.
            lengths_B: samples of speech.
            levels_db: active speech levels, dB re full scale.
            speakers: who speaks, so that babble can leave him out.
            draws: the samples' random numbers.
            spoken_B: False where the noise is to be heard without the speech, as loud as it would be with it: such a
                sample always gets noise. None: all speak.
        """
        lengths = lengths_B.tolist()
        operation_B = draws.choice("operation", self.operations)
        if spoken_B is not None:
            operation_B = np.where(spoken_B.cpu().numpy(), operation_B, _WITH_NOISE[operation_B])
        noisy = (operation_B == 1) | (operation_B == 3)
        in_room = (operation_B == 2) | (operation_B == 3)
        type_B = draws.choice("type", self.weights) if self.types else np.zeros(len(draws), int)
        snr_B = np.where(noisy, self._draw_snr(draws), np.nan) if self.types else np.full(len(draws), np.nan)

        noise_BT = torch.zeros_like(clean_BT)
        for i, noise_type in enumerate(self.types.values()):
            rows = np.flatnonzero(noisy & (type_B == i))
            if len(rows):
                some_BT = noise_type.sample(
                    draws.rows(rows),
                    [lengths[r] for r in rows.tolist()],
                    [speakers[r] for r in rows.tolist()],
                    clean_BT.shape[1],
                )
                noise_BT = with_rows(noise_BT, rows, some_BT.to(clean_BT.dtype))

        speech_BT = clean_BT
        rooms_B = draws.below("room", max(len(self.rooms), 1))
        if self.order == "reverb_then_noise":
            speech_BT = self._reverberate(speech_BT, lengths_B, in_room, rooms_B)
        scale_B = self._noise_scale(speech_BT, clean_BT, noise_BT, lengths_B, levels_db, snr_B)
        if spoken_B is not None:
            speech_BT = speech_BT * spoken_B[:, None]
        mixed_BT = torch.addcmul(speech_BT, noise_BT, scale_B[:, None])
        if self.order == "noise_then_reverb":
            mixed_BT = self._reverberate(mixed_BT, lengths_B, in_room, rooms_B)
        # Full scale is a property of the recorder, not of the mixture: speech and noise are turned down together.
        gain_B = to_full_scale(mixed_BT)
        heard_BT, went_through = self._apply_effects(mixed_BT * gain_B[:, None], lengths_B, draws)
        if self.effects:
            after_B = to_full_scale(heard_BT)
            heard_BT, gain_B = heard_BT * after_B[:, None], gain_B * after_B
        names = list(self.types)
        return Corrupted(
            heard_BT,
            self._target(clean_BT, lengths_B, in_room, rooms_B, spoken_B, gain_B),
            [OPERATIONS[i] for i in operation_B],
            [names[t] if is_noisy else None for t, is_noisy in zip(type_B, noisy, strict=True)],
            snr_B,
            gain_B,
            went_through,
        )

    def _target(
        self,
        clean_BT: Tensor,
        lengths_B: Tensor,
        in_room: np.ndarray,
        rooms_B: np.ndarray,
        spoken_B: Tensor | None,
        gain_B: Tensor,
    ) -> Tensor | None:
        if self.target is None:
            return None
        target_BT = clean_BT
        if self.target == "early":
            target_BT = self._reverberate(clean_BT, lengths_B, in_room, rooms_B, int(EARLY_SECONDS * RATE_HZ))
        return target_BT * (gain_B if spoken_B is None else gain_B * spoken_B)[:, None]

    def _apply_effects(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> tuple[Tensor, list[list[str]]]:
        """Return the clips after the effects that are drawn for each, and the names of these."""
        went_through: list[list[str]] = [[] for _ in range(len(draws))]
        for name, (effect, probability) in self.effects.items():
            own = draws.within(f"effect/{name}")
            rows = np.flatnonzero(own.uniform("probability") < probability)
            if len(rows):
                x_BT = with_rows(x_BT, rows, effect(x_BT[rows], lengths_B[rows], own.rows(rows)))
            for row in rows:
                went_through[row].append(name)
        return x_BT, went_through

    def _draw_snr(self, draws: Draws) -> np.ndarray:
        if self.snr_range_db is not None:
            low, high = self.snr_range_db
            return low + (high - low) * draws.uniform("snr")
        return self.snr_db[draws.below("snr", len(self.snr_db))]

    def _noise_scale(
        self,
        speech_BT: Tensor,
        clean_BT: Tensor,
        noise_BT: Tensor,
        lengths_B: Tensor,
        levels_db: np.ndarray,
        snr_B: np.ndarray,
    ) -> Tensor:
        """Return the factor that brings each clip's noise to its SNR; 0 where there is none."""
        speech_rms_B = rms(speech_BT, lengths_B)
        if self.snr_level == "active":
            # The room changes how strong the speech is, not which frames of it are active.
            level_B = torch.from_numpy(10 ** (levels_db / 20)).to(speech_rms_B)
            speech_rms_B = level_B * speech_rms_B / rms(clean_BT, lengths_B).clamp(min=1e-12)
        noise_rms_B = rms(noise_BT, lengths_B)
        ratio_B = torch.from_numpy(np.nan_to_num(10 ** (-snr_B / 20))).to(speech_rms_B)
        scale_B = torch.where(noise_rms_B > 0, speech_rms_B * ratio_B / noise_rms_B.clamp(min=1e-12), 0.0)
        return scale_B.to(noise_BT.dtype)

    def _reverberate(
        self, x_BT: Tensor, lengths_B: Tensor, in_room: np.ndarray, rooms_B: np.ndarray, samples: int | None = None
    ) -> Tensor:
        """Convolve the marked rows with their rooms, or so many first samples of them; what rings on after a clip's end
        is cut."""
        rows = np.flatnonzero(in_room)
        if not len(rows):
            return x_BT
        distinct, room_B = np.unique(rooms_B[rows], return_inverse=True)
        response_RL = torch.nn.utils.rnn.pad_sequence([self.rooms[room][:samples] for room in distinct], True)
        wet_BT = convolve(x_BT[rows], response_RL.to(x_BT.dtype), torch.from_numpy(room_B).to(x_BT.device))
        wet_BT *= valid_mask(lengths_B[rows], x_BT.shape[1])
        return with_rows(x_BT, rows, wet_BT)


def with_rows(x_BT: Tensor, rows: np.ndarray, some_BT: Tensor) -> Tensor:
    """Return clips of which these rows, in ascending order, are others."""
    if len(rows) == len(x_BT):
        return some_BT
    x_BT = x_BT.clone()
    x_BT[rows] = some_BT
    return x_BT


def to_full_scale(x_BT: Tensor) -> Tensor:
    """Return the gains, at most 1, that bring each clip into full scale; shape ``(B,)``."""
    return 1.0 / torch.linalg.vector_norm(x_BT, torch.inf, dim=1).clamp(min=1.0)


def rms(x_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the root mean square over each clip's valid samples; what lies beyond must be zero. Shape ``(B,)``."""
    return torch.linalg.vector_norm(x_BT, dim=1) / lengths_B.sqrt()


def convolve(x_BT: Tensor, response_RL: Tensor, which_B: Tensor | None = None) -> Tensor:
    """Return the first T samples of each row's convolution with its response, or with that of number ``which_B``."""
    n = fast_length(x_BT.shape[1] + response_RL.shape[1] - 1)
    response_RK = torch.fft.rfft(response_RL, n)
    spectrum_BK = torch.fft.rfft(x_BT, n)
    spectrum_BK *= response_RK if which_B is None else response_RK[which_B]
    return torch.fft.irfft(spectrum_BK, n)[:, : x_BT.shape[1]]


def fast_length(n: int) -> int:
    """Return a number not much above ``n`` that is 256 times a 5-smooth one: FFTs of such lengths are fast."""
    from scipy.fft import next_fast_len

    return 256 * next_fast_len(-(-n // 256), real=True)
