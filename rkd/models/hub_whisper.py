"""Pretrained Whisper models, and students in their shapes (Radford et al. 2022; Gandhi et al. 2023, Distil-Whisper).

Shapes: B batch, T samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from rkd.audio import RATE_HZ
from rkd.console import warn
from rkd.errors import CheckpointError, ConfigError, DataError
from rkd.features import LogMel
from rkd.models.base import check_layers, check_same_family
from rkd.models.masked_whisper import MaskedOutput, MaskedWhisper
from rkd.models.pretrained import load_pretrained, take_layers
from rkd.models.whisper import WhisperRecogniser, plain_decoding, vocabulary_of
from rkd.tokenizer import Tokenizer, build_tokenizer, load_tokenizer

# Multilingual models have at least this many tokens (whisper/model.py, is_multilingual).
MULTILINGUAL_VOCABULARY = 51865
EMBEDDING = "model.decoder.embed_tokens.weight"


class HubWhisper(WhisperRecogniser):
    """A Whisper of a folder in Transformers' form.

    Args:
        source: the folder: a pretrained model, or a student that was made from one.
        weights: whether the folder's weights are loaded; otherwise they are random.
        tokenizer: of a vocabulary of its own, whose embeddings are fresh; None for the folder's.
        language: of the transcripts, such as ``en``; models that know English alone take no other.
        task: ``transcribe``, or ``translate`` to English.
        window: ``original``: every clip is heard with silence up to 30 s, as the model was trained; ``trimmed``: up to
            the longest clip of its batch, with masks, which takes far less time and wants training.
        encoder_layers, decoder_layers: of a model without the folder's weights; None for as many as the folder's.
        dropout: after the embeddings and every sublayer; None for the folder's.

    Raises:
        CheckpointError: the folder is damaged.
        ConfigError: the model lacks the language.
    """

    def __init__(
        self,
        source: Path,
        weights: bool = True,
        tokenizer: Tokenizer | None = None,
        language: str = "en",
        task: str = "transcribe",
        window: str = "trimmed",
        encoder_layers: int | None = None,
        decoder_layers: int | None = None,
        dropout: float | None = None,
    ):
        config, extractor, generation = read_settings(source)
        if weights and {encoder_layers, decoder_layers} - {None, config.encoder_layers, config.decoder_layers}:
            raise ConfigError(
                f"{source} has {config.encoder_layers} encoder and {config.decoder_layers} decoder layers; fewer need "
                "student.init=teacher, or student.init=random"
            )
        if decoder_layers not in (None, config.decoder_layers) and hasattr(generation, "alignment_heads"):
            del generation.alignment_heads  # they number layers
        config.encoder_layers = encoder_layers or config.encoder_layers
        config.decoder_layers = decoder_layers or config.decoder_layers
        config.dropout = config.dropout if dropout is None else dropout
        fresh = (EMBEDDING, "proj_out.weight") if tokenizer else ()
        if tokenizer:
            config.update(vocabulary_of(tokenizer))
            generation = plain_decoding(tokenizer)
        tokenizer = tokenizer or load_tokenizer(source)
        decoding, prompt = decoding_of(config, generation, tokenizer, language, task, source)
        if weights:
            hf = load_pretrained(MaskedWhisper, source, config, fresh)
        else:
            config.init_std = config.d_model**-0.5
            hf = MaskedWhisper(config)
        hf.generation_config = generation
        features = LogMel(config.num_mel_bins, extractor.hop_length, extractor.n_fft)
        super().__init__(hf, tokenizer, features, extractor.chunk_length, prompt, decoding)
        self.window, self.fresh = window, fresh
        self.shape = {"language": language, "task": task, "window": window}

    @staticmethod
    def new_tokenizer(texts: Iterable[str], kind: str) -> Tokenizer:
        """Make a vocabulary of its own from a corpus's training texts."""
        return build_tokenizer(texts, kind)

    def encode(self, waveform_BT: Tensor, lengths_B: Tensor) -> MaskedOutput:
        """Return the encoder's output for clips ``(B, T)``: of the whole window, or of the batch's longest clip."""
        n_samples = self.window_seconds * RATE_HZ
        if int(lengths_B.max()) > n_samples:
            raise DataError(f"a clip is longer than the model's window of {self.window_seconds} s; set "
                            f"data.max_seconds={self.window_seconds}")  # fmt: skip
        if self.window == "trimmed":
            return super().encode(waveform_BT, lengths_B)
        return self.hf.model.encoder(self.features.of_window(waveform_BT, lengths_B, n_samples))

    def with_padding(self) -> HubWhisper | None:
        """Return this model, its weights shared, as it hears clips with silence up to its window; None: it does now."""
        if self.window == "original":
            return None
        other = copy.copy(self)
        other.window, other.shape = "original", {**self.shape, "window": "original"}
        return other

    def start_from(self, teacher: Any, encoder_from: list[int] | None, decoder_from: list[int] | None) -> None:
        """Copy a teacher's weights, and of its layers the chosen ones (null: evenly spaced, Distil-Whisper).

        Raises:
            ConfigError: the teacher is of another family, or has not so many layers.
        """
        check_same_family(self, teacher)
        chosen = {
            f"model.{part}.layers": check_layers(f"student.{part}_from", layers, teacher.depth[part], self.depth[part])
            for part, layers in (("encoder", encoder_from), ("decoder", decoder_from))
        }
        taken = take_layers(self.hf.state_dict(), teacher.hf.state_dict(), chosen)
        self.hf.load_state_dict({k: v for k, v in taken.items() if k not in self.fresh}, strict=False)

    def save(self, folder: Path) -> None:
        """Write a folder that ``load``, Transformers' Whisper classes and ``pipeline()`` read."""
        self.save_transformers(folder)

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> HubWhisper:
        """Load what ``save`` wrote, or a folder as pretrained, in its own language; errors as of the constructor."""
        return cls(folder, **{"language": own_language(folder), **card["shape"]})


def read_settings(folder: Path) -> tuple[WhisperConfig, WhisperFeatureExtractor, Any]:
    """Read all settings of a Whisper folder.

    Raises:
        CheckpointError: one of them is missing or damaged.
    """
    try:
        config = WhisperConfig.from_pretrained(folder, local_files_only=True)
        extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever its parsers raise
        raise CheckpointError(f"{folder} holds no readable Whisper settings ({error}); copy them again") from error
    return config, extractor, generation


def own_language(folder: Path) -> str:
    """Return the code of the language that a folder's generation settings name, English where they name none."""
    return language_code(str(getattr(read_settings(folder)[2], "language", None) or "en")) or "en"


def language_code(tag: str) -> str | None:
    """Return Whisper's code of a language's name or tag: de for German, de-CH, <|de|>; None for an unknown one."""
    tag = tag.strip("<|> ").lower().replace("_", "-")
    name = TO_LANGUAGE_CODE.get(tag, tag.partition("-")[0])
    return name if name in LANGUAGES else None


def language_tables(vocabulary: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the tables of generation settings that number languages and tasks, from a multilingual vocabulary."""
    languages = [tag for code in LANGUAGES if (tag := f"<|{code}|>") in vocabulary]
    tasks = [task for task in ("transcribe", "translate") if f"<|{task}|>" in vocabulary]
    return {
        "lang_to_id": {tag: vocabulary[tag] for tag in languages},
        "task_to_id": {task: vocabulary[f"<|{task}|>"] for task in tasks},
    }


def decoding_of(
    config: WhisperConfig, generation: Any, tokenizer: Tokenizer, language: str, task: str, source: Path
) -> tuple[GenerationConfig, list[int]]:
    """Return the settings of a search and the prompt; a saved model's settings get language and task, too.

    Raises:
        ConfigError: the model lacks the language.
    """
    multilingual = getattr(generation, "is_multilingual", config.vocab_size >= MULTILINGUAL_VOCABULARY)
    known = tokenizer.get_vocab()
    if multilingual:
        names = ["<|startoftranscript|>", f"<|{language}|>", f"<|{task}|>", "<|notimestamps|>"]
        if names[1] not in known:
            raise ConfigError(f"{source} does not know language={language}; write a code such as en, de or zh")
        generation.language, generation.task = names[1], task
        # Without these Transformers takes no language, though rkd's own prompt needs none.
        generation.is_multilingual = True
        for table, numbers in language_tables(known).items():
            if not getattr(generation, table, None):
                warn(f"{source}/generation_config.json has no {table}: made from the tokenizer")
                setattr(generation, table, numbers)
    else:
        if language != "en" or task != "transcribe":
            raise ConfigError(f"{source} only transcribes one language: set language=en task=transcribe")
        names = ["<|startoftranscript|>", "<|notimestamps|>"]
    if missing := [name for name in names if name not in known]:
        raise CheckpointError(f"the tokenizer of {source} lacks {missing[0]}; copy the model's own tokenizer there")
    prompt = [known[name] for name in names]
    # Older folders force the prompt and suppress tokens here instead of in the generation settings.
    generation.forced_decoder_ids = config.forced_decoder_ids = None
    decoding = copy.deepcopy(generation)
    decoding.decoder_start_token_id, decoding.no_timestamps_token_id = prompt[0], prompt[-1]
    return decoding, prompt
