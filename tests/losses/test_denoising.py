"""The terms on a denoiser's waveform against NumPy and SciPy in float64, their gradients, padding and silence."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import stream

from rkd.losses import SISDR, MagnitudeL1, MultiResolutionSTFT, WaveformMSE
from rkd.metrics import si_sdr_db

TERMS = {
    "mse": WaveformMSE, "si_sdr": SISDR, "magnitude": MagnitudeL1,
    "stft": lambda: MultiResolutionSTFT([[128, 40, 100], [64, 16, 50]]),
}  # fmt: skip


def signals(lengths, seed=0, extra=0):
    """Return a denoised stream and a batch with targets that it resembles; the stream has rubbish beyond the ends."""
    rng = np.random.default_rng(seed)
    target_BT = torch.zeros(len(lengths), max(lengths) + extra, dtype=torch.float64)
    denoised_BT = torch.full_like(target_BT, 9.0)
    for row, n in enumerate(lengths):
        target_BT[row, :n] = torch.from_numpy(0.1 * rng.standard_normal(n) * np.sin(np.arange(n) / 50))
        denoised_BT[row, :n] = 0.7 * target_BT[row, :n] + torch.from_numpy(0.05 * rng.standard_normal(n))
    return denoised_BT, target_BT


def evaluated(term, denoised_BT, target_BT, lengths):
    lengths_B = torch.tensor(lengths)
    batch = SimpleNamespace(
        target_BT=target_BT, clean_BT=target_BT, lengths_B=lengths_B, seconds=lengths_B.sum() / 16000,
        spoken_B=lengths_B > 0,
    )  # fmt: skip
    return term({"waveform": stream(denoised_BT[..., None], lengths, 1)}, {}, batch), term.count(batch)


def spectrum(x_T, n_fft, hop, window):
    """Return magnitudes of Hann windows centred at multiples of the hop, by the definition of the transform."""
    frames = -(-len(x_T) // hop)
    padded_T = np.concatenate([np.zeros(n_fft // 2), x_T, np.zeros(2 * n_fft)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    left = (n_fft - window) // 2
    hann = np.concatenate([np.zeros(left), hann, np.zeros(n_fft - window - left)])
    return np.stack([np.abs(np.fft.rfft(hann * padded_T[i * hop : i * hop + n_fft])) for i in range(frames)], axis=1)


def expected(name, x_T, s_T):
    """Return a term's value for one utterance."""
    if name == "mse":
        return np.mean((x_T - s_T) ** 2)
    if name == "si_sdr":
        return 10 * np.log10(10 ** (-si_sdr_db(x_T, s_T) / 10) + 10**-3)  # limited to 30 dB
    if name == "magnitude":
        return np.mean(np.abs(spectrum(x_T, 512, 160, 400) - spectrum(s_T, 512, 160, 400)))
    values = []
    for resolution in ((128, 40, 100), (64, 16, 50)):
        x_KF, s_KF = (np.sqrt(np.maximum(spectrum(y, *resolution) ** 2, 1e-7)) for y in (x_T, s_T))
        convergence = np.linalg.norm(s_KF - x_KF) / np.linalg.norm(s_KF)
        values.append(convergence + np.mean(np.abs(np.log(s_KF / x_KF))))
    return np.mean(values)


@pytest.mark.parametrize("name", TERMS)
def test_values_by_hand(name):
    lengths = [1600, 900, 333]
    denoised_BT, target_BT = signals(lengths, extra=77)
    total, count = evaluated(TERMS[name](), denoised_BT, target_BT, lengths)
    by_hand = [
        expected(name, denoised_BT[i, :n].numpy(), target_BT[i, :n].numpy()) * n / 16000 for i, n in enumerate(lengths)
    ]
    assert float(total) == pytest.approx(sum(by_hand), rel=1e-5)
    assert float(count) == pytest.approx(sum(lengths) / 16000)


def test_the_mean_squared_error_is_over_all_valid_samples():
    """So that 0.5 times it means what a recipe says that adds 0.5 MSE to a mean loss."""
    lengths = [1600, 900]
    denoised_BT, target_BT = signals(lengths)
    total, count = evaluated(WaveformMSE(), denoised_BT, target_BT, lengths)
    errors = torch.cat([(denoised_BT - target_BT)[i, :n] for i, n in enumerate(lengths)])
    assert float(total / count) == pytest.approx(float((errors**2).mean()), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_gradients(name):
    lengths = [260, 140]
    denoised_BT, target_BT = signals(lengths, extra=10)
    denoised_BT.requires_grad_()
    term = TERMS[name]()

    def value(x_BT):
        return evaluated(term, x_BT, target_BT, lengths)[0]

    assert torch.autograd.gradcheck(value, denoised_BT, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)
    (gradient_BT,) = torch.autograd.grad(value(denoised_BT), denoised_BT)
    for row, n in enumerate(lengths):
        assert (gradient_BT[row, :n] != 0).any() and (gradient_BT[row, n:] == 0).all()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=2, max_size=4), st.integers(0, 300))
@pytest.mark.parametrize("name", TERMS)
def test_batched_equals_alone(name, lengths, extra):
    denoised_BT, target_BT = signals(lengths, extra=extra)
    term = TERMS[name]()
    together = evaluated(term, denoised_BT, target_BT, lengths)
    alone = [evaluated(term, denoised_BT[i : i + 1, :n], target_BT[i : i + 1, :n], [n]) for i, n in enumerate(lengths)]
    for i in (0, 1):
        assert float(together[i]) == pytest.approx(sum(float(one[i]) for one in alone), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("silent", ["target", "denoised", "both"])
def test_silence_gives_finite_values_and_gradients(name, silent):
    denoised_BT, target_BT = signals([500, 400])
    if silent != "target":
        denoised_BT[0] = 0.0
    if silent != "denoised":
        target_BT[0] = 0.0
    denoised_BT.requires_grad_()
    total, count = evaluated(TERMS[name](), denoised_BT.float(), target_BT.float(), [500, 400])
    total.backward()
    assert total.isfinite() and denoised_BT.grad.isfinite().all()
    if name in ("si_sdr", "stft") and silent != "denoised":
        assert float(count) == pytest.approx(400 / 16000) and (denoised_BT.grad[0] == 0).all()


def test_si_sdr_does_not_depend_on_the_scale_and_has_bounds():
    denoised_BT, target_BT = signals([800])
    values = [float(evaluated(SISDR(), gain * denoised_BT, target_BT, [800])[0]) for gain in (1e-3, 1.0, 30.0)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)
    perfect, _ = evaluated(SISDR(), target_BT, target_BT, [800])
    assert float(perfect) == pytest.approx(-30 * 800 / 16000, rel=1e-6)
