"""Log-mels: Whisper's own, and a clip's own whatever it is batched with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.features import MFCC, LogMel, LogSpectrum


def noise(n, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


@pytest.mark.parametrize("n_mels, hop, n_fft", [(80, 160, 400), (40, 320, 400), (128, 160, 400), (16, 256, 512)])
def test_equal_to_whispers_feature_extractor(n_mels, hop, n_fft):
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor(feature_size=n_mels, hop_length=hop, chunk_length=4, n_fft=n_fft)
    ours = LogMel(n_mels, hop, n_fft)
    for n in (1000, 5123, 16000, 3 * 16000 + 1, 4 * 16000):
        x_T = noise(n, n) * np.hanning(n).astype(np.float32)
        expected_MF = theirs(x_T, sampling_rate=16000, return_tensors="np")["input_features"][0]
        mel_BMF, frames_B = ours(torch.from_numpy(x_T)[None], torch.tensor([n]))
        assert frames_B.tolist() == [mel_BMF.shape[2]] == [-(-n // hop)]
        assert np.abs(mel_BMF[0].numpy() - expected_MF[:, : frames_B[0]]).max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=2, max_size=4))
def test_batched_equals_alone(lengths):
    mel = LogMel(16, 320)
    clips = [torch.from_numpy(noise(n, i)) for i, n in enumerate(lengths)]
    # What stands beyond a clip's end must not matter.
    batch_BT = torch.full((len(clips), max(lengths) + 500), 0.7)
    for row, clip in zip(batch_BT, clips, strict=True):
        row[: len(clip)] = clip
    batched_BMF, frames_B = mel(batch_BT, torch.tensor(lengths))
    for features_MF, frames, clip in zip(batched_BMF, frames_B, clips, strict=True):
        alone_BMF, alone_B = mel(clip[None], torch.tensor([len(clip)]))
        assert alone_B.item() == frames
        assert torch.allclose(features_MF[:, :frames], alone_BMF[0], atol=1e-5)
        assert (features_MF[:, frames:] == 0).all()


@pytest.mark.parametrize("features", [LogMel(24, 160), LogSpectrum(320, 160)], ids=["mel", "spectrum"])
def test_in_parts_as_at_once(features, monkeypatch):
    lengths_B = torch.tensor([4000, 1, 2500, 3999, 160])
    wave_BT = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def of(samples):
        monkeypatch.setattr("rkd.features.CACHED_SAMPLES", samples)
        x_BDF, frames_B = features(wave_BT, lengths_B)
        [gradient_BT] = torch.autograd.grad((x_BDF * torch.linspace(-1, 1, x_BDF.shape[2])).sum(), wave_BT)
        return x_BDF, frames_B, gradient_BT

    for mine, whole in zip(of(2 * 4000), of(10**9), strict=True):
        assert torch.allclose(mine.double(), whole.double(), rtol=1e-4, atol=1e-5)
    assert torch.allclose(of(1)[0], of(10**9)[0], atol=1e-5)  # a clip at a time


def test_no_state_to_save_and_always_float32():
    mel = LogMel(16, 320)
    assert not mel.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = mel(torch.from_numpy(noise(4000))[None], torch.tensor([4000]))
    assert features.dtype == torch.float32
    assert torch.equal(features, mel(torch.from_numpy(noise(4000))[None], torch.tensor([4000]))[0])


@pytest.mark.parametrize("n_mfcc, n_mels, hop", [(13, 40, 160), (40, 80, 320)])
def test_cepstral_coefficients(n_mfcc, n_mels, hop):
    """Against SciPy's cosine transform of the log-mels, normalised over the clip in float64."""
    from scipy.fft import dct

    x_BT, lengths_B = torch.from_numpy(noise(9000))[None], torch.tensor([9000])
    mel_BMF, _ = LogMel(n_mels, hop)(x_BT, lengths_B)
    raw_CF = dct(mel_BMF[0].double().numpy(), type=2, norm="ortho", axis=0)[:n_mfcc]
    expected_CF = (raw_CF - raw_CF.mean(1, keepdims=True)) / np.sqrt(raw_CF.var(1, keepdims=True) + 1e-5)
    found_BCF, frames_B = MFCC(n_mfcc, n_mels, hop)(x_BT, lengths_B)
    assert frames_B.tolist() == [found_BCF.shape[2]] and np.abs(found_BCF[0].numpy() - expected_CF).max() < 1e-3


def test_log_spectra():
    """Against NumPy's Fourier transform of each windowed frame, normalised over the clip in float64."""
    n_fft, hop, n = 320, 160, 4800
    x_T = noise(n).astype(np.float64)
    padded_T = np.pad(np.pad(x_T, (n_fft // 2, 0), mode="reflect"), (0, n_fft))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [np.abs(np.fft.rfft(window * padded_T[i * hop : i * hop + n_fft])) for i in range(n // hop)]
    raw_KF = np.log(np.maximum(np.stack(frames, axis=1), 1e-5))
    expected_KF = (raw_KF - raw_KF.mean(1, keepdims=True)) / np.sqrt(raw_KF.var(1, keepdims=True) + 1e-5)
    found_BKF, frames_B = LogSpectrum(n_fft, hop)(torch.from_numpy(noise(n))[None], torch.tensor([n]))
    assert frames_B.tolist() == [found_BKF.shape[2]] == [30]
    assert np.abs(found_BKF[0].numpy() - expected_KF).max() < 1e-3


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=2, max_size=4))
@pytest.mark.parametrize("features", [MFCC(13, 24, 320), LogSpectrum(320, 160)], ids=["mfcc", "spectrum"])
def test_normalised_features_batched_equal_alone(features, lengths):
    clips = [torch.from_numpy(noise(n, i)) for i, n in enumerate(lengths)]
    batch_BT = torch.full((len(clips), max(lengths) + 100), 0.3)
    for row, x_T in zip(batch_BT, clips, strict=True):
        row[: len(x_T)] = x_T
    together_BDF, _ = features(batch_BT, torch.tensor(lengths))
    for i, x_T in enumerate(clips):
        alone_BDF, frames_B = features(x_T[None], torch.tensor([len(x_T)]))
        n = int(frames_B[0])
        assert torch.allclose(together_BDF[i, :, :n], alone_BDF[0, :, :n], atol=1e-4)
        assert not together_BDF[i, :, n:].any()
