"""Folders like the pretrained ones: real configuration keys and tokenizer files, random weights, small and narrow.

Special tokens stand in the order of the real models; of the text tokens only the 256 bytes and a few merges are there,
so every special token's number is lower by the same amount.
"""

from __future__ import annotations

import json
from pathlib import Path

# The order of the languages in Whisper's tokenizer; large-v3 added the last.
LANGUAGES = [
    "en",
    "zh",
    "de",
    "es",
    "ru",
    "ko",
    "fr",
    "ja",
    "pt",
    "tr",
    "pl",
    "ca",
    "nl",
    "ar",
    "sv",
    "it",
    "id",
    "hi",
    "fi",
    "vi",
    "he",
    "uk",
    "el",
    "ms",
    "cs",
    "ro",
    "da",
    "hu",
    "ta",
    "no",
    "th",
    "ur",
    "hr",
    "bg",
    "lt",
    "la",
    "mi",
    "ml",
    "cy",
    "sk",
    "te",
    "fa",
    "lv",
    "bn",
    "sr",
    "az",
    "sl",
    "kn",
    "et",
    "mk",
    "br",
    "eu",
    "is",
    "hy",
    "ne",
    "mn",
    "bs",
    "kk",
    "sq",
    "sw",
    "gl",
    "mr",
    "pa",
    "si",
    "km",
    "sn",
    "yo",
    "so",
    "af",
    "oc",
    "ka",
    "be",
    "tg",
    "sd",
    "gu",
    "am",
    "yi",
    "lo",
    "uz",
    "fo",
    "ht",
    "ps",
    "tk",
    "nn",
    "mt",
    "sa",
    "lb",
    "my",
    "bo",
    "tl",
    "mg",
    "as",
    "tt",
    "haw",
    "ln",
    "ha",
    "ba",
    "jw",
    "su",
    "yue",
]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def bytes_to_symbols() -> list[str]:
    """Return GPT-2's printable symbol of each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(others)) for b in range(256)]


def text_tokens(version: str) -> tuple[list[str], list[str]]:
    """Return the text tokens (bytes, then merges that spell the digits' words) and the merges.

    The English-only models have a token less, and other numbers.
    """
    symbols, merges = bytes_to_symbols(), []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            pair = f"{left} {letter}"
            left += letter
            if pair not in merges:
                merges.append(pair)
    tokens = [pair.replace(" ", "") for pair in merges]
    return (symbols[::-1] + tokens[:-1], merges[:-1]) if version == "en" else (symbols + tokens, merges)


def special_tokens(version: str) -> list[str]:
    """Return Whisper's special tokens and timestamps after the text tokens: ``en``, ``v2`` or ``v3``."""
    languages = LANGUAGES if version == "v3" else LANGUAGES[:-1]
    return [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages), "<|translate|>",
        "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>" if version == "v3" else "<|nocaptions|>",
        "<|notimestamps|>", *(f"<|{0.02 * i:.2f}|>" for i in range(1501)),
    ]  # fmt: skip


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1))


def whisper_folder(folder: Path, version: str = "v2", seed: int = 0, loud: float = 3.0, **shape: int) -> Path:
    """Write a Whisper folder: configuration, generation settings, tokenizer files, feature extractor, random weights.

    Args:
        version: ``en`` (English alone), ``v2`` (51,865 tokens in the real models) or ``v3`` (51,866, 128 mel bins).
        loud: factor on random matrices, so that what is written depends on what is heard.
        shape: changes of ``WhisperConfig``.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder.mkdir(parents=True)
    text, merges = text_tokens(version)
    special = special_tokens(version)
    ids = {token: len(text) + i for i, token in enumerate(special)}
    n_special = special.index("<|notimestamps|>") + 1
    write_json(folder / "vocab.json", {token: i for i, token in enumerate([*text, "<|endoftext|>"])})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_json(folder / "added_tokens.json", {token: ids[token] for token in special[1:]})
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "WhisperTokenizer", "unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_prefix_space": False, "errors": "replace",
        "model_max_length": 1024, "additional_special_tokens": special[:n_special],
        "processor_class": "WhisperProcessor",
        "added_tokens_decoder": {
            str(ids[token]): {"content": token, "special": i < n_special, **plain} for i, token in enumerate(special)
        },
    })  # fmt: skip
    n_mels = 128 if version == "v3" else 80
    WhisperFeatureExtractor(feature_size=n_mels).save_pretrained(folder)
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    suppressed = [1, 2, 7, 8, 9, 10, start, ids["<|translate|>"], ids["<|transcribe|>"], ids["<|startoflm|>"],
                  ids["<|startofprev|>"], ids[special[n_special - 2]]]  # fmt: skip
    first = [text.index("Ġ"), end]
    config = WhisperConfig(**{
        "vocab_size": len(text) + len(special), "num_mel_bins": n_mels, "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "pad_token_id": end, "bos_token_id": end, "eos_token_id": end,
        "decoder_start_token_id": start, "suppress_tokens": None, "begin_suppress_tokens": None, **shape,
    })  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed_positions" not in name:
                p *= loud
        model.model.decoder.embed_tokens.weight[len(text) :] *= 0.02  # words rather than timestamps
    languages = {} if version == "en" else {
        "lang_to_id": {t: i for t, i in ids.items() if t.strip("<|>") in LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }  # fmt: skip
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, suppress_tokens=suppressed,
        begin_suppress_tokens=first, max_initial_timestamp_index=50, max_length=448, return_timestamps=False,
        no_timestamps_token_id=ids["<|notimestamps|>"], is_multilingual=version != "en",
        prev_sot_token_id=ids["<|startofprev|>"], alignment_heads=[[0, 0], [1, 1]], **languages,
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


# facebook/wav2vec2-base-960h's letters, in the order of their numbers.
LETTERS = [
    "E",
    "T",
    "A",
    "O",
    "N",
    "I",
    "H",
    "S",
    "R",
    "D",
    "L",
    "U",
    "M",
    "W",
    "C",
    "F",
    "G",
    "Y",
    "P",
    "B",
    "V",
    "K",
    "'",
    "X",
    "J",
    "Q",
    "Z",
]


def ctc_folder(folder: Path, kind: str = "wav2vec2-base", lower: bool = False, seed: int = 0, **shape: object) -> Path:
    """Write a CTC folder: configuration, tokenizer files, feature extractor and random weights.

    Args:
        kind: ``wav2vec2-base``, ``hubert-large`` or ``wavlm-base``: the norms and the normalisation of these models.
        lower: letters in lower case, as some fine-tuned models have.
        shape: changes of the configuration.
    """
    import torch
    from transformers import (
        HubertConfig,
        HubertForCTC,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        WavLMConfig,
        WavLMForCTC,
    )  # fmt: skip

    folder.mkdir(parents=True)
    letters = [letter.lower() for letter in LETTERS] if lower else LETTERS
    write_json(folder / "vocab.json", {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])})
    write_json(folder / "special_tokens_map.json", {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    })  # fmt: skip
    write_json(folder / "tokenizer_config.json", {
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "do_lower_case": False,
        "return_attention_mask": False, "do_normalize": True,
        **({"tokenizer_class": "Wav2Vec2CTCTokenizer"} if kind == "wavlm-base" else {}),
    })  # fmt: skip
    large = kind.endswith("large")
    write_json(folder / "preprocessor_config.json", {
        "do_normalize": kind != "wavlm-base", "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": large, "sampling_rate": 16000,
    })  # fmt: skip
    assert Wav2Vec2FeatureExtractor.from_pretrained(folder).sampling_rate == 16000
    config_class, model_class = {
        "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC), "hubert": (HubertConfig, HubertForCTC),
        "wavlm": (WavLMConfig, WavLMForCTC),
    }[kind.split("-")[0]]  # fmt: skip
    torch.manual_seed(seed)
    model = model_class(config_class(**{
        "vocab_size": 5 + len(letters), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 64, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large, "conv_bias": large, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "ctc_loss_reduction": "mean", **shape,
    }))  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight *= 30  # letters that depend on what is heard
    model.save_pretrained(folder)
    return folder
