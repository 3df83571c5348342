"""What every denoiser has in common: clips alone and in a batch, folders, a start near the input, that it learns."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, padded
from torch import nn

from rkd.errors import CheckpointError, ConfigError
from rkd.metrics import si_sdr_db
from rkd.models.base import count_parameters
from rkd.models.denoisers import load_denoiser
from rkd.models.denoisers.convtasnet import ConvTasNet
from rkd.models.denoisers.mask import MaskDenoiser, Recurrent, log_magnitude

FAMILIES = {"mask": MaskDenoiser, "convtasnet": ConvTasNet}
DEFAULT = {"recurrent": lambda: MaskDenoiser(), "convolutional": lambda: MaskDenoiser("convolutional", layers=6),
           "convtasnet": lambda: ConvTasNet()}  # fmt: skip
SMALL = {
    "recurrent": lambda: MaskDenoiser(width=16, layers=1, n_fft=256, hop=64),
    "forward": lambda: MaskDenoiser(width=16, layers=2, bidirectional=False, hop=160),
    "convolutional": lambda: MaskDenoiser("convolutional", width=16, layers=4),
    "convtasnet": lambda: ConvTasNet(32, 32, msk_num_feats=16, msk_num_hidden_feats=24, msk_num_layers=3),
    "relu": lambda: ConvTasNet(20, 32, 16, 24, msk_num_layers=3, msk_num_stacks=1, msk_activate="relu"),
}  # fmt: skip


def made(name, seed=0, busy=False):
    """Return a small denoiser; a busy one has a mask that depends strongly on what it hears."""
    torch.manual_seed(seed)
    denoiser = SMALL[name]().eval()
    last = denoiser.mask if isinstance(denoiser, MaskDenoiser) else denoiser.net.mask_generator.output_conv
    if busy:
        last.weight.data *= 400
    return denoiser


def test_busy_masks_are_busy():
    """What the test of clips in batches rests on: masks that are far from constant."""
    for name in SMALL:
        x = clip(8000)
        with torch.no_grad():
            assert si_sdr_db(made(name, busy=True)(*padded([x]))[0].numpy(), x.numpy()) < 10, name


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 6000), min_size=2, max_size=4), st.integers(0, 100))
@pytest.mark.parametrize("name", SMALL)
def test_batched_equals_alone(name, lengths, seed):
    denoiser = made(name, seed, busy=True)
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together_BT = denoiser(*padded(clips, extra=seed * 7))
        assert together_BT.shape == (len(clips), max(lengths) + seed * 7)
        for i, x_T in enumerate(clips):
            alone_BT = denoiser(x_T[None], torch.tensor([len(x_T)]))
            assert torch.allclose(together_BT[i, : len(x_T)], alone_BT[0], atol=1e-5)
            assert (together_BT[i, len(x_T) :] == 0).all()
        assert torch.equal(denoiser(*padded(clips)), denoiser(*padded(clips)))


@pytest.mark.parametrize("name", DEFAULT)
def test_the_output_is_near_the_input_at_first(name):
    torch.manual_seed(1)
    denoiser, x = DEFAULT[name](), clip(16000)
    assert count_parameters(denoiser) < 500_000
    with torch.no_grad():
        out = denoiser(*padded([x]))[0]
    assert si_sdr_db(out.numpy(), x.numpy()) > 30 and (out - x).norm() < 0.1 * x.norm()


def test_the_encoder_of_convtasnet_is_inverted():
    denoiser = made("convtasnet")
    torch.nn.init.zeros_(denoiser.net.mask_generator.output_conv.weight)
    torch.nn.init.constant_(denoiser.net.mask_generator.output_conv.bias, 100.0)  # a mask of 1
    with torch.no_grad():
        for n in (1, 15, 16, 17, 999):
            x = clip(n)
            assert torch.allclose(denoiser(*padded([x]))[0], x, atol=1e-5)


def test_recurrent_layers_equal_packed_ones():
    torch.manual_seed(0)
    own, packed = Recurrent(9, 5, 2, True), nn.GRU(9, 5, 2, batch_first=True, bidirectional=True)
    packed.load_state_dict(
        {f"{name}_l{i}{suffix}": getattr(layers[i], f"{name}_l0")
         for suffix, layers in (("", own.forwards), ("_reverse", own.backwards))
         for i in range(2) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    )  # fmt: skip
    x_BFK, lengths_B = torch.randn(3, 12, 9), torch.tensor([12, 7, 1])
    expected, _ = packed(nn.utils.rnn.pack_padded_sequence(x_BFK, lengths_B, batch_first=True, enforce_sorted=False))
    expected_BFD, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    with torch.no_grad():
        for row, n in enumerate(lengths_B.tolist()):
            assert torch.allclose(own(x_BFK, lengths_B)[row, :n], expected_BFD[row, :n], atol=1e-6)


@pytest.mark.parametrize("hop", [64, 100, 128, 160])
def test_a_mask_of_one_changes_nothing(hop):
    denoiser = MaskDenoiser(width=4, hop=hop)
    torch.nn.init.zeros_(denoiser.mask.weight)
    torch.nn.init.constant_(denoiser.mask.bias, 100.0)
    with torch.no_grad():
        for n in (1, 300, 5000):
            assert torch.allclose(denoiser(*padded([clip(n)]))[0], clip(n), atol=1e-5)


def test_features_are_normalised_over_valid_frames_and_any_gain_cancels():
    magnitude_BKF = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(0))
    frames_B = torch.tensor([9, 4])
    features_BKF = log_magnitude(magnitude_BKF**2, frames_B)
    for row, n in enumerate(frames_B.tolist()):
        log_KF = np.log(magnitude_BKF[row, :, :n].double().numpy())
        expected_KF = (log_KF - log_KF.mean()) / np.sqrt(log_KF.var() + 1e-5)
        assert np.allclose(features_BKF[row, :, :n], expected_KF, atol=1e-5)
        assert (features_BKF[row, :, n:] == 0).all()
    assert torch.allclose(log_magnitude((0.01 * magnitude_BKF) ** 2, frames_B), features_BKF, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_silence_stays_silent_and_has_finite_gradients(name):
    denoiser = made(name)
    waveform_BT = torch.stack([torch.zeros(2000), clip(2000)]).requires_grad_()
    out_BT = denoiser(waveform_BT, torch.tensor([2000, 2000]))
    assert (out_BT[0] == 0).all()
    (out_BT**2).mean().backward()
    for name, p in denoiser.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name
    assert waveform_BT.grad.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_saved_and_loaded(name, tmp_path):
    denoiser = made(name, 3)
    denoiser.save(tmp_path / "d")
    loaded = load_denoiser(tmp_path / "d", FAMILIES).eval()
    x = padded([clip(3000), clip(1000)])
    with torch.no_grad():
        assert torch.equal(loaded(*x), denoiser(*x))
    assert type(loaded) is type(denoiser) and loaded.shape == denoiser.shape


@pytest.mark.parametrize("damage", ["weights", "shape", "card", "family", "missing"])
def test_a_damaged_folder_is_refused(damage, tmp_path):
    made("recurrent").save(tmp_path)
    card = json.loads((tmp_path / "denoiser.json").read_text())
    if damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    elif damage == "shape":
        (tmp_path / "denoiser.json").write_text(json.dumps({**card, "shape": {**card["shape"], "width": 8}}))
    elif damage == "card":
        (tmp_path / "denoiser.json").write_text("{")
    elif damage == "family":
        (tmp_path / "denoiser.json").write_text(json.dumps({**card, "family": "os.system"}))
    else:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path, FAMILIES)


def test_an_odd_kernel_is_refused():
    with pytest.raises(ConfigError, match="even"):
        ConvTasNet(enc_kernel_size=21)


def speech_and_noise(n=3, seconds=0.3):
    """Return harmonic 'speech' that comes and goes, and the same in white noise at about 5 dB."""
    rng = np.random.default_rng(0)
    t_T = np.arange(int(seconds * 16000)) / 16000
    speech_BT = np.stack(
        [sum(np.sin(2 * np.pi * k * f0 * t_T) / k for k in range(1, 9)) * np.sin(7 * t_T * np.pi) ** 2
         for f0 in np.linspace(110, 220, n)]
    )  # fmt: skip
    speech_BT *= 0.1
    noise_BT = rng.standard_normal(speech_BT.shape) * speech_BT.std() * 10 ** (-5 / 20)
    return (torch.tensor(x, dtype=torch.float32) for x in (speech_BT, speech_BT + noise_BT))


@pytest.mark.parametrize("make, rate", [
    (lambda: MaskDenoiser(width=24, layers=1, hop=256), 1e-2),
    (lambda: MaskDenoiser("convolutional", width=24, layers=3, hop=256), 1e-2),
    (lambda: ConvTasNet(64, 96, 32, 48, msk_num_layers=3, msk_num_stacks=1), 2e-3),
])  # fmt: skip
def test_it_learns_to_denoise_a_batch(make, rate):
    torch.manual_seed(0)
    denoiser = make().train()
    speech_BT, noisy_BT = speech_and_noise()
    lengths_B = torch.full((len(speech_BT),), speech_BT.shape[1])
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=rate)
    for _ in range(40):
        optimizer.zero_grad()
        loss = ((denoiser(noisy_BT, lengths_B) - speech_BT) ** 2).mean() / (speech_BT**2).mean()
        loss.backward()
        optimizer.step()
    denoised_BT = denoiser.eval()(noisy_BT, lengths_B).detach()
    before, after = (
        np.mean([si_sdr_db(x.numpy(), s.numpy()) for x, s in zip(out_BT, speech_BT, strict=True)])
        for out_BT in (noisy_BT, denoised_BT)
    )
    assert after > before + 5


def test_recurrent_layers_keep_their_precision_under_autocast():
    """On CUDA they would be given fp16, whatever autocast is asked for."""
    layers, x_BFK = Recurrent(9, 4, 2, True).eval(), torch.randn(2, 7, 9)
    n_frames_B = torch.tensor([7, 5])
    with torch.no_grad():
        expected_BFD = layers(x_BFK, n_frames_B)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layers(x_BFK, n_frames_B), expected_BFD)
            assert layers(x_BFK.bfloat16(), n_frames_B).dtype == torch.float32
