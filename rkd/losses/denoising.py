"""What the waveform of a denoiser is compared with: the batch's target, clean speech as a room's direct path gives it.

Each term is a mean over seconds of audio: an utterance counts as much as it is long, silence after its speech included.
For the waveform's error that is the mean over all valid samples; the values of utterances that have one value each
(ratios, spectral convergence) are weighted so that a term does not depend on how utterances are batched.

Shapes: B batch, T samples, F frames, K frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rkd.audio import RATE_HZ
from rkd.data.batches import Batch
from rkd.features import power
from rkd.losses.base import Term, at_least_float32
from rkd.masks import valid_mask
from rkd.models.base import Streams

_TINY = 1e-20  # keeps divisions by a silent signal's power finite


class Denoising(Term):
    """A term that has a value for each utterance, computed from its denoised waveform and its target."""

    needs = ("waveform",)

    def count(self, batch: Batch) -> Tensor:
        return batch.seconds

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        stream = student["waveform"]
        valid_BT = stream.mask()
        denoised_BT = torch.where(valid_BT, at_least_float32(stream.values_BND[..., 0]), 0.0)
        assert batch.target_BT is not None  # a student with a denoiser is given one
        target_BT = torch.where(valid_BT, batch.target_BT.to(denoised_BT.dtype), 0.0)
        with torch.autocast(denoised_BT.device.type, enabled=False):
            values_B = self.values(denoised_BT, target_BT, stream.lengths_B)
        return (values_B * stream.lengths_B).sum() / RATE_HZ

    def values(self, denoised_BT: Tensor, target_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return a value for each utterance, ``(B,)``; both signals are zero beyond ``lengths_B``."""
        raise NotImplementedError


class OfSpeech(Denoising):
    """A term relative to the target's level: an utterance whose target is silent counts nothing."""

    def count(self, batch: Batch) -> Tensor:
        # Clean speech, since the target is not known before the corruption; the one is silent where the other is.
        return (batch.lengths_B * (batch.clean_BT.any(1) & batch.spoken_B)).sum() / RATE_HZ


class WaveformMSE(Denoising):
    """Mean squared error over valid samples, of waveforms with full scale 1."""

    def values(self, denoised_BT: Tensor, target_BT: Tensor, lengths_B: Tensor) -> Tensor:
        return ((denoised_BT - target_BT) ** 2).sum(1) / lengths_B


class SISDR(OfSpeech):
    """Negative scale-invariant signal-to-distortion ratio in dB, soft-limited above.

    Le Roux et al. 2019, equation 4: ``-10 log10(|a s|^2 / |a s - x|^2)`` with ``a = <x, s> / |s|^2`` for the denoised
    ``x`` and the target ``s``; means are not removed, as there. The error's power gets a thousandth of that of the
    target added, so that a perfect signal has 30 dB (Wisdom et al. 2020), or clean clips, whose ratio has no end, drown
    the noisy ones of their batch. The target's power gets 1e-8 of that of ``x`` added: the ratio has an end below, too.
    """

    def values(self, denoised_BT: Tensor, target_BT: Tensor, lengths_B: Tensor) -> Tensor:
        power_B = (target_BT**2).sum(1)
        scale_B = (denoised_BT * target_BT).sum(1) / power_B.clamp(min=_TINY)
        projected_BT = scale_B[:, None] * target_BT
        kept_B = (projected_BT**2).sum(1) + 1e-8 * (denoised_BT**2).sum(1) + _TINY
        lost_B = ((denoised_BT - projected_BT) ** 2).sum(1) + 1e-3 * kept_B
        return torch.where(power_B > 0, -10 * (kept_B / lost_B).log10(), 0.0)


class MagnitudeL1(Denoising):
    """Mean absolute difference of the magnitude spectra, over frequencies and frames.

    The enhancement loss of RobustDistiller (Guimarães et al. 2024) without its mask.

    Args:
        n_fft, hop, window: points of the transform, samples between two frames, samples of a (Hann) window.
    """

    def __init__(self, n_fft: int = 512, hop: int = 160, window: int = 400):
        super().__init__()
        self.resolution = (n_fft, hop, window)

    def values(self, denoised_BT: Tensor, target_BT: Tensor, lengths_B: Tensor) -> Tensor:
        (ours_BKF, theirs_BKF), frames_B = magnitudes((denoised_BT, target_BT), lengths_B, *self.resolution)
        return (ours_BKF - theirs_BKF).abs().sum((1, 2)) / (frames_B * ours_BKF.shape[1])


class MultiResolutionSTFT(OfSpeech):
    """Spectral convergence and distance of log magnitudes, at several resolutions.

    Yamamoto et al. 2020 (Parallel WaveGAN), equations 3 to 6: the mean over resolutions of
    ``| |S| - |X| |_F / | |S| |_F`` plus the mean of ``| log|S| - log|X| |``, with powers no lower than 1e-7, as in its
    published code.

    Args:
        resolutions: of each, points of the transform, samples between two frames, samples of a (Hann) window; the
            paper's, in samples.
    """

    def __init__(self, resolutions: Sequence[Sequence[int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))):
        super().__init__()
        self.resolutions = [tuple(resolution) for resolution in resolutions]

    def values(self, denoised_BT: Tensor, target_BT: Tensor, lengths_B: Tensor) -> Tensor:
        total_B = denoised_BT.new_zeros(len(denoised_BT))
        for resolution in self.resolutions:
            (ours_BKF, theirs_BKF), frames_B = magnitudes((denoised_BT, target_BT), lengths_B, *resolution, floor=1e-7)
            distance_B = norm((ours_BKF - theirs_BKF).flatten(1)) / norm(theirs_BKF.flatten(1))
            valid_B1F = valid_mask(frames_B, ours_BKF.shape[2])[:, None]
            logs_BKF = torch.where(
                valid_B1F, (ours_BKF.clamp(min=_TINY) / theirs_BKF.clamp(min=_TINY)).log().abs(), 0.0
            )
            total_B = total_B + distance_B + logs_BKF.sum((1, 2)) / (frames_B * ours_BKF.shape[1])
        return torch.where(target_BT.any(1), total_B / len(self.resolutions), 0.0)


def norm(x_BN: Tensor) -> Tensor:
    """Return the Euclidean norm of each row, with a finite gradient at zero."""
    return ((x_BN**2).sum(1) + _TINY).sqrt()


def magnitudes(
    waveforms: Sequence[Tensor], lengths_B: Tensor, n_fft: int, hop: int, window: int, floor: float = 0.0
) -> tuple[list[Tensor], Tensor]:
    """Return the magnitude spectra ``(B, K, F)`` of waveforms ``(B, T)``, zero beyond a clip's frames, whose number it
    returns, too: frames are centred at multiples of ``hop`` before the clip's end. Powers below ``floor`` are raised to
    it.
    """
    frames_B = (lengths_B + hop - 1) // hop
    spectra = []
    for x_BT in waveforms:
        hann = torch.hann_window(window, dtype=x_BT.dtype, device=x_BT.device)
        x_BKF = torch.stft(
            F.pad(x_BT, (0, n_fft)), n_fft, hop, window, hann, pad_mode="constant", return_complex=True
        )[..., : int(frames_B.max())]  # fmt: skip
        # The root of a power has no gradient at zero, a complex number's magnitude has.
        magnitude_BKF = power(x_BKF).clamp(min=floor).sqrt() if floor else x_BKF.abs()
        spectra.append(magnitude_BKF * valid_mask(frames_B, magnitude_BKF.shape[2])[:, None])
    return spectra, frames_B
