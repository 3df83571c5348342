"""The Whisper architecture on Transformers' own weights, made to see a clip alike alone and in a batch.

Transformers' Whisper takes exactly one window of features and masks nothing, so a clip's output depends on the padding
around it. Here the padding is masked in the convolutions, in self-attention and in cross-attention, and positions end
with the batch's longest clip; the state dict stays Transformers', so a saved model loads there and runs in
``pipeline()``.

Shapes: B batch, M mel bins, F mel frames, N encoder steps, D width, L and I tokens that the decoder is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperForConditionalGeneration, sinusoids

from rkd.errors import DataError
from rkd.masks import valid_mask


@dataclass
class MaskedOutput(BaseModelOutput):
    """Encoder output that carries which of its steps are speech, so that the decoder can mask the others."""

    valid: Tensor | None = None

    def of(self) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Return last layer, all layers and valid steps, none of which is missing."""
        assert self.last_hidden_state is not None and self.hidden_states is not None and self.valid is not None
        return self.last_hidden_state, self.hidden_states, self.valid


class MaskedEncoder(WhisperEncoder):
    """Whisper's encoder for clips of uneven length."""

    def __init__(self, config: WhisperConfig):
        super().__init__(config)
        # Transformers does this for classes of its own package alone: here the frozen table would stay random.
        with torch.no_grad():
            self.embed_positions.weight.copy_(sinusoids(*self.embed_positions.weight.shape))

    def reset_convolutions(self) -> None:
        """Initialise the convolutions by their fan-in.

        With Transformers' standard deviation of 0.02, made for fine-tuning, features reach the first layer at a
        hundredth of the height of the positions, and training from scratch takes several times as long.
        """
        self.conv1.reset_parameters()
        self.conv2.reset_parameters()

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **_: Any) -> MaskedOutput:
        """Encode log-mels ``(B, M, F)`` of which ``attention_mask`` ``(B, F)`` marks the valid frames."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_features[:, 0], dtype=torch.bool)
        frames_B = attention_mask.sum(1)
        x_BDF = nn.functional.gelu(self.conv1(input_features * attention_mask[:, None]))
        # What the first convolution smears over a clip's end would reach back through the second.
        x_BDF = nn.functional.gelu(self.conv2(x_BDF * attention_mask[:, None]))
        x_BND = x_BDF.transpose(1, 2)
        n = x_BND.shape[1]
        if n > self.embed_positions.num_embeddings:
            raise DataError(
                f"a clip of {n} encoder steps is longer than the model's window of "
                f"{self.embed_positions.num_embeddings}; set data.max_seconds below the "
                "window, or train a model with a longer one"
            )
        x_BND = x_BND + self.embed_positions.weight[:n]
        x_BND = nn.functional.dropout(x_BND, self.dropout, self.training)
        valid_BN = valid_mask((frames_B + 1) // 2, n)
        mask = create_bidirectional_mask(self.config, x_BND, valid_BN)
        hidden = [x_BND]
        for layer in self.layers:
            x_BND = layer(x_BND, mask)
            hidden.append(x_BND)
        hidden[-1] = x_BND = self.layer_norm(x_BND)
        return MaskedOutput(last_hidden_state=x_BND, hidden_states=tuple(hidden), valid=valid_BN)


class MaskedWhisper(WhisperForConditionalGeneration):
    """Transformers' Whisper with the masked encoder, and cross-attention that looks at speech alone."""

    def __init__(self, config: WhisperConfig):
        super().__init__(config)
        self.model.encoder = MaskedEncoder(config)
        self.post_init()
        self.model.encoder.reset_convolutions()
        self._valid_BN: Tensor | None = None
        for layer in self.model.decoder.layers:
            # Transformers' decoder passes no mask on to cross-attention.
            layer.encoder_attn.register_forward_pre_hook(self._mask_cross_attention, with_kwargs=True)

    def forward(self, *args: Any, encoder_outputs: Any = None, **kwargs: Any) -> Any:
        """Run the decoder on the masked encoder's output; see Transformers for the arguments."""
        self._valid_BN = getattr(encoder_outputs, "valid", None)
        return super().forward(*args, encoder_outputs=encoder_outputs, **kwargs)

    def decode(self, inputs_BI: Tensor, encoded: MaskedOutput) -> Any:
        """Run the decoder up to its output layer; see Transformers for what it gives."""
        self._valid_BN = encoded.valid
        return self.model(
            decoder_input_ids=inputs_BI, encoder_outputs=encoded, use_cache=False, output_hidden_states=True
        )

    def _mask_cross_attention(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        query_BLD = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        kwargs["attention_mask"] = create_bidirectional_mask(
            self.config, query_BLD, self._valid_BN, encoder_hidden_states=kwargs["key_value_states"]
        )
        return args, kwargs
