"""Recognisers of the Whisper architecture: what they make of waveforms, labels and prompts; those of rkd's own shapes.

Shapes: B batch, T samples, M mel bins, N encoder steps, D width, L label tokens, P tokens of the text before,
I tokens that the decoder is given, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.utils.logging import disable_progress_bar

from rkd.audio import RATE_HZ
from rkd.data.batches import pad_labels
from rkd.errors import CheckpointError, ConfigError, DataError
from rkd.features import LogMel
from rkd.masks import valid_mask
from rkd.models.attention import AttentionRecorder
from rkd.models.base import Projected, Stream, Streams, check_layers, check_same_family, check_same_width, copy_layers
from rkd.models.masked_whisper import MaskedOutput, MaskedWhisper
from rkd.tokenizer import START_OF_PREVIOUS, Tokenizer, decode, encode, load_tokenizer, text_tokens

MAX_LABEL_TOKENS = 448


class WhisperRecogniser(nn.Module):
    """What the Whisper architecture does with waveforms, wherever its weights come from.

    Provides the streams ``logits`` (label tokens, the prompt left out), ``hidden.encoder.<i>`` and
    ``hidden.decoder.<i>``, where layer 0 is the input of the first layer; on request ``attention.encoder.<i>`` and
    ``attention.cross.<i>``.

    Args:
        hf: the encoder and decoder.
        tokenizer: of the labels.
        features: log-mels; the encoder's stride is twice their hop.
        window_seconds: longest clip that the model can hear; also what ``pipeline()`` pads to.
        prompt: the tokens that precede every transcript, the last of which asks for none of its times.
        decoding: special and suppressed tokens of a search.
    """

    def __init__(
        self,
        hf: MaskedWhisper,
        tokenizer: Tokenizer,
        features: LogMel,
        window_seconds: int,
        prompt: list[int],
        decoding: GenerationConfig,
    ):
        super().__init__()
        self.hf, self.tokenizer, self.features = hf, tokenizer, features
        self.window_seconds = window_seconds
        self.prompt, self.decoding = prompt, decoding
        self.timed_from = tokenizer.get_vocab().get("<|0.00|>")
        self.depth = {"encoder": hf.config.encoder_layers, "decoder": hf.config.decoder_layers}
        self.width = hf.config.d_model
        self.stride = 2 * features.hop
        self.attention: dict[str, AttentionRecorder] = {}

    def provide_attention(self, part: str) -> None:
        """Give the attention maps of the ``encoder``, or of the decoder to it (``cross``), from now on."""
        if part not in self.attention:
            encoder, decoder = self.hf.model.encoder, self.hf.model.decoder
            layers = [x.self_attn for x in encoder.layers] if part == "encoder" else [
                x.encoder_attn for x in decoder.layers
            ]  # fmt: skip
            self.attention[part] = AttentionRecorder(self.hf, layers)

    def encode(self, waveform_BT: Tensor, lengths_B: Tensor) -> MaskedOutput:
        """Return the encoder's output for clips ``(B, T)``."""
        mel_BMF, frames_B = self.features(waveform_BT, lengths_B)
        return self.hf.model.encoder(mel_BMF, valid_mask(frames_B, mel_BMF.shape[2]))

    def forward(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams:
        """Return the streams for clips ``(B, T)``, teacher-forced.

        Args:
            labels_BL: padded with -100; those that begin with a timestamp are asked for with timestamps.
            before_BP: what was said before, as the decoder is told it: empty or from the token of its start on, padded
                with -100; None where nothing was.

        Raises:
            DataError: a transcript is longer than the decoder's.
        """
        encoded = self.encode(waveform_BT, lengths_B)
        _, layers, _ = encoded.of()
        inputs_BI, first_B = self._teacher_forced(labels_BL, before_BP)
        decoded = self.hf.decode(inputs_BI, encoded)

        def predictions(x_BI: Tensor) -> Tensor:
            """Return, of what the decoder gives at each of its tokens, that from which a label is predicted."""
            if isinstance(first_B, int):  # a view, where all rows are alike
                return x_BI[:, first_B:]
            rows_B1 = torch.arange(len(x_BI), device=x_BI.device)[:, None]
            return x_BI[rows_B1, first_B[:, None] + torch.arange(labels_BL.shape[1], device=x_BI.device)]

        label_lengths_B = (labels_BL >= 0).sum(1)
        # A window may be longer than what was said in it: streams end with the speech.
        steps_B = (self.features.lengths(lengths_B) + 1) // 2
        n = int(steps_B.max())
        streams: Streams = {
            "logits": Projected(
                predictions(decoded.last_hidden_state), self.hf.proj_out, self.hf.config.vocab_size, label_lengths_B
            )
        }
        for i, hidden_BND in enumerate(layers):
            streams[f"hidden.encoder.{i}"] = Stream(hidden_BND[:, :n], steps_B, self.stride)
        for i, hidden_BLD in enumerate(decoded.decoder_hidden_states):
            streams[f"hidden.decoder.{i}"] = Stream(predictions(hidden_BLD), label_lengths_B, None)
        if recorder := self.attention.get("encoder"):
            streams |= recorder.streams("attention.encoder", steps_B, steps_B, self.stride, lambda x_BNN: x_BNN[:, :n])
        if recorder := self.attention.get("cross"):
            streams |= recorder.streams("attention.cross", steps_B, label_lengths_B, None, predictions)
        return streams

    def _teacher_forced(self, labels_BL: Tensor, before_BP: Tensor | None) -> tuple[Tensor, Tensor | int]:
        """Return what the decoder is given, and which of it gives each clip's first label.

        That is what was said before, the prompt, and the labels, of which each is predicted from those before it.

        Returns:
            inputs ``(B, I)``; numbers ``(B,)``, or one for all clips.
        """
        timed_B, n_labels = self.timed(labels_BL), labels_BL.shape[1]
        first_B: Tensor | int = len(self.prompt) - 1
        if before_BP is None and not timed_B.any():
            prompt_BP = torch.tensor([self.prompt], device=labels_BL.device).expand(len(labels_BL), -1)
            inputs_BI = torch.cat([prompt_BP, labels_BL[:, :-1].clamp(min=0)], dim=1)
        else:
            told = [[] for _ in labels_BL] if before_BP is None else before_BP.tolist()
            prompts = [
                [*(token for token in row if token >= 0), *self.prompt_for(timed)]
                for row, timed in zip(told, timed_B.tolist(), strict=True)
            ]
            labels = labels_BL[:, :-1].clamp(min=0).tolist()
            given = [[*prompt, *row] for prompt, row in zip(prompts, labels, strict=True)]
            inputs_BI = pad_labels(given).clamp(min=0).to(labels_BL.device)
            first_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=labels_BL.device)
        if inputs_BI.shape[1] >= (longest := self.hf.config.max_target_positions):
            raise DataError(
                f"a transcript of {n_labels} tokens is longer than the decoder's {longest}; "
                "set data.max_seconds lower or data.tokenizer=word"
            )
        return inputs_BI, first_B

    def timed(self, labels_BL: Tensor) -> Tensor:
        """Say which labels ``(B, L)`` begin with a timestamp; shape ``(B,)``."""
        first_B1 = labels_BL[:, :1]
        return (first_B1 >= self.timed_from).any(1) if self.timed_from else torch.zeros_like(first_B1).bool().any(1)

    def prompt_for(self, timestamps: bool) -> list[int]:
        """Return the prompt of a transcript with or without timestamps."""
        return self.prompt[:-1] if timestamps else self.prompt

    def told(self, text: str) -> list[int]:
        """Return how the decoder is told of a text that was said before; of a long one its end.

        At most half of what the decoder holds, as in Whisper (Radford et al. 2022, section 2.3, and its code).

        Raises:
            ConfigError: the vocabulary has no token for that.
        """
        start = self.tokenizer.get_vocab().get(START_OF_PREVIOUS)
        if start is None:
            raise ConfigError(f"the vocabulary has no {START_OF_PREVIOUS}: set transcripts.text_before=0")
        return [start, *encode(self.tokenizer, text)[:-1][1 - self.hf.config.max_target_positions // 2 :]]

    @torch.no_grad()
    def transcribe(self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1) -> list[str]:
        """Return the transcripts of clips ``(B, T)`` by greedy (``beams=1``) or beam search."""
        return [decode(self.tokenizer, tokens) for tokens in self.write(waveform_BT, lengths_B, beams)]

    @torch.no_grad()
    def write(
        self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1, timestamps: bool = False
    ) -> list[list[int]]:
        """Return the label tokens of those transcripts, with the end of text where the search came so far.

        Args:
            timestamps: ask for them: the labels begin with one.

        Raises:
            ConfigError: the vocabulary has no timestamps.
        """
        if timestamps and not self.timed_from:
            raise ConfigError("the vocabulary has no timestamps: set transcripts.timestamps=0")
        return [self._labels(row, timestamps) for row in self.search(waveform_BT, lengths_B, beams, (), timestamps)]

    @torch.no_grad()
    def sample(
        self, waveform_BT: Tensor, lengths_B: Tensor, temperature: float, seeds_B: Sequence[int]
    ) -> list[list[int]]:
        """Return the label tokens of transcripts that are drawn, and not searched for; of text alone.

        Args:
            temperature: of the distribution that each token is drawn from; 0 takes the likeliest.
            seeds_B: of each clip's draws, which depend on nothing else.
        """
        drawing = Drawing(sorted(text_tokens(self.tokenizer).values()), temperature, seeds_B, waveform_BT.device)
        return [self._labels(row) for row in self.search(waveform_BT, lengths_B, processors=[drawing])]

    def _labels(self, row: list[int], timestamps: bool = False) -> list[int]:
        tokens, end = row[len(self.prompt_for(timestamps)) :], self.tokenizer.eos_token_id
        return tokens[: tokens.index(end) + 1] if end in tokens else tokens

    def search(
        self,
        waveform_BT: Tensor,
        lengths_B: Tensor,
        beams: int = 1,
        processors: Sequence[LogitsProcessor] = (),
        timestamps: bool = False,
    ) -> list[list[int]]:
        """Return the prompt and the tokens found after it, for clips ``(B, T)``; processors change the logits."""
        encoded = self.encode(waveform_BT, lengths_B)
        prompt = self.prompt_for(timestamps)
        prompt_BP = torch.tensor([prompt], device=waveform_BT.device).expand(len(waveform_BT), -1)
        if timestamps:
            processors = [*processors, WhisperTimeStampLogitsProcessor(self.decoding, len(prompt))]
        # Speech has no more than about 25 characters a second; a decoder that loops is stopped there, each clip at its
        # own limit, whatever it is batched with.
        window = self.window_seconds * RATE_HZ
        *limits, longest = [
            min(self.hf.config.max_target_positions, len(prompt) + 8 + 25 * n // RATE_HZ)
            for n in [*lengths_B.tolist(), window]
        ]
        # Whisper's own generate() is about 30 s windows and timestamps; the plain one does all that is needed here.
        generate: Any = GenerationMixin.generate
        decoding = copy.deepcopy(self.decoding)
        # Where a search ends decides which of its beams wins.
        decoding.update(num_beams=beams, do_sample=False, max_length=max(limits) if beams == 1 else longest)
        tokens_BL = generate(
            self.hf, generation_config=decoding, decoder_input_ids=prompt_BP, encoder_outputs=encoded,
            attention_mask=encoded.of()[2].long(),  # asked for; what masks is in the encoder's output
            logits_processor=LogitsProcessorList(processors),
            synced_gpus=False,  # a rank searches by itself, though its model may be one that is trained divided
        )  # fmt: skip
        return [row[:limit] for row, limit in zip(tokens_BL.tolist(), limits, strict=True)]

    def save_transformers(self, folder: Path) -> None:
        """Write what Transformers' Whisper classes and ``pipeline()`` read: weights, settings, tokenizer, features."""
        disable_progress_bar()
        self.hf.save_pretrained(folder)
        config_path = folder / "config.json"
        config = json.loads(config_path.read_text())
        config["architectures"] = ["WhisperForConditionalGeneration"]
        config_path.write_text(json.dumps(config, indent=2) + "\n")
        self.tokenizer.save_pretrained(folder)
        WhisperFeatureExtractor(
            feature_size=self.hf.config.num_mel_bins, hop_length=self.features.hop, chunk_length=self.window_seconds,
            n_fft=self.features.n_fft,
        ).save_pretrained(folder)  # fmt: skip


class Whisper(WhisperRecogniser):
    """The Whisper architecture in a shape of rkd's own, with an auxiliary CTC head on its encoder.

    Provides ``ctc_logits`` besides the streams of ``WhisperRecogniser``.

    Args:
        tokenizer: made from the corpus, or the teacher's.
        window_seconds: longest clip that the model can hear; also what ``pipeline()`` pads to.
        d_model, ffn, heads, encoder_layers, decoder_layers, dropout: the shape.
        n_mels, hop: log-mel bins and samples between frames; the encoder's stride is twice the hop.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        window_seconds: int,
        d_model: int,
        ffn: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        n_mels: int,
        hop: int,
        dropout: float,
    ):
        decoding: Any = plain_decoding(tokenizer)
        config = WhisperConfig(
            num_mel_bins=n_mels, d_model=d_model, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
            encoder_attention_heads=heads, decoder_attention_heads=heads,
            encoder_ffn_dim=ffn, decoder_ffn_dim=ffn, dropout=dropout,
            max_source_positions=window_seconds * RATE_HZ // (2 * hop), max_target_positions=MAX_LABEL_TOKENS,
            init_std=d_model**-0.5, **vocabulary_of(tokenizer),
        )  # fmt: skip
        hf = MaskedWhisper(config)
        hf.generation_config = decoding
        prompt = [decoding.decoder_start_token_id, decoding.no_timestamps_token_id]
        super().__init__(hf, tokenizer, LogMel(n_mels, hop), window_seconds, prompt, decoding)
        self.shape = {
            "d_model": d_model, "ffn": ffn, "heads": heads, "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers, "n_mels": n_mels, "hop": hop, "dropout": dropout,
        }  # fmt: skip
        self.ctc_head = nn.Linear(d_model, len(tokenizer))

    def forward(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams:
        """Return the streams for clips ``(B, T)``, teacher-forced; arguments and errors as of ``WhisperRecogniser``."""
        streams = super().forward(waveform_BT, lengths_B, labels_BL, before_BP)
        last = streams[f"hidden.encoder.{self.depth['encoder']}"]
        streams["ctc_logits"] = Stream(self.ctc_head(last.values_BND), last.lengths_B, last.stride)
        return streams

    def start_from(self, teacher: Whisper, encoder_from: list[int] | None, decoder_from: list[int] | None) -> None:
        """Copy a teacher's embeddings, convolutions and chosen layers (null: evenly spaced, Distil-Whisper).

        Raises:
            ConfigError: the shapes differ in more than the number of layers.
        """
        check_same_family(self, teacher)
        check_same_width(self.shape, teacher.shape)
        ours, theirs = self.hf.model, teacher.hf.model
        ours.encoder.conv1.load_state_dict(theirs.encoder.conv1.state_dict())
        ours.encoder.conv2.load_state_dict(theirs.encoder.conv2.state_dict())
        ours.encoder.layer_norm.load_state_dict(theirs.encoder.layer_norm.state_dict())
        ours.decoder.embed_tokens.load_state_dict(theirs.decoder.embed_tokens.state_dict())
        ours.decoder.embed_positions.load_state_dict(theirs.decoder.embed_positions.state_dict())
        ours.decoder.layer_norm.load_state_dict(theirs.decoder.layer_norm.state_dict())
        self.ctc_head.load_state_dict(teacher.ctc_head.state_dict())
        for part, chosen in (("encoder", encoder_from), ("decoder", decoder_from)):
            chosen = check_layers(f"student.{part}_from", chosen, teacher.depth[part], self.depth[part])
            copy_layers(getattr(theirs, part).layers, getattr(ours, part).layers, chosen)

    def save(self, folder: Path) -> None:
        """Write a folder that ``load`` reads and that Transformers' Whisper classes and ``pipeline()`` read too."""
        self.save_transformers(folder)
        save_file({k: v.contiguous() for k, v in self.ctc_head.state_dict().items()}, folder / "ctc_head.safetensors")

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Whisper:
        """Load what ``save`` wrote.

        Raises:
            CheckpointError: a file is missing, damaged or of another shape.
        """
        model = cls(load_tokenizer(folder), card["window_seconds"], **card["shape"])
        try:
            weights = load_file(folder / "model.safetensors")
            weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
            model.hf.load_state_dict(weights)
            model.ctc_head.load_state_dict(load_file(folder / "ctc_head.safetensors"))
        except Exception as error:
            raise CheckpointError(
                f"{folder} does not hold a readable Whisper model ({error}); rebuild it or name another folder"
            ) from error
        return model


class Drawing(LogitsProcessor):
    """Makes a greedy search draw its tokens: the largest of logits with Gumbel noise is a draw from their softmax.

    The Gumbel-max trick (Maddison, Tarlow & Minka 2014). Each clip has a generator of its own, so that what is drawn
    for it does not depend on what it is batched with, and nothing global is touched.

    Args:
        tokens: those that may be drawn.
        temperature: that divides the logits; 0 draws nothing and takes the likeliest.
        seeds_B: of the clips' generators.
    """

    def __init__(self, tokens: Sequence[int], temperature: float, seeds_B: Sequence[int], device: torch.device):
        self.tokens, self.temperature = torch.tensor(tokens, device=device), temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds_B]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed_V = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
        allowed_V[self.tokens] = True
        scores_BV = scores.float().masked_fill(~allowed_V, -torch.inf)
        if self.temperature == 0:
            return scores_BV
        exponential_BV = torch.stack([
            torch.empty(scores.shape[-1], device=scores.device).exponential_(generator=g) for g in self.generators
        ])  # fmt: skip
        return scores_BV / self.temperature - exponential_BV.log()  # minus its logarithm is Gumbel noise


def vocabulary_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the part of a Whisper configuration that a tokenizer decides, nothing suppressed."""
    return {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        "suppress_tokens": None, "begin_suppress_tokens": None,
    }  # fmt: skip


def plain_decoding(tokenizer: Tokenizer) -> GenerationConfig:
    """Return the generation settings of a model with one language, one task and no suppressed tokens."""
    start, no_timestamps = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    return GenerationConfig(
        decoder_start_token_id=start, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, no_timestamps_token_id=no_timestamps, return_timestamps=False,
        max_length=MAX_LABEL_TOKENS, is_multilingual=False,
    )  # fmt: skip
