"""Decoding refuses what is not what it claims to be; levels follow their published definition."""

import itertools
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd import audio
from rkd.errors import DataError


def speech_like(seconds=2.0, rate_hz=16000, seed=0):
    """Noise in bursts with pauses between them."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    bursts = (np.sin(2 * np.pi * 1.3 * t) > -0.2) * (0.2 + np.abs(np.sin(2 * np.pi * 4 * t)))
    return (0.1 * bursts * rng.standard_normal(len(t))).astype(np.float32)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_decode_reads_formats_and_averages_channels(tmp_path, extension):
    left = 0.5 * np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)
    path = tmp_path / f"x.{extension}"
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 22050)
    x, rate_hz = audio.decode(path)
    assert rate_hz == 22050 and x.dtype == np.float32 and x.shape == left.shape
    assert np.sqrt(np.mean((x - left / 2) ** 2)) < 0.02
    assert np.sqrt(np.mean((audio.decode(path, channel=0)[0] - left) ** 2)) < 0.04


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
def test_decode_rejects_truncated_files(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    soundfile.write(path, speech_like(), 16000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=str(path)):
        audio.decode(path)


def test_decode_rejects_a_header_that_claims_4_gib(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(100), 16000)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    with pytest.raises(DataError, match="announces 4294967295 bytes"):
        audio.decode(path)


def test_decode_rejects_what_is_not_sound(tmp_path):
    path = tmp_path / "x.wav"
    with pytest.raises(DataError, match="no such audio file"):
        audio.decode(path)
    path.write_text("hello")
    with pytest.raises(DataError, match="cannot be decoded"):
        audio.decode(path)
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(DataError, match="holds no audio"):
        audio.decode(path)
    soundfile.write(path, np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        audio.decode(path)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 44101, 48000])
def test_resample_keeps_a_tone_and_the_duration(rate_hz):
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate_hz) / rate_hz).astype(np.float32)
    y = audio.resample(tone, rate_hz)
    assert y.dtype == np.float32 and len(y) == 16000
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert np.abs(y - expected)[200:-200].max() < 5e-3


def test_resample_removes_what_16_khz_cannot_hold():
    tone = np.sin(2 * np.pi * 10000 * np.arange(48000) / 48000).astype(np.float32)
    assert audio.rms_db(audio.resample(tone, 48000)[200:-200]) < -50


def test_importing_audio_is_cheap():
    code = "import sys, rkd.audio; assert not {'torch', 'scipy.signal'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pcm16_round_trips_every_value_and_clips():
    pcm = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(audio.to_pcm16(audio.from_pcm16(pcm)), pcm)
    assert audio.to_pcm16(np.array([2.0, -2.0])).tolist() == [32767, -32768]


def p56_loop_db(x, rate_hz=16000):
    """P.56 method B sample by sample, as the recommendation writes it, with thresholds under the peak."""
    peak = max(abs(float(v)) for v in x)
    x = [float(v) / peak for v in x]
    g, hangover = math.exp(-1 / (rate_hz * 0.03)), math.ceil(0.2 * rate_hz)
    thresholds = [2.0**-k for k in range(15, 0, -1)]
    activity, held = [0] * 15, [hangover] * 15
    p = q = energy = 0.0
    for v in x:
        energy += v * v
        p = g * p + (1 - g) * abs(v)
        q = g * q + (1 - g) * p
        for j, threshold in enumerate(thresholds):
            if q >= threshold:
                activity[j] += 1
                held[j] = 0
            elif held[j] < hangover:
                activity[j] += 1
                held[j] += 1
    points = [
        (10 * math.log10(energy / a), 20 * math.log10(c)) for a, c in zip(activity, thresholds, strict=True) if a > 0
    ]
    for (level_0, c_0), (level_1, c_1) in itertools.pairwise(points):
        d_0, d_1 = level_0 - c_0, level_1 - c_1
        if d_0 > 15.9 >= d_1:
            return level_0 + (15.9 - d_0) / (d_1 - d_0) * (level_1 - level_0) + 20 * math.log10(peak)
    raise AssertionError("no crossing")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_active_level_equals_p56_in_a_plain_loop(seed):
    x = speech_like(1.5 + seed, seed=seed)
    assert audio.active_level_db(x) == pytest.approx(p56_loop_db(x), abs=1e-6)


def test_active_level_ignores_silence_around_the_speech():
    x = speech_like(4)
    padded = np.concatenate([np.zeros(32000), x, np.zeros(64000)])
    assert audio.active_level_db(padded) == pytest.approx(audio.active_level_db(x), abs=0.5)  # one more hangover
    assert audio.rms_db(padded) < audio.rms_db(x) - 3


def test_active_level_of_steady_noise_is_its_rms():
    noise = 0.1 * np.random.default_rng(0).standard_normal(64000)
    assert audio.active_level_db(noise) == pytest.approx(audio.rms_db(noise), abs=0.2)


@settings(max_examples=30, deadline=None)
@given(st.floats(-120, 40), st.integers(1, 20000))
def test_active_level_follows_the_gain_at_any_length_and_level(gain_db, length):
    x = speech_like(2)[:length].astype(np.float64) + 1e-6
    level_db = audio.active_level_db(x)
    assert audio.rms_db(x) - 1e-9 <= level_db <= 20 * math.log10(np.abs(x).max()) + 30
    assert audio.active_level_db(x * 10 ** (gain_db / 20)) == pytest.approx(level_db + gain_db, abs=1e-6)


def test_silence_has_no_level():
    assert audio.active_level_db(np.zeros(16000)) == audio.active_level_db(np.zeros(0)) == -math.inf
    assert audio.rms_db(np.zeros(16000)) == -math.inf
