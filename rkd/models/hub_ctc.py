"""Pretrained CTC models on waveforms.

wav2vec 2.0 (Baevski et al. 2020), HuBERT (Hsu et al. 2021) and WavLM (Chen et al. 2022).

Shapes: B batch, T samples, F frames, D width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCTC, Wav2Vec2FeatureExtractor
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

from rkd.errors import CheckpointError, ConfigError
from rkd.features import silenced
from rkd.masks import valid_mask
from rkd.models.attention import AttentionRecorder
from rkd.models.base import Streams, check_layers, check_same_family
from rkd.models.framewise import CTCRecogniser
from rkd.models.norms import MaskedGroupNorm
from rkd.models.pretrained import load_pretrained, take_layers
from rkd.tokenizer import Tokenizer, build_letters, load_tokenizer

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm")
HEAD = ("lm_head.weight", "lm_head.bias")


class HubCTC(CTCRecogniser):
    """A CTC model of a folder in Transformers' form: characters from waveforms.

    Provides ``attention.encoder.<i>`` besides, on request.

    Args:
        source: the folder: a pretrained model, or a student that was made from one.
        weights: whether the folder's weights are loaded; otherwise they are random.
        tokenizer: of a vocabulary of its own, whose head is fresh; None for the folder's.
        encoder_layers: of a model without the folder's weights; None for as many as the folder's.
        dropout: after the embeddings and every sublayer; None for the folder's.

    Raises:
        CheckpointError: the folder is damaged, or of another kind.
        ConfigError: other layers are asked for than the weights have.
    """

    window_seconds = 30  # positions are relative: any length is heard; this is what a corpus may have at most

    def __init__(
        self,
        source: Path,
        weights: bool = True,
        tokenizer: Tokenizer | None = None,
        encoder_layers: int | None = None,
        dropout: float | None = None,
    ):
        super().__init__()
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=True)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(source, local_files_only=True)
        except Exception as error:  # whatever its parsers raise
            raise CheckpointError(f"{source} holds no readable CTC settings ({error}); copy them again") from error
        if config.model_type not in MODEL_TYPES:
            raise CheckpointError(f"{source} is a {config.model_type} model; expected {', '.join(MODEL_TYPES)}")
        if weights and encoder_layers not in (None, config.num_hidden_layers):
            raise ConfigError(
                f"{source} has {config.num_hidden_layers} layers; fewer need student.init=teacher, or init=random"
            )
        config.num_hidden_layers = encoder_layers or config.num_hidden_layers
        config.hidden_dropout = config.hidden_dropout if dropout is None else dropout
        config.apply_spec_augment = False  # its masks come from NumPy's global generator: no training could be resumed
        self.fresh = HEAD if tokenizer else ()
        self.tokenizer = tokenizer or load_tokenizer(source)
        if tokenizer:
            config.update({"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
                           "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id})  # fmt: skip
        model_class = MODEL_FOR_CTC_MAPPING[type(config)]
        self.hf: Any
        if weights:
            self.hf = load_pretrained(model_class, source, config, self.fresh)
        else:
            self.hf = AutoModelForCTC.from_config(config)
        first = self.hf.base_model.feature_extractor.conv_layers[0]
        if config.feat_extract_norm == "group":  # a group a channel
            state = first.layer_norm.state_dict()
            first.layer_norm = MaskedGroupNorm(first.layer_norm.num_groups, first.layer_norm.num_channels)
            first.layer_norm.load_state_dict(state)
        self.extractor = extractor
        self.depth = {"encoder": config.num_hidden_layers}
        self.width = config.hidden_size
        self.stride = math.prod(config.conv_stride)
        self.shape: dict[str, Any] = {}
        self.attention: AttentionRecorder | None = None

    def provide_attention(self, part: str) -> None:
        """Give the attention maps of the ``encoder`` from now on; in training no layer is left out any more."""
        if self.attention is None:
            self.hf.config.layerdrop = 0.0
            layers = [layer.attention for layer in self.hf.base_model.encoder.layers]
            self.attention = AttentionRecorder(self.hf, layers)

    @staticmethod
    def new_tokenizer(texts: Iterable[str], kind: str) -> Tokenizer:
        """Make a vocabulary of a corpus's characters from its training texts, whatever the kind asked for."""
        return build_letters(texts)

    def frames(self, lengths_B: Tensor, layers: int | None = None) -> Tensor:
        """Return how many frames the convolutions, or the first of them, make of clips of so many samples."""
        kernels, strides = self.hf.config.conv_kernel, self.hf.config.conv_stride
        for kernel, stride in list(zip(kernels, strides, strict=True))[:layers]:
            lengths_B = torch.div(lengths_B - kernel, stride, rounding_mode="floor") + 1
        return lengths_B.clamp(min=0)

    def normalise(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return clips of mean 0 and variance 1 over their own samples, where the model wants them so; zero beyond."""
        wave_BT = silenced(waveform_BT, lengths_B, int(lengths_B.max()))
        if not self.extractor.do_normalize:
            return wave_BT
        valid_BT = valid_mask(lengths_B, wave_BT.shape[1])
        n_B1 = lengths_B[:, None]
        centred_BT = torch.where(valid_BT, wave_BT - wave_BT.sum(1, keepdim=True) / n_B1, 0.0)
        return centred_BT * torch.rsqrt((centred_BT**2).sum(1, keepdim=True) / n_B1 + 1e-7)

    def forward(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams:
        """Return the streams for clips ``(B, T)``; labels and the text before are not looked at."""
        wave_BT = self.normalise(waveform_BT, lengths_B)
        first = self.hf.base_model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), MaskedGroupNorm):
            first.layer_norm.lengths_B = self.frames(lengths_B, 1)
        mask_BT = valid_mask(lengths_B, wave_BT.shape[1]).long()
        with warnings.catch_warnings():
            # WavLM's own layers give torch a mask of another type than the bias of its positions.
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
            out = self.hf(wave_BT, attention_mask=mask_BT, output_hidden_states=True)
        steps_B = self.frames(lengths_B)
        streams = self.streams(out.logits, out.hidden_states, steps_B)
        if self.attention:
            streams |= self.attention.streams("attention.encoder", steps_B, steps_B, self.stride)
        return streams

    def start_from(self, teacher: Any, encoder_from: list[int] | None, decoder_from: list[int] | None) -> None:
        """Copy a teacher's weights, and of its layers the chosen ones (null: evenly spaced).

        Raises:
            ConfigError: the teacher is of another family, or has not so many layers.
        """
        check_same_family(self, teacher)
        chosen = check_layers("student.encoder_from", encoder_from, teacher.depth["encoder"], self.depth["encoder"])
        stack = f"{self.hf.base_model_prefix}.encoder.layers"
        taken = take_layers(self.hf.state_dict(), teacher.hf.state_dict(), {stack: chosen})
        self.hf.load_state_dict({k: v for k, v in taken.items() if k not in self.fresh}, strict=False)

    def save(self, folder: Path) -> None:
        """Write a folder that ``load``, Transformers' CTC classes and ``pipeline()`` read."""
        self.hf.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> HubCTC:
        """Load what ``save`` wrote; errors as of the constructor."""
        return cls(folder, **card["shape"])
