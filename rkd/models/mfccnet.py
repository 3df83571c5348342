"""A small convolutional CTC recogniser on cepstral coefficients, in the manner of Wav2Letter (Collobert et al. 2016).

Shapes: B batch, T samples, C cepstral coefficients, F frames, N steps, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rkd.features import MFCC
from rkd.masks import valid_mask
from rkd.models.base import check_layers, check_same_family, check_same_width, copy_layers
from rkd.models.framewise import FramewiseCTC
from rkd.tokenizer import Tokenizer


class Block(nn.Module):
    """A convolution in time, normalised over the width, with a residual connection."""

    def __init__(self, width: int, kernel: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, valid_BN1: Tensor) -> Tensor:
        """Return the next layer ``(B, N, D)``; steps beyond a clip's end do not count."""
        y_BND = self.conv((x_BND * valid_BN1).transpose(1, 2)).transpose(1, 2)
        return x_BND + self.dropout(nn.functional.gelu(self.norm(y_BND)))


class Encoder(nn.Module):
    """A convolution that halves the frame rate, and layers after it."""

    def __init__(self, n_mfcc: int, width: int, layers: int, kernel: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mfcc, width, 5, stride=2, padding=2)
        self.layers = nn.ModuleList(Block(width, kernel, dropout) for _ in range(layers))

    def forward(self, x_BCF: Tensor, frames_B: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return all layers' outputs ``(B, N, D)`` and the valid steps ``(B,)``."""
        outputs = [nn.functional.gelu(self.conv1(x_BCF)).transpose(1, 2)]
        steps_B = (frames_B + 1) // 2
        valid_BN1 = valid_mask(steps_B, outputs[0].shape[1])[..., None]
        for block in self.layers:
            outputs.append(block(outputs[-1], valid_BN1))
        return outputs, steps_B


class MFCCNet(FramewiseCTC):
    """Convolutions on MFCC features, and a linear head.

    Args:
        width: channels of every layer.
        encoder_layers: layers after the first convolution, which halves the frame rate.
        kernel: steps that a layer looks at; odd.
        n_mfcc, n_mels, hop: of the features.
        dropout: after every layer.
    """

    encoder: Encoder

    def __init__(
        self,
        tokenizer: Tokenizer,
        window_seconds: int,
        width: int,
        encoder_layers: int,
        kernel: int,
        n_mfcc: int,
        n_mels: int,
        hop: int,
        dropout: float,
    ):
        shape = {
            "width": width, "encoder_layers": encoder_layers, "kernel": kernel, "n_mfcc": n_mfcc, "n_mels": n_mels,
            "hop": hop, "dropout": dropout,
        }  # fmt: skip
        super().__init__(tokenizer, window_seconds, shape)
        self.depth = {"encoder": encoder_layers}
        self.width = width
        self.stride = 2 * hop
        self.features = MFCC(n_mfcc, n_mels, hop)
        self.encoder = Encoder(n_mfcc, width, encoder_layers, kernel, dropout)
        self.head = nn.Linear(width, len(tokenizer))

    def layers(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        return self.encoder(*self.features(waveform_BT, lengths_B))

    def start_from(self, teacher: MFCCNet, encoder_from: list[int] | None, decoder_from: list[int] | None) -> None:
        """Copy a teacher's first convolution, head and chosen layers (null: evenly spaced).

        Raises:
            ConfigError: the shapes differ in more than the number of layers.
        """
        check_same_family(self, teacher)
        check_same_width(self.shape, teacher.shape)
        self.encoder.conv1.load_state_dict(teacher.encoder.conv1.state_dict())
        self.head.load_state_dict(teacher.head.state_dict())
        chosen = check_layers("student.encoder_from", encoder_from, teacher.depth["encoder"], self.depth["encoder"])
        copy_layers(teacher.encoder.layers, self.encoder.layers, chosen)
