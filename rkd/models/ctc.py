"""A CTC recogniser of Whisper's encoder and a linear head.

Shapes: B batch, T samples, N encoder steps, L label tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import WhisperConfig

from rkd.audio import RATE_HZ
from rkd.features import LogMel
from rkd.masks import valid_mask
from rkd.models.attention import AttentionRecorder
from rkd.models.base import Streams, check_layers, check_same_family, check_same_width, copy_layers
from rkd.models.framewise import FramewiseCTC
from rkd.models.masked_whisper import MaskedEncoder
from rkd.tokenizer import Tokenizer


class CTC(FramewiseCTC):
    """Whisper's convolutional stem and encoder on log-mels. Arguments as for ``Whisper``.

    Provides ``attention.encoder.<i>`` besides, on request.
    """

    encoder: MaskedEncoder

    def __init__(
        self,
        tokenizer: Tokenizer,
        window_seconds: int,
        d_model: int,
        ffn: int,
        heads: int,
        encoder_layers: int,
        n_mels: int,
        hop: int,
        dropout: float,
    ):
        shape = {
            "d_model": d_model, "ffn": ffn, "heads": heads, "encoder_layers": encoder_layers,
            "n_mels": n_mels, "hop": hop, "dropout": dropout,
        }  # fmt: skip
        super().__init__(tokenizer, window_seconds, shape)
        self.depth = {"encoder": encoder_layers}
        self.width = d_model
        self.stride = 2 * hop
        self.features = LogMel(n_mels, hop)
        config = WhisperConfig(
            num_mel_bins=n_mels, d_model=d_model, encoder_layers=encoder_layers,
            encoder_attention_heads=heads, encoder_ffn_dim=ffn, dropout=dropout,
            max_source_positions=window_seconds * RATE_HZ // (2 * hop), init_std=d_model**-0.5,
            # Only the encoder is made; these keep the configuration within the vocabulary.
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.bos_token_id,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        self.encoder = MaskedEncoder(config)
        self.encoder.reset_convolutions()
        self.head = nn.Linear(d_model, len(tokenizer))
        self.attention: AttentionRecorder | None = None

    def provide_attention(self, part: str) -> None:
        """Give the attention maps of the ``encoder`` from now on."""
        if self.attention is None:
            self.attention = AttentionRecorder(self.encoder, [layer.self_attn for layer in self.encoder.layers])

    def layers(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        mel_BMF, frames_B = self.features(waveform_BT, lengths_B)
        _, layers, valid_BN = self.encoder(mel_BMF, valid_mask(frames_B, mel_BMF.shape[2])).of()
        return layers, valid_BN.sum(1)

    def forward(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams:
        """Return the streams for clips ``(B, T)``; labels and the text before are not looked at."""
        streams = super().forward(waveform_BT, lengths_B, labels_BL)
        if self.attention:
            steps_B = streams["ctc_logits"].lengths_B
            streams |= self.attention.streams("attention.encoder", steps_B, steps_B, self.stride)
        return streams

    def start_from(self, teacher: CTC, encoder_from: list[int] | None, decoder_from: list[int] | None) -> None:
        """Copy a teacher's convolutions, head and chosen layers (null: evenly spaced).

        Raises:
            ConfigError: the shapes differ in more than the number of layers.
        """
        check_same_family(self, teacher)
        check_same_width(self.shape, teacher.shape)
        for part in ("conv1", "conv2", "layer_norm"):
            getattr(self.encoder, part).load_state_dict(getattr(teacher.encoder, part).state_dict())
        self.head.load_state_dict(teacher.head.state_dict())
        chosen = check_layers("student.encoder_from", encoder_from, teacher.depth["encoder"], self.depth["encoder"])
        copy_layers(teacher.encoder.layers, self.encoder.layers, chosen)
