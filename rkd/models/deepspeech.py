"""The Deep Speech architecture (Hannun et al. 2014): dense layers around one recurrent layer, on spectra.

Shapes: B batch, T samples, K frequencies, F frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchaudio.models.deepspeech import DeepSpeech as Layers

from rkd.features import LogSpectrum
from rkd.models.base import check_same_family, check_same_width
from rkd.models.framewise import FramewiseCTC
from rkd.tokenizer import Tokenizer


class DeepSpeech(FramewiseCTC):
    """torchaudio's Deep Speech, whose recurrent layer ends where a clip ends.

    Args:
        width: units of every layer; 2048 in the paper.
        n_fft: window length of the spectra, in samples.
        hop: samples between two frames, which are the model's steps.
        dropout: after every dense layer.
    """

    encoder: Layers

    def __init__(self, tokenizer: Tokenizer, window_seconds: int, width: int, n_fft: int, hop: int, dropout: float):
        shape = {"width": width, "n_fft": n_fft, "hop": hop, "dropout": dropout}
        super().__init__(tokenizer, window_seconds, shape)
        self.depth = {"encoder": 4}  # the first dense layer gives the input of the others
        self.width = width
        self.stride = hop
        self.features = LogSpectrum(n_fft, hop)
        self.encoder = Layers(n_fft // 2 + 1, width, len(tokenizer), dropout)
        self.head = self.encoder.out
        del self.encoder.out

    def layers(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        x_BKF, frames_B = self.features(waveform_BT, lengths_B)
        layers = [self.encoder.fc1(x_BKF.transpose(1, 2))]
        for dense in (self.encoder.fc2, self.encoder.fc3):
            layers.append(dense(layers[-1]))
        # Packed, the backward direction starts at a clip's own end; torchaudio's layer wants time first.
        # On CUDA autocast to bf16 gives recurrent layers fp16, where these, which have no bound, overflow.
        with torch.autocast(x_BKF.device.type, enabled=False):
            heard_FBD = layers[-1].transpose(0, 1).to(self.encoder.bi_rnn.weight_ih_l0.dtype)
            packed = pack_padded_sequence(heard_FBD, frames_B.cpu(), enforce_sorted=False)
            both_BFD, _ = pad_packed_sequence(self.encoder.bi_rnn(packed)[0], True, total_length=x_BKF.shape[2])
        layers.append(both_BFD[..., : self.width] + both_BFD[..., self.width :])
        layers.append(self.encoder.fc4(layers[-1]))
        return layers, frames_B

    def start_from(self, teacher: DeepSpeech, encoder_from: Any, decoder_from: Any) -> None:
        """Copy all of a teacher's weights.

        Raises:
            ConfigError: the shapes differ.
        """
        check_same_family(self, teacher)
        check_same_width(self.shape, teacher.shape)
        self.load_state_dict(teacher.state_dict())
