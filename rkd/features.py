"""Log-mel, cepstral and spectral features on the device, from waveforms of uneven lengths.

Shapes: B batch, T samples, F frames, M mel bins, C cepstral coefficients, K frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rkd.audio import RATE_HZ
from rkd.masks import valid_mask

# As many samples have frames and spectra that stay in a CPU's cache.
CACHED_SAMPLES = 2**18


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2), computed in the batch.

    Equal to Transformers' ``WhisperFeatureExtractor`` up to rounding; a clip's features do not depend on the padding
    that its batch brings.

    Args:
        n_mels: mel bins, Slaney scale and normalisation, 0 to 8 kHz.
        hop: samples between two frames.
        n_fft: window length in samples (Hann).
    """

    bank_KM: Tensor
    window: Tensor

    def __init__(self, n_mels: int, hop: int, n_fft: int = 400):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.hop = hop
        self.n_fft = n_fft
        bank = melscale_fbanks(
            n_freqs=n_fft // 2 + 1, f_min=0.0, f_max=RATE_HZ / 2, n_mels=n_mels, sample_rate=RATE_HZ,
            norm="slaney", mel_scale="slaney",
        )  # fmt: skip
        # Constants, not parameters: they are rebuilt from the shape, so no checkpoint needs them.
        self.register_buffer("bank_KM", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def lengths(self, lengths_B: Tensor) -> Tensor:
        """Return the number of frames that a clip of so many samples has; shape ``(B,)``."""
        return (lengths_B + self.hop - 1) // self.hop

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(B, M, F)``, zero beyond a clip's end, and the number of valid frames ``(B,)``.

        Always in float32: eight decades of power do not fit bfloat16.
        """
        with torch.autocast(waveform_BT.device.type, enabled=False):
            n_frames_B = self.lengths(lengths_B)
            n_frames = int(n_frames_B.max())

            def of_some(waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
                # Zeros up to the last frame and half a window beyond, so that the reflection at the end meets only
                # zeros.
                wave_BT = silenced(waveform_BT, lengths_B, n_frames * self.hop + self.n_fft)
                mel_BMF = self._log_power(wave_BT)[..., :n_frames]
                beyond_B1F = ~valid_mask(self.lengths(lengths_B), n_frames)[:, None]
                peak_B = mel_BMF.masked_fill(beyond_B1F, -10.0).amax(dim=(1, 2))
                return _scaled(mel_BMF, peak_B).masked_fill(beyond_B1F, 0.0)

            return by_parts(of_some, waveform_BT, lengths_B), n_frames_B

    def of_window(self, waveform_BT: Tensor, lengths_B: Tensor, n_samples: int) -> Tensor:
        """Return features ``(B, M, F)`` of clips with silence up to a window's end, as pretrained models hear them.

        What ``WhisperFeatureExtractor`` makes of each clip, the reflection at the window's end included.
        """

        def of_some(waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
            mel_BMF = self._log_power(silenced(waveform_BT, lengths_B, n_samples))[..., :-1]
            return _scaled(mel_BMF, mel_BMF.amax(dim=(1, 2)))

        with torch.autocast(waveform_BT.device.type, enabled=False):
            return by_parts(of_some, waveform_BT, lengths_B)

    def _log_power(self, wave_BT: Tensor) -> Tensor:
        spectrum_BKF = torch.stft(wave_BT, self.n_fft, self.hop, window=self.window, return_complex=True)
        return torch.log10((self.bank_KM.T @ power(spectrum_BKF)).clamp(min=1e-10))


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients (Davis & Mermelstein 1980), each normalised over its clip.

    Args:
        n_mfcc: coefficients, the orthonormal cosine transform of the log-mels.
        n_mels, hop: as for ``LogMel``.
    """

    dct_MC: Tensor

    def __init__(self, n_mfcc: int, n_mels: int, hop: int):
        super().__init__()
        from torchaudio.functional import create_dct

        self.mel = LogMel(n_mels, hop)
        self.register_buffer("dct_MC", create_dct(n_mfcc, n_mels, norm="ortho"), persistent=False)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(B, C, F)``, zero beyond a clip's end, and the number of valid frames ``(B,)``."""
        mel_BMF, n_frames_B = self.mel(waveform_BT, lengths_B)
        with torch.autocast(waveform_BT.device.type, enabled=False):
            return normalised(self.dct_MC.T @ mel_BMF, n_frames_B), n_frames_B


class LogSpectrum(nn.Module):
    """Log magnitude of the short-time spectrum, each frequency normalised over its clip (Hannun et al. 2014).

    Args:
        n_fft: window length in samples (Hann); there are ``n_fft // 2 + 1`` frequencies.
        hop: samples between two frames.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(B, K, F)``, zero beyond a clip's end, and the number of valid frames ``(B,)``."""
        with torch.autocast(waveform_BT.device.type, enabled=False):
            n_frames_B = (lengths_B + self.hop - 1) // self.hop
            n_frames = int(n_frames_B.max())

            def of_some(waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
                wave_BT = silenced(waveform_BT, lengths_B, n_frames * self.hop + self.n_fft)
                spectrum_BKF = torch.stft(wave_BT, self.n_fft, self.hop, window=self.window, return_complex=True)
                return torch.log(power(spectrum_BKF[..., :n_frames]).clamp(min=1e-10)) / 2

            return normalised(by_parts(of_some, waveform_BT, lengths_B), n_frames_B), n_frames_B


def by_parts(features: Callable[[Tensor, Tensor], Tensor], waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the features of clips; on a CPU of few at a time: spectra that leave its cache cost twice the time."""
    if waveform_BT.device.type != "cpu":
        return features(waveform_BT, lengths_B)
    n = max(1, CACHED_SAMPLES // waveform_BT.shape[1])
    return torch.cat([features(*part) for part in zip(waveform_BT.split(n), lengths_B.split(n), strict=True)])


def power(spectrum_BKF: Tensor) -> Tensor:
    """Return the squared magnitude of a complex spectrum, in a quarter of the time of ``abs() ** 2``."""
    return spectrum_BKF.real.square() + spectrum_BKF.imag.square()


def normalised(x_BDF: Tensor, n_frames_B: Tensor) -> Tensor:
    """Return features of mean 0 and variance 1 over each clip's valid frames, zero beyond them."""
    valid_B1F = valid_mask(n_frames_B, x_BDF.shape[2])[:, None]
    n_B11 = n_frames_B.clamp(min=1)[:, None, None]
    centred_BDF = (x_BDF - (x_BDF * valid_B1F).sum(2, keepdim=True) / n_B11) * valid_B1F
    return centred_BDF * torch.rsqrt((centred_BDF**2).sum(2, keepdim=True) / n_B11 + 1e-5)


def silenced(waveform_BT: Tensor, lengths_B: Tensor, n_samples: int) -> Tensor:
    """Return clips in float32, cut or filled up to so many samples, zero beyond each clip's end."""
    valid_BT = valid_mask(lengths_B, waveform_BT.shape[1])
    wave_BT = torch.where(valid_BT, waveform_BT.float(), 0.0)[:, :n_samples]
    return nn.functional.pad(wave_BT, (0, n_samples - wave_BT.shape[1]))


def _scaled(mel_BMF: Tensor, peak_B: Tensor) -> Tensor:
    return (torch.maximum(mel_BMF, peak_B[:, None, None] - 8.0) + 4.0) / 4.0
