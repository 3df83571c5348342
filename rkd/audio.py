"""Audio files, sampling rates and levels: everything about one waveform that needs no model.

Shapes: T samples, C channels.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from rkd.errors import DataError

RATE_HZ = 16000
"""The sampling rate of everything that rkd stores, mixes and trains on."""

_MIN_RATE_HZ, _MAX_RATE_HZ = 1000, 768_000
_BLOCK_SAMPLES = 1 << 20
# libsndfile corrects a size that goes beyond the end of the file without an error; only its log says so.
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


def decode(path: str | Path | BinaryIO, channel: int | None = None) -> tuple[np.ndarray, int]:
    """Read an audio file of any format that libsndfile knows: its channels averaged, or one of them.

    The file is read in blocks until it ends, so memory follows what is there and not what the header claims.

    Returns:
        The waveform, float32 ``(T,)`` with full scale 1.0, and its sampling rate in Hz.

    Raises:
        DataError: the file is missing, undecodable, empty, shorter than its header says, or not finite.
    """
    if isinstance(path, str | Path) and not os.path.exists(path):
        raise DataError(f"{path}: no such audio file")
    blocks = []
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz, n_frames = file.samplerate, file.frames
            cut = _CUT_SHORT.search(file.extra_info)
            block_frames = max(1, _BLOCK_SAMPLES // file.channels)
            while len(block_TC := file.read(block_frames, dtype="float32", always_2d=True)):
                blocks.append(block_TC.mean(axis=1) if channel is None else block_TC[:, channel])
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # LibsndfileError is a RuntimeError
        reason = getattr(error, "error_string", None) or str(error)
        raise DataError(f"{path}: cannot be decoded as audio ({reason.strip()})") from error
    if cut:
        raise DataError(f"{path}: truncated: the header announces {cut[1]} bytes of audio, the file holds {cut[2]}")
    n_read = sum(map(len, blocks))
    if n_read != n_frames:
        raise DataError(f"{path}: truncated: the header announces {n_frames} frames, {n_read} could be read")
    if n_read == 0:
        raise DataError(f"{path}: holds no audio")
    if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
        raise DataError(f"{path}: claims a sampling rate of {rate_hz} Hz, which no recording has")
    x_T = np.concatenate(blocks)
    if not np.isfinite(x_T).all():
        raise DataError(f"{path}: holds samples that are not finite")
    return x_T, rate_hz


def resample(x_T: np.ndarray, rate_hz: int) -> np.ndarray:
    """Bring a waveform to 16 kHz; float32 ``(T,)`` in, float32 ``(ceil(T * 16000 / rate_hz),)`` out.

    Polyphase filtering with SciPy's default Kaiser window. It passes the same band as ``torchaudio``'s default kernel
    and stops more beyond it, needs no torch, and its memory stays small for rates like 44,101 Hz.
    """
    if rate_hz == RATE_HZ:
        return x_T.astype(np.float32, copy=False)
    from scipy.signal import resample_poly  # takes half a second to import

    divisor = math.gcd(rate_hz, RATE_HZ)
    return resample_poly(x_T.astype(np.float32, copy=False), RATE_HZ // divisor, rate_hz // divisor)


def to_pcm16(x_T: np.ndarray) -> np.ndarray:
    """Round a waveform with full scale 1.0 to 16-bit integers; what is beyond full scale is clipped."""
    return np.clip(np.rint(np.asarray(x_T, dtype=np.float64) * 32768), -32768, 32767).astype(np.int16)


def from_pcm16(pcm_T: np.ndarray) -> np.ndarray:
    """Return 16-bit samples as float32 with full scale 1.0, exactly."""
    return pcm_T.astype(np.float32) / np.float32(32768)


def rms_db(x_T: np.ndarray) -> float:
    """Return the root mean square over all samples in dB re full scale (1.0); ``-inf`` for silence."""
    power = float(np.mean(np.square(x_T, dtype=np.float64))) if len(x_T) else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf


def active_level_db(x_T: np.ndarray, rate_hz: int = RATE_HZ) -> float:
    """Return the active speech level in dB re full scale (1.0): the power over the parts in which somebody speaks.

    ITU-T Rec. P.56 (12/2011), method B: a two-stage exponential envelope (0.03 s) is compared with thresholds 6.02 dB
    apart, activity is held for 0.2 s, and the level is the one that lies 15.9 dB above its own threshold, interpolated
    in dB between thresholds. The thresholds start below the waveform's peak instead of below full scale, so that the
    result follows the gain exactly and quiet recordings are measured as well as loud ones.

    Args:
        x_T: waveform ``(T,)`` with full scale 1.0.
        rate_hz: its sampling rate.

    Returns:
        The level; ``-inf`` for silence and for no samples at all.
    """
    from scipy.signal import lfilter

    smoothing_seconds, hangover_seconds, margin_db, n_thresholds = 0.03, 0.2, 15.9, 15
    x_T = np.asarray(x_T, dtype=np.float64)
    peak = float(np.abs(x_T).max(initial=0.0))
    if peak == 0:
        return -math.inf
    x_T = x_T / peak
    energy = float(np.dot(x_T, x_T))
    g = math.exp(-1 / (rate_hz * smoothing_seconds))
    stage = ([1 - g], [1, -g])
    envelope_T = lfilter(*stage, lfilter(*stage, np.abs(x_T)))
    hangover = math.ceil(rate_hz * hangover_seconds)

    level = above_level = above_db = math.nan  # of the threshold before
    for j in range(n_thresholds):
        threshold = 2.0 ** (j - n_thresholds)
        active = np.flatnonzero(envelope_T >= threshold)
        if len(active) == 0:
            break  # the last level that was measured stands
        # A sample over the threshold counts, and so do up to `hangover` samples that follow it.
        n_active = np.minimum(np.diff(active, append=len(x_T)), hangover + 1).sum()
        level = 10 * math.log10(energy / n_active)
        over_db = level - 20 * math.log10(threshold) - margin_db
        if over_db <= 0:
            if j > 0:
                level = above_level + (level - above_level) * above_db / (above_db - over_db)
            break
        above_level, above_db = level, over_db
    if math.isnan(level):  # a click too short to lift the envelope to the lowest threshold
        return rms_db(x_T) + 20 * math.log10(peak)
    return level + 20 * math.log10(peak)
