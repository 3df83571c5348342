"""Folders in the form of pretrained Whisper models, for `step.py`: real shapes and vocabulary sizes, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Width, layers of the encoder and of the decoder, heads; of Radford et al. 2022, table 1, and Gandhi et al. 2023.
SHAPES = {
    "tiny": (384, 4, 4, 6),
    "base": (512, 6, 6, 8),
    "small": (768, 12, 12, 12),
    "medium": (1024, 24, 24, 16),
    "large-v3": (1280, 32, 32, 20),
    "distil-large-v3": (1280, 32, 2, 20),
}
TEXT_TOKENS = 50257
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_whisper(
    folder: Path, shape: str, of_v3: bool, text_tokens: int = TEXT_TOKENS, window_seconds: int = 30, **config: Any
) -> None:
    """Write a folder that ``rkd distill student.source=`` and Transformers read.

    Args:
        shape: one of ``SHAPES``.
        of_v3: whether vocabulary and features are those of large-v3 (51,866 tokens, 128 mel bins), or of the smaller
            models (51,865 and 80). A student has its teacher's.
        text_tokens: of the vocabulary, beside 1,608 or 1,609 others.
        window_seconds: that the model hears.
        config: changes of ``WhisperConfig``.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from rkd.models.hub_whisper import language_tables

    tokenizer = make_tokenizer(of_v3, text_tokens)
    number = tokenizer.get_vocab()
    end, start = number["<|endoftext|>"], number["<|startoftranscript|>"]
    width, encoder_layers, decoder_layers, heads = SHAPES[shape]
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    mels = 128 if of_v3 else 80
    settings = {
        "vocab_size": len(tokenizer), "num_mel_bins": mels, "d_model": width, "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers, "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, "suppress_tokens": None,
        "begin_suppress_tokens": None, "init_std": width**-0.5,
        "max_source_positions": 50 * window_seconds, **special,
    }  # fmt: skip
    torch.manual_seed(len(shape))
    model = WhisperForConditionalGeneration(WhisperConfig(**{**settings, **config}))
    model.generation_config = GenerationConfig(
        max_length=448, is_multilingual=True, no_timestamps_token_id=number["<|notimestamps|>"],
        return_timestamps=False, **language_tables(number), **special,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels, chunk_length=window_seconds).save_pretrained(folder)


def make_tokenizer(of_v3: bool, text_tokens: int = TEXT_TOKENS) -> Any:
    """Return a tokenizer of Whisper's size and special tokens, that knows bytes and, as one token each, digits."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    text = sorted(ByteLevel.alphabet())
    merges = []
    for word in DIGITS:
        left = "Ġ"
        for letter in word:
            if left + letter not in text:
                merges.append((left, letter))
                text.append(left + letter)
            left += letter
    text += [f"Ġ{i}#" for i in range(text_tokens - len(text))]  # which no merge ever makes
    special = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in list(LANGUAGES)[: 99 + of_v3]),
        "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip
    stamps = [f"<|{0.02 * i:.2f}|>" for i in range(1501)]
    tokenizer = WhisperTokenizer(
        vocab={token: i for i, token in enumerate([*text, *special, *stamps])}, merges=merges,
        **dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), special[0]),
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in stamps])
    return tokenizer
