"""Tokenizers, made from a corpus or a pretrained model's, in the forms that Transformers' pipelines read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias, Union, cast

from rkd.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from transformers import Wav2Vec2CTCTokenizer, WhisperTokenizer

Tokenizer: TypeAlias = Union["WhisperTokenizer", "Wav2Vec2CTCTokenizer"]

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|pad|>")
MAX_CLOSED_VOCABULARY = 64
TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")
START_OF_PREVIOUS = "<|startofprev|>"
TOGETHER = 1000  # texts that are encoded at a time


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


def build_letters(texts: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """Make the tokenizer of a CTC model from a corpus's training texts: a token a character, ``|`` between words.

    The special tokens come first, the padding (the blank) as number 0, as in the models of wav2vec 2.0's kind.

    Raises:
        DataError: the texts are empty.
    """
    from transformers import Wav2Vec2CTCTokenizer

    characters = sorted({character for text in texts for character in text if not character.isspace()} - {"|"})
    if not characters:
        raise DataError("the training split has no text to make a tokenizer from")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *characters])}
    with TemporaryDirectory() as folder:  # it reads its vocabulary from a file alone
        file = Path(folder, "vocab.json")
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(file))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder, of Whisper's form or of the CTC models'.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from transformers import Wav2Vec2CTCTokenizer, WhisperTokenizer

    by_merges = (folder / "merges.txt").is_file() or (folder / "tokenizer.json").is_file()
    try:
        return (WhisperTokenizer if by_merges else Wav2Vec2CTCTokenizer).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever its parser raises
        raise CheckpointError(f"{folder} holds no readable tokenizer ({error}); copy or build it again") from error


def of_characters(tokenizer: Tokenizer) -> bool:
    """Say whether a tokenizer is a CTC model's, of single characters."""
    return hasattr(tokenizer, "word_delimiter_token")


def upper_case(tokenizer: Tokenizer) -> bool:
    """Say whether a CTC model's characters are capital letters alone."""
    letters = [token for token in tokenizer.get_vocab() if len(token) == 1]
    return any(token.isupper() for token in letters) and not any(token.islower() for token in letters)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the label tokens of a text: its own tokens and the end-of-text token, no prompt."""
    return next(encode_all(tokenizer, [text]))


def encode_all(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the label tokens of texts, of many together in half the time that it takes one by one."""
    remaining = iter(texts)
    while some := list(islice(remaining, TOGETHER)):
        if of_characters(tokenizer):
            written = [text.upper() for text in some] if upper_case(tokenizer) else some
        else:
            written = [f" {text}" if text else "" for text in some]
        for ids in tokenizer(written, add_special_tokens=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones left out; capital letters alone are no emphasis and come back small."""
    if of_characters(tokenizer):
        # The delimiter of words counts as special there.
        spoken = [i for i in ids if i not in (set(tokenizer.all_special_ids) - {tokenizer.word_delimiter_token_id})]
        text = tokenizer.decode(spoken, group_tokens=False).strip()
        return text.lower() if upper_case(tokenizer) else text
    special = set(tokenizer.all_special_ids)
    return tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=True).strip()


def pieces_of(timed: str) -> list[str]:
    """Return the timestamps and the texts between them of a text such as ``<|0.00|> hello there<|1.20|>``, in order."""
    pieces = (piece.strip() for piece in re.split(f"({TIMESTAMP.pattern})", timed))
    return [piece for piece in pieces if piece]


def untimed(timed: str) -> str:
    """Return a text without its timestamps."""
    return " ".join(piece for piece in pieces_of(timed) if not TIMESTAMP.fullmatch(piece))


def encode_timed(tokenizer: Tokenizer, timed: str) -> list[int]:
    """Return the label tokens of a text with timestamps, with the end of text."""
    ids: list[int] = []
    for piece in pieces_of(timed):
        if TIMESTAMP.fullmatch(piece):
            ids.append(cast(int, tokenizer.convert_tokens_to_ids(piece)))
        else:
            ids += encode(tokenizer, piece)[:-1]
    return [*ids, tokenizer.eos_token_id]


def decode_timed(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens with its timestamps, other special tokens left out."""
    names = tokenizer.convert_ids_to_tokens(list(ids))
    stamps = [i for i, name in enumerate(names) if TIMESTAMP.fullmatch(name)]
    ends = [*stamps, len(ids)]
    found = [decode(tokenizer, ids[: ends[0]])]
    for start, end in zip(stamps, ends[1:], strict=True):
        text = decode(tokenizer, ids[start + 1 : end])
        found.append(f"{names[start]} {text}" if text else names[start])
    return "".join(found)


def lost_words(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[list[str], int]:
    """Return the words of texts that a vocabulary cannot write, sorted, and the number of different words."""
    words = sorted({word for text in texts for word in text.split()})
    lower = of_characters(tokenizer) and upper_case(tokenizer)
    return [w for w in words if decode(tokenizer, encode(tokenizer, w)) != (w.lower() if lower else w)], len(words)


def text_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the numbers of the tokens that texts are made of, and of the end of text; timestamps are no text."""
    special = set(tokenizer.all_special_tokens) - {tokenizer.eos_token}
    if of_characters(tokenizer):
        special.discard(tokenizer.word_delimiter_token)
    vocabulary = tokenizer.get_vocab()
    return {t: i for t, i in vocabulary.items() if t not in special and not TIMESTAMP.fullmatch(t)}


def difference(teacher: Tokenizer, student: Tokenizer) -> str | None:
    """Say how two vocabularies differ, or None where every token has the same number and part in both."""
    a, b = teacher.get_vocab(), student.get_vocab()
    special_a, special_b = set(teacher.all_special_tokens), set(student.all_special_tokens)
    if a == b:
        if special_a == special_b:
            return None
        return f"tokens that are special in one of them alone: {sorted(special_a ^ special_b)[:5]}"
    only_a, only_b = sorted(set(a) - set(b)), sorted(set(b) - set(a))
    parts = [f"{len(a)} tokens against {len(b)}"]
    if only_a:
        parts.append(f"only the teacher has {only_a[:5]}")
    if only_b:
        parts.append(f"only the student has {only_b[:5]}")
    if not only_a and not only_b:
        parts.append("the same tokens under other numbers")
    return "; ".join(parts)
