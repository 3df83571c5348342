"""Log-mels: Whisper's own, and a clip's own whatever it is batched with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.features import LogMel


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


def test_no_state_to_save_and_always_float32():
    mel = LogMel(16, 320)
    assert not mel.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = mel(torch.from_numpy(noise(4000))[None], torch.tensor([4000]))
    assert features.dtype == torch.float32
    assert torch.equal(features, mel(torch.from_numpy(noise(4000))[None], torch.tensor([4000]))[0])
