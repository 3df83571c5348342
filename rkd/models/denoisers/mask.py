"""A mask on the magnitudes of the short-time spectrum, with the noisy phase.

Shapes: B batch, T samples, F frames, K frequencies, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rkd.features import power, silenced
from rkd.masks import valid_mask
from rkd.models.denoisers.base import Denoiser, open_mask
from rkd.models.norms import MaskedGroupNorm

FLOOR = 1e-4  # of a clip's largest magnitude (-80 dB), as in Whisper's log-mels


class MaskDenoiser(Denoiser):
    """Estimates how much of each time-frequency point is speech, and keeps that much of its magnitude.

    The spectrum is of Hann windows of 32 ms, a quarter apart: there the squared windows add up to a constant, so that
    what the mask does to a frame weighs the same everywhere in the resynthesis (at 160 samples they do not).

    Args:
        body: ``recurrent``: GRUs (Cho et al. 2014); ``convolutional``: residual convolutions of width 3 with dilations
            1, 2, 4, ... (the temporal convolutional network of Bai et al. 2018, not causal).
        width: units of each layer and direction, or channels.
        layers: how many.
        bidirectional: of a recurrent body.
        n_fft, hop: window and step of the spectrum, in samples.
    """

    family = "mask"
    window: Tensor

    def __init__(
        self,
        body: str = "recurrent",
        width: int = 96,
        layers: int = 2,
        bidirectional: bool = True,
        n_fft: int = 512,
        hop: int = 128,
    ):
        super().__init__()
        self.shape = {
            "body": body, "width": width, "layers": layers, "bidirectional": bidirectional, "n_fft": n_fft, "hop": hop,
        }  # fmt: skip
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        n_bins = n_fft // 2 + 1
        self.body: Recurrent | Convolutional
        if body == "recurrent":
            self.body = Recurrent(n_bins, width, layers, bidirectional)
        else:
            self.body = Convolutional(n_bins, width, layers)
        self.mask = nn.Linear(self.body.width, n_bins)
        open_mask(self.mask)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        n_samples = waveform_BT.shape[1]
        # bfloat16 holds neither the range of a spectrum nor a waveform.
        with torch.autocast(waveform_BT.device.type, enabled=False):
            # Silence as long as a window, so that all frames that reach into a clip are there whatever follows it.
            wave_BT = silenced(waveform_BT, lengths_B, n_samples + self.n_fft)
            spectrum_BKF = torch.stft(
                wave_BT, self.n_fft, self.hop, window=self.window, pad_mode="constant", return_complex=True
            )
            n_frames_B = (lengths_B + self.n_fft // 2 + self.hop - 1) // self.hop
            features_BFK = log_magnitude(power(spectrum_BKF), n_frames_B).transpose(1, 2)
        mask_BFK = self.mask(self.body(features_BFK, n_frames_B)).sigmoid()
        with torch.autocast(waveform_BT.device.type, enabled=False):
            kept_BKF = spectrum_BKF * mask_BFK.float().transpose(1, 2)
            denoised_BT = torch.istft(kept_BKF, self.n_fft, self.hop, window=self.window, length=n_samples)
        return silenced(denoised_BT, lengths_B, n_samples)


def log_magnitude(power_BKF: Tensor, n_frames_B: Tensor) -> Tensor:
    """Return log magnitudes of mean 0 and variance 1 over a clip's valid frames, zero beyond them; any gain cancels."""
    valid_B1F = valid_mask(n_frames_B, power_BKF.shape[2])[:, None]
    peak_B11 = torch.where(valid_B1F, power_BKF, 0.0).amax((1, 2), keepdim=True)
    log_BKF = torch.maximum(power_BKF, (FLOOR**2 * peak_B11).clamp(min=1e-16)).log() / 2
    n_B11 = (n_frames_B * power_BKF.shape[1])[:, None, None]
    centred_BKF = torch.where(
        valid_B1F, log_BKF - torch.where(valid_B1F, log_BKF, 0.0).sum((1, 2), keepdim=True) / n_B11, 0.0
    )
    return centred_BKF * torch.rsqrt((centred_BKF**2).sum((1, 2), keepdim=True) / n_B11 + 1e-5)


class Recurrent(nn.Module):
    """GRUs that end with each clip.

    A backward layer hears each clip's own frames turned round, so that padding comes last for it, too. That gives what
    packed sequences give, which take four times as long on a CPU.
    """

    def __init__(self, n_bins: int, width: int, layers: int, bidirectional: bool):
        super().__init__()
        self.width = 2 * width if bidirectional else width
        inputs = [n_bins] + [self.width] * (layers - 1)
        self.forwards = nn.ModuleList(nn.GRU(n, width, batch_first=True) for n in inputs)
        self.backwards = nn.ModuleList(nn.GRU(n, width, batch_first=True) for n in inputs if bidirectional)

    def forward(self, x_BFK: Tensor, n_frames_B: Tensor) -> Tensor:
        frame_F = torch.arange(x_BFK.shape[1], device=x_BFK.device)
        turned_BF = torch.where(frame_F < n_frames_B[:, None], n_frames_B[:, None] - 1 - frame_F, frame_F)

        def turn(y_BFD: Tensor) -> Tensor:
            return y_BFD.gather(1, turned_BF[..., None].expand(-1, -1, y_BFD.shape[2]))

        # On CUDA autocast to bf16 gives recurrent layers fp16, whose small gradients are lost without a scaler.
        with torch.autocast(x_BFK.device.type, enabled=False):
            x_BFK = x_BFK.to(next(self.parameters()).dtype)
            for i, layer in enumerate(self.forwards):
                out_BFD = layer(x_BFK)[0]
                if len(self.backwards):
                    out_BFD = torch.cat([out_BFD, turn(self.backwards[i](turn(x_BFK))[0])], dim=2)
                x_BFK = out_BFD
            return x_BFK


class Convolutional(nn.Module):
    """Residual convolutions that see silence beyond each clip's end."""

    def __init__(self, n_bins: int, width: int, layers: int):
        super().__init__()
        self.width = width
        self.entry = nn.Conv1d(n_bins, width, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i) for i in range(layers)
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(1, width) for _ in range(layers))
        self.activations = nn.ModuleList(nn.PReLU() for _ in range(layers))

    def forward(self, x_BFK: Tensor, n_frames_B: Tensor) -> Tensor:
        x_BDF = self.entry(x_BFK.transpose(1, 2)) * valid_mask(n_frames_B, x_BFK.shape[1])[:, None]
        for convolution, norm, activation in zip(self.convolutions, self.norms, self.activations, strict=True):
            norm.lengths_B = n_frames_B
            x_BDF = x_BDF + activation(norm(convolution(x_BDF)))
        return x_BDF.transpose(1, 2)
