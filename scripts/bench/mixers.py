"""Ways to mix noise and rooms into speech, for `mix.py`: rkd's batches, loops over utterances, and libraries.

Shapes: N batches, B clips, T samples, L samples of a room response, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from scipy.fft import next_fast_len
from scipy.signal import fftconvolve
from torch import Tensor

from rkd.audio import RATE_HZ, resample, to_pcm16
from rkd.data.banks import align_room
from rkd.draws import Draws
from rkd.noise import Corruption, Recorded, Resources

Range = tuple[float, float]
# Makes mixtures on the device of clean clips in main memory; libraries draw for themselves.
Mix = Callable[[Tensor, Draws], Tensor]


@dataclass
class Sounds:
    """What is mixed. Noise and rooms are mono WAV files of one rate each, and what is read from them."""

    speech_NBT: np.ndarray
    noise_files: list[Path]
    room_files: list[Path]
    device: torch.device

    def __post_init__(self) -> None:
        self.noise = [read(path) for path in self.noise_files]
        self.rooms = [align_room(read(path)) for path in self.room_files]

    def choose(self, draws: Draws, snr_db: Range) -> tuple[np.ndarray, ...]:
        """Return each clip's noise, position in it, room and SNR in dB, by the draws that `rkd.noise` makes."""
        return (
            draws.below("recorded.clip", len(self.noise)),
            draws.uniform("recorded.position"),
            draws.below("room", len(self.rooms)),
            snr_db[0] + (snr_db[1] - snr_db[0]) * draws.uniform("snr"),
        )


def read(path: Path) -> np.ndarray:
    x_TC, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(x_TC[:, 0], rate_hz)


def cut(x_T: Any, position: float, n: int) -> Any:
    """Return n samples of an array or tensor, from a position in [0, 1)."""
    offset = int(position * (len(x_T) - n + 1))
    return x_T[offset : offset + n]


def rkd_batches(sounds: Sounds, in_room: bool, snr_db: Range) -> Mix:
    clips = [(path.name, to_pcm16(x_T)) for path, x_T in zip(sounds.noise_files, sounds.noise, strict=True)]
    noise = Recorded()
    noise.load(Resources("train", lambda: clips, lambda seconds: {}, sounds.device))
    operations = {"both" if in_room else "noise": 1.0}
    rooms = [torch.from_numpy(h_L).to(sounds.device) for h_L in sounds.rooms]
    corrupt = Corruption({"noise": noise}, {"noise": 1.0}, operations, (), snr_db, "rms", rooms=rooms)

    def mix(clean_BT: Tensor, draws: Draws) -> Tensor:
        n = len(clean_BT)
        lengths_B = torch.full((n,), clean_BT.shape[1], device=sounds.device)
        return corrupt(clean_BT.to(sounds.device), lengths_B, np.zeros(n), [None] * n, draws).waveform_BT

    return mix


def loop_from_disk(sounds: Sounds, in_room: bool, snr_db: Range) -> Mix:
    """As RobustDistiller works: files are opened, resampled and convolved for each utterance, on the CPU."""

    def mix(clean_BT: Tensor, draws: Draws) -> Tensor:
        rows = []
        for x_T, noise, position, room, snr in zip(clean_BT.numpy(), *sounds.choose(draws, snr_db), strict=True):
            if in_room:
                h_L = read(sounds.room_files[room])
                h_L = h_L[np.abs(h_L).argmax() :]
                x_T = fftconvolve(x_T, h_L / h_L[0])[: len(x_T)]
            noise_T = cut(read(sounds.noise_files[noise]), position, len(x_T))
            scale = np.linalg.norm(x_T) / np.linalg.norm(noise_T) * 10 ** (-snr / 20)
            mixed_T = x_T + noise_T * np.float32(scale)
            rows.append(mixed_T / max(1.0, float(np.abs(mixed_T).max())))
        return torch.from_numpy(np.stack(rows)).to(sounds.device)

    return mix


def loop_in_memory(sounds: Sounds, in_room: bool, snr_db: Range) -> Mix:
    """The same with noise and rooms on the device, in torch."""
    clips = [torch.from_numpy(x_T).to(sounds.device) for x_T in sounds.noise]
    rooms = [torch.from_numpy(h_L).to(sounds.device) for h_L in sounds.rooms]

    def mix(clean_BT: Tensor, draws: Draws) -> Tensor:
        rows = []
        clean_BT = clean_BT.to(sounds.device)
        for x_T, noise, position, room, snr in zip(clean_BT, *sounds.choose(draws, snr_db), strict=True):
            if in_room:
                h_L = rooms[room]
                n = next_fast_len(len(x_T) + len(h_L) - 1, real=True)
                x_T = torch.fft.irfft(torch.fft.rfft(x_T, n) * torch.fft.rfft(h_L, n), n)[: len(x_T)]
            noise_T = cut(clips[noise], position, len(x_T))
            mixed_T = x_T + noise_T * (x_T.norm() / noise_T.norm() * 10 ** (-snr / 20))
            rows.append(mixed_T / mixed_T.abs().max().clamp(min=1.0))
        return torch.stack(rows)

    return mix


def torch_audiomentations(sounds: Sounds, in_room: bool, snr_db: Range) -> Mix:
    from torch_audiomentations import AddBackgroundNoise, ApplyImpulseResponse, Compose

    options: dict[str, Any] = {"p": 1.0, "sample_rate": RATE_HZ, "output_type": "tensor"}
    noise = AddBackgroundNoise(sounds.noise_files, *snr_db, **options)
    room = ApplyImpulseResponse(sounds.room_files, compensate_for_propagation_delay=True, **options)
    # Its reader takes clips in the place of paths, though the constructors do not.
    noise.background_paths, room.ir_paths = (
        [{"samples": torch.from_numpy(x_T)[None], "sample_rate": RATE_HZ} for x_T in clips]
        for clips in (sounds.noise, sounds.rooms)
    )
    augment = Compose([room, noise] if in_room else [noise], output_type="tensor")
    return lambda clean_BT, draws: augment(clean_BT.to(sounds.device)[:, None], sample_rate=RATE_HZ)[:, 0]


def audiomentations(sounds: Sounds, in_room: bool, snr_db: Range) -> Mix:
    from audiomentations import AddBackgroundNoise, ApplyImpulseResponse, Compose

    warnings.filterwarnings("ignore", module="audiomentations")  # of every file that it resamples
    noise = AddBackgroundNoise(sounds.noise_files, *snr_db, p=1.0)
    room = ApplyImpulseResponse(sounds.room_files, p=1.0)
    augment = Compose([room, noise] if in_room else [noise])

    def mix(clean_BT: Tensor, draws: Draws) -> Tensor:
        rows = [augment(samples=x_T, sample_rate=RATE_HZ) for x_T in clean_BT.numpy()]
        return torch.from_numpy(np.stack(rows)).to(sounds.device)

    return mix


def speechbrain(sounds: Sounds, in_room: bool, snr_db: Range) -> Mix:
    from speechbrain.augment.preparation import write_csv
    from speechbrain.augment.time_domain import AddNoise, AddReverb

    def table(files: list[Path]) -> tuple[str, int]:
        out = str(files[0].with_suffix(".csv"))
        write_csv([str(path) for path in files], out)
        return out, soundfile.info(files[0]).samplerate

    (noise_csv, noise_hz), (rooms_csv, rooms_hz) = table(sounds.noise_files), table(sounds.room_files)
    low, high = snr_db
    noise = AddNoise(noise_csv, snr_low=low, snr_high=high, pad_noise=True, normalize=True, noise_sample_rate=noise_hz)
    room = AddReverb(rooms_csv, reverb_sample_rate=rooms_hz)

    def mix(clean_BT: Tensor, draws: Draws) -> Tensor:
        speech_BT = clean_BT.to(sounds.device)
        return noise(room(speech_BT) if in_room else speech_BT, torch.ones(len(clean_BT), device=sounds.device))

    return mix


# Makes a mix of sounds, with a room or without, at SNRs of a range.
Way = Callable[[Sounds, bool, Range], Mix]

WAYS: dict[str, Way] = {
    "rkd": rkd_batches,
    "loop, files from disk (SciPy)": loop_from_disk,
    "loop, clips in memory (torch)": loop_in_memory,
    "torch-audiomentations": torch_audiomentations,
    "audiomentations": audiomentations,
    "SpeechBrain": speechbrain,
}
