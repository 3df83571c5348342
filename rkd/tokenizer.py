"""Tokenizers made from a corpus, in the form that Transformers' Whisper pipeline reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rkd.errors import DataError

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|pad|>")
MAX_CLOSED_VOCABULARY = 64


def build_tokenizer(texts: Iterable[str], kind: str = "auto") -> WhisperTokenizer:
    """Make a tokenizer from a corpus's training texts.

    Args:
        texts: the transcripts, already normalised.
        kind: ``word`` (a token a word), ``char`` (a token a byte of UTF-8), or ``auto``: words where the corpus has
            no more than 64 of them, as spoken digits or commands do, characters elsewhere.

    Returns:
        A ``WhisperTokenizer`` whose special tokens come last, as its pipeline needs them.

    Raises:
        DataError: the texts are empty.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, WhisperTokenizer

    words = sorted({word for text in texts for word in text.split()})
    if not words:
        raise DataError(
            "the training split has no text to make a tokenizer from; use a teacher that has one: teacher.path=RUN"
        )
    by_word = kind == "word" or (kind == "auto" and len(words) <= MAX_CLOSED_VOCABULARY)
    if by_word:
        # Added tokens, since byte-level BPE without merges would spell the words out.
        symbols: list[str] = []
    else:
        spell = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        symbols = sorted({symbol for word in words for piece, _ in spell(f" {word}") for symbol in piece})
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    for token in [f" {word}" for word in words] * by_word + list(SPECIAL):
        vocabulary[token] = len(vocabulary)
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[3],
    )
    if by_word:
        tokenizer.add_tokens([AddedToken(f" {word}", special=False, normalized=False) for word in words])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:3])})
    return tokenizer


def encode(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Return the label tokens of a text: its own tokens and the end-of-text token, no prompt."""
    ids = tokenizer.encode(f" {text}", add_special_tokens=False) if text else []
    return [*ids, tokenizer.eos_token_id]


def decode(tokenizer: WhisperTokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones left out."""
    special = set(tokenizer.all_special_ids)
    return tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=True).strip()


def difference(teacher: WhisperTokenizer, student: WhisperTokenizer) -> str | None:
    """Say how two vocabularies differ, or None where every token has the same number in both."""
    a, b = teacher.get_vocab(), student.get_vocab()
    if a == b:
        return None
    only_a, only_b = sorted(set(a) - set(b)), sorted(set(b) - set(a))
    parts = [f"{len(a)} tokens against {len(b)}"]
    if only_a:
        parts.append(f"only the teacher has {only_a[:5]}")
    if only_b:
        parts.append(f"only the student has {only_b[:5]}")
    if not only_a and not only_b:
        parts.append("the same tokens under other numbers")
    return "; ".join(parts)
